// Requests and verifies a code with the client that oapi-codegen makes.
package main

import (
	"context"
	"fmt"
	"os"

	"fountainai.example/clients/generated"
)

func main() {
	client, err := generated.NewClientWithResponses(os.Args[1])
	must(err)
	ctx, user := context.Background(), os.Args[2]
	reply, err := client.GenerateOtpWithResponse(ctx, nil, generated.GenerateRequest{Username: user})
	must(err)
	request := generated.VerifyRequest{Username: user, OtpCode: *reply.JSON200.OtpCode}
	accepted, err := client.VerifyOtpWithResponse(ctx, request)
	must(err)
	fmt.Println(accepted.JSON200.Success)
	refused, err := client.VerifyOtpWithResponse(ctx, request)
	must(err)
	fmt.Println(refused.StatusCode(), refused.ApplicationproblemJSON400.Detail)
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
