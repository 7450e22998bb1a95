// Requests and verifies a code with the client that openapi-generator makes for Go.
package main

import (
	"context"
	"fmt"
	"os"

	"fountainai.example/clients/generated"
)

func main() {
	configuration := generated.NewConfiguration()
	configuration.Servers = generated.ServerConfigurations{{URL: os.Args[1]}}
	api := generated.NewAPIClient(configuration).TwoFactorAuthenticationAPI
	ctx, user := context.Background(), os.Args[2]
	reply, _, err := api.GenerateOtp(ctx).GenerateRequest(*generated.NewGenerateRequest(user)).Execute()
	must(err)
	request := *generated.NewVerifyRequest(reply.GetOtpCode(), user)
	accepted, _, err := api.VerifyOtp(ctx).VerifyRequest(request).Execute()
	must(err)
	fmt.Println(accepted.GetSuccess())
	_, response, err := api.VerifyOtp(ctx).VerifyRequest(request).Execute()
	problem := err.(*generated.GenericOpenAPIError).Model().(generated.Problem)
	fmt.Println(response.StatusCode, problem.GetDetail())
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
