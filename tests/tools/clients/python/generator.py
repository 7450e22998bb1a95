"""Requests and verifies a code with the client that openapi-generator makes for Python."""

import json
import sys

import twofactor_client as client
from twofactor_client.api.two_factor_authentication_api import TwoFactorAuthenticationApi

base, user = sys.argv[1:]
with client.ApiClient(client.Configuration(host=base)) as connection:
    api = TwoFactorAuthenticationApi(connection)
    reply = api.generate_otp(generate_request=client.GenerateRequest(username=user))
    request = client.VerifyRequest(username=user, otp_code=reply.otp_code)
    print(api.verify_otp(request).success)
    try:
        api.verify_otp(request)
    except client.ApiException as refusal:
        print(refusal.status, client.Problem.from_dict(json.loads(refusal.body)).detail)
