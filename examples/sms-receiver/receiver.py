"""Sends codes as text messages through a provider other than Twilio, with Python's standard library.

    WEBHOOK_SECRET=whsec_… VONAGE_KEY=… VONAGE_SECRET=… VONAGE_FROM=FountainAI python3 receiver.py

The sidecar calls it with a signed webhook (docs/reference/webhook-delivery.md). `send` is the only
part that knows the provider, here Vonage's SMS API: replace it for another one.
"""

import base64
import hashlib
import hmac
import json
import os
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# One secret, or several separated by blanks while the sidecars get to know a new one.
SECRETS = os.environ["WEBHOOK_SECRET"].split()
API = os.environ.get("VONAGE_URL", "https://rest.nexmo.com/sms/json")
KEY, SECRET = os.environ["VONAGE_KEY"], os.environ["VONAGE_SECRET"]
SENDER = os.environ["VONAGE_FROM"]
# The sidecar waits for ten seconds.
TIMEOUT = float(os.environ.get("TIMEOUT", "8"))
# A signature is valid for so many seconds, and an id is remembered for as long.
WINDOW = 300
LARGEST_BODY = 64 * 1024


class Refused(Exception):
    """The status to answer with."""

    def __init__(self, status):
        super().__init__(status)
        self.status = status


def send(number, text):
    """Hands a message to the provider. Raises Refused if it is not sure that the provider took it."""
    fields = {"api_key": KEY, "api_secret": SECRET, "from": SENDER, "to": number.lstrip("+"), "text": text}
    if not text.isascii():
        fields["type"] = "unicode"
    request = urllib.request.Request(API, urllib.parse.urlencode(fields).encode())
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
            statuses = [message["status"] for message in json.load(reply)["messages"]]
    except urllib.error.HTTPError as error:
        raise Refused(503 if error.code == 429 or error.code >= 500 else 422) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise Refused(502) from None
    # Vonage answers 200 to a refusal too. A long text is several messages.
    if not statuses or any(status != "0" for status in statuses):
        raise Refused(429 if "1" in statuses else 422)


def is_signed(headers, body, now):
    """Whether the request comes from a sidecar, and is not an old one sent again."""
    try:
        timestamp = int(headers.get("webhook-timestamp", ""))
    except ValueError:
        return False
    if abs(now - timestamp) > WINDOW:
        return False
    signed = b".".join([headers.get("webhook-id", "").encode(), str(timestamp).encode(), body])
    given = headers.get("webhook-signature", "").split(" ")
    keys = [base64.b64decode(secret.removeprefix("whsec_")) for secret in SECRETS]
    expected = [
        "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        for key in keys
    ]
    return any(hmac.compare_digest(a.encode(), b.encode()) for a in expected for b in given)


class Seen:
    """The ids of messages that were sent, so that none is sent and paid for twice."""

    def __init__(self):
        self.lock = threading.Lock()
        self.ids = {}

    def add(self, id, now):
        """Whether the id is a new one."""
        with self.lock:
            self.ids = {known: at for known, at in self.ids.items() if now - at <= 2 * WINDOW}
            return self.ids.setdefault(id, now) == now

    def forget(self, id):
        with self.lock:
            self.ids.pop(id, None)


SEEN = Seen()


def handle(headers, body):
    """Returns the status of the answer: 2xx only if the provider has taken the message."""
    now = time.time()
    if not is_signed(headers, body, now):
        return 401
    data = json.loads(body)["data"]
    if "phone_number" not in data:
        return 422
    id = headers["webhook-id"]
    if not SEEN.add(id, now):
        return 204
    try:
        send(data["phone_number"], data["text"])
        return 204
    except Refused as refused:
        SEEN.forget(id)
        return refused.status


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 15

    def do_POST(self):
        length = self.headers.get("content-length", "")
        if not length.isdigit() or int(length) > LARGEST_BODY:
            self.close_connection = True
            return self.answer(413)
        self.answer(handle(self.headers, self.rfile.read(int(length))))

    def answer(self, status):
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, form, *arguments):
        # Neither code nor number, which are in the body only.
        print(form % arguments, flush=True)


def main():
    host, port = os.environ.get("LISTEN", "127.0.0.1:8080").rsplit(":", 1)
    server = ThreadingHTTPServer((host, int(port)), Handler)
    if "TLS_CERT" in os.environ:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(os.environ["TLS_CERT"], os.environ["TLS_KEY"])
        server.socket = context.wrap_socket(server.socket, server_side=True)
    print(f"listening on {host}:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
