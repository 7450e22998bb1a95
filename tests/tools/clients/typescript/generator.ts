// Requests and verifies a code with the client that openapi-generator makes for TypeScript.
import { Configuration, ResponseError, TwoFactorAuthenticationApi } from "./generated";
import { ProblemFromJSON } from "./generated";

async function main(basePath: string, username: string): Promise<void> {
  const api = new TwoFactorAuthenticationApi(new Configuration({ basePath }));
  const reply = await api.generateOtp({ generateRequest: { username } });
  const verifyRequest = { username, otpCode: reply.otpCode! };
  console.log((await api.verifyOtp({ verifyRequest })).success);
  try {
    await api.verifyOtp({ verifyRequest });
  } catch (refusal) {
    if (!(refusal instanceof ResponseError)) throw refusal;
    const problem = ProblemFromJSON(await refusal.response.json());
    console.log(refusal.response.status, problem.detail);
  }
}

void main(process.argv[2]!, process.argv[3]!);
