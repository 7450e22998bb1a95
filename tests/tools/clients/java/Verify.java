import org.openapitools.client.ApiClient;
import org.openapitools.client.ApiException;
import org.openapitools.client.api.TwoFactorAuthenticationApi;
import org.openapitools.client.model.GenerateRequest;
import org.openapitools.client.model.Problem;
import org.openapitools.client.model.VerifyRequest;

/** Requests and verifies a code with the client that openapi-generator makes for Java. */
class Verify {
    public static void main(String[] arguments) throws Exception {
        var client = new ApiClient();
        client.updateBaseUri(arguments[0]);
        var api = new TwoFactorAuthenticationApi(client);
        var user = arguments[1];
        var reply = api.generateOtp(null, new GenerateRequest().username(user));
        var request = new VerifyRequest().username(user).otpCode(reply.getOtpCode());
        System.out.println(api.verifyOtp(request).getSuccess());
        try {
            api.verifyOtp(request);
        } catch (ApiException refusal) {
            var problem = client.getObjectMapper().readValue(refusal.getResponseBody(), Problem.class);
            System.out.println(refusal.getCode() + " " + problem.getDetail());
        }
    }
}
