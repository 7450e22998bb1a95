"""Requests and verifies a code with the client that openapi-python-client makes."""

import sys

from twofactor_client import Client
from twofactor_client.api.two_factor_authentication import generate_otp, verify_otp
from twofactor_client.models import GenerateRequest, Problem, VerifyReply, VerifyRequest

base, user = sys.argv[1:]
with Client(base_url=base) as client:
    reply = generate_otp.sync(client=client, body=GenerateRequest(username=user))
    request = VerifyRequest(username=user, otp_code=reply.otp_code)
    accepted = verify_otp.sync(client=client, body=request)
    assert isinstance(accepted, VerifyReply), accepted
    print(accepted.success)
    refused = verify_otp.sync_detailed(client=client, body=request)
    assert isinstance(refused.parsed, Problem), refused
    print(int(refused.status_code), refused.parsed.detail)
