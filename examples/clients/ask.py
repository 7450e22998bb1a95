"""Reveals a key after a second factor, with Python's standard library.

    python3 examples/clients/ask.py alice
"""

import json
import os
import sys
import urllib.error
import urllib.request

SIDECAR = os.environ.get("TWOFACTOR_URL", "http://127.0.0.1:8004")
TIMEOUT = float(os.environ.get("TWOFACTOR_TIMEOUT", "15"))
# Never through a proxy, because the sidecar is in this pod.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Refused(PermissionError):
    """A refusal of the sidecar: its sentence, and the whole problem."""

    def __init__(self, problem):
        super().__init__(problem["detail"])
        self.problem = problem


def ask(path, **fields):
    """Returns the sidecar's answer. Every status except 200 raises an error."""
    body = json.dumps(fields).encode()
    request = urllib.request.Request(SIDECAR + path, body, {"Content-Type": "application/json"})
    try:
        with DIRECT.open(request, timeout=TIMEOUT) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as refusal:
        raise Refused(json.load(refusal)) from None


def reveal_key(username, read_code):
    try:
        ask("/auth/generate", username=username)
    except Refused as refused:
        # A code that was sent before is still valid.
        if "code_in_flight_until" not in refused.problem:
            raise
    ask("/auth/verify", username=username, otp_code=read_code())
    return "here is your key"


if __name__ == "__main__":
    print(reveal_key(sys.argv[1] if len(sys.argv) > 1 else "alice", lambda: input("Code: ")))
