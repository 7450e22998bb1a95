// Requests and verifies a code with openapi-fetch and the types that openapi-typescript makes.
import createClient from "openapi-fetch";
import type { paths } from "./generated/schema";

async function main(baseUrl: string, username: string): Promise<void> {
  const client = createClient<paths>({ baseUrl });
  const reply = await client.POST("/auth/generate", { body: { username } });
  const body = { username, otp_code: reply.data!.otp_code! };
  console.log((await client.POST("/auth/verify", { body })).data!.success);
  const refused = await client.POST("/auth/verify", { body });
  console.log(refused.response.status, refused.error!.detail);
}

void main(process.argv[2]!, process.argv[3]!);
