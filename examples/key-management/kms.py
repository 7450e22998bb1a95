"""A key management service that reveals a key only after a verified second factor.

It knows nothing about codes, seeds or mail: it asks the sidecar on 127.0.0.1:8004, and only status
200 of `/auth/verify` means yes. A refusal, a timeout and an invalid answer mean no.

    POST /keys/<id>/request  {"username": "alice"}                        the sidecar sends alice a code
    POST /keys/<id>/reveal   {"username": "alice", "otp_code": "188978"}  the key, if the sidecar says yes
    GET  /healthz                                                         this process answers

A real service would first authenticate the user, by a session or a token, and check whether they may
have this key: a second factor comes in addition to a first one.
"""

import http.client
import json
import os
import re
import signal
import socket
import sys
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SIDECAR = os.environ.get("TWOFACTOR_URL", "http://127.0.0.1:8004")
KEYS = Path(os.environ.get("KMS_KEYS", "/var/run/secrets/kms"))
PORT = int(os.environ.get("KMS_LISTEN_PORT", "8080"))

PATH = re.compile(r"/keys/([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)/(request|reveal)")
LARGEST_BODY = 4096
LARGEST_ANSWER = 64 * 1024
CONNECTIONS = 64
# Longer than the sidecar gives a mail server, so its own answer comes first.
SIDECAR_TIMEOUT = 15
CLIENT_TIMEOUT = 10

# Answers of the sidecar that the user can act on: type again, wait, request a new code.
PASSED_ON = {400, 401, 422, 429, 502}
WITH_APP = "urn:fountainai:2fa:no-delivery-method"

# Never through a proxy, whatever the environment says: this request stays in the pod.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Refused(Exception):
    """The answer to the client in place of a success."""

    def __init__(self, status, detail, retry_after=None):
        super().__init__(detail)
        self.status, self.detail, self.retry_after = status, detail, retry_after


def ask(path, fields, origin):
    """Asks the sidecar. Returns status, members of the answer and `Retry-After`."""
    headers = {"Content-Type": "application/json", **origin}
    request = urllib.request.Request(SIDECAR + path, json.dumps(fields).encode(), headers)
    try:
        try:
            reply = DIRECT.open(request, timeout=SIDECAR_TIMEOUT)
        except urllib.error.HTTPError as refusal:
            reply = refusal
        with reply:
            answer = json.loads(reply.read(LARGEST_ANSWER))
            if not isinstance(answer, dict):
                raise ValueError("not a JSON object")
            return reply.status, answer, reply.headers.get("Retry-After")
    except (OSError, ValueError, http.client.HTTPException) as error:
        print(f"the sidecar gave no answer: {error!r}", file=sys.stderr, flush=True)
        raise unavailable() from error


def unavailable(retry_after=None):
    return Refused(503, "The second factor cannot be checked at the moment. Try again.", retry_after or "1")


def refusal(status, answer, retry_after):
    """What a refusal of the sidecar means for the client."""
    if status in PASSED_ON:
        return Refused(status, str(answer.get("detail", "Refused.")), retry_after)
    if status == 404:
        return Refused(403, "This user has no second factor. Ask your administrator for one.")
    # 503 and every other status: the code cannot be checked, so it is not accepted.
    return unavailable(retry_after)


def request_code(username, origin):
    """Requests a code, and returns what the user should do."""
    status, answer, retry_after = ask("/auth/generate", {"username": username}, origin)
    if status == 200:
        return {"message": "A code has been sent.", "expires_at": answer.get("expires_at")}
    if status == 400 and answer.get("type") == WITH_APP:
        return {"message": "Use the code of your authenticator app."}
    raise refusal(status, answer, retry_after)


def require_second_factor(username, code, origin):
    """Returns when the code was right, and only then."""
    status, answer, retry_after = ask("/auth/verify", {"username": username, "otp_code": code}, origin)
    if status != 200 or answer.get("success") is not True:
        raise refusal(status, answer, retry_after)


def texts(body, *names):
    """These members of a JSON object that has no others."""
    if isinstance(body, dict) and set(body) == set(names) and all(isinstance(body[name], str) for name in names):
        return [body[name] for name in names]
    raise Refused(422, f"The body must be a JSON object with {' and '.join(names)}, as texts.")


class Handler(BaseHTTPRequestHandler):
    timeout = CLIENT_TIMEOUT

    def do_GET(self):
        if self.path == "/healthz":
            self.answer(200, {"status": "ok"})
        else:
            self.answer(404, {"detail": "There is nothing at this path."})

    def do_POST(self):
        try:
            self.answer(200, self.serve())
        except Refused as refused:
            self.answer(refused.status, {"detail": refused.detail}, refused.retry_after)

    def serve(self):
        body = self.body()
        match = PATH.fullmatch(self.path)
        key = match and KEYS / match[1]
        if not key or not key.is_file():
            raise Refused(404, "There is no such key.")
        # They stand in the sidecar's record of what happened.
        user_agent = " ".join(self.headers.get("User-Agent", "").split())[:200]
        origin = {"X-Forwarded-For": self.client_address[0], "User-Agent": user_agent}
        if match[2] == "request":
            return request_code(*texts(body, "username"), origin)
        require_second_factor(*texts(body, "username", "otp_code"), origin)
        return {"id": match[1], "key": key.read_text().strip()}

    def body(self):
        """What was sent, if it is JSON and small."""
        if self.headers.get_content_type() != "application/json":
            raise Refused(415, "Content-Type must be application/json.")
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not re.fullmatch("[0-9]{1,9}", length):
            raise Refused(411, "Content-Length is needed.")
        if int(length) > LARGEST_BODY:
            raise Refused(413, f"The body is larger than {LARGEST_BODY} bytes.")
        try:
            return json.loads(self.rfile.read(int(length)))
        except TimeoutError:
            raise Refused(408, "The body did not arrive in time.") from None
        except (ValueError, RecursionError):
            raise Refused(422, "The body is not JSON.") from None

    def answer(self, status, body, retry_after=None):
        data = json.dumps(body).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        if retry_after:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    """Runs a thread for each connection, up to a limit; further connections are closed."""

    daemon_threads = True
    slots = threading.BoundedSemaphore(CONNECTIONS)

    def process_request(self, request, client_address):
        if self.slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.slots.release()

    def handle_error(self, request, client_address):
        # A client that disconnected is not reported; a defect is, without the request.
        if not isinstance(sys.exc_info()[1], (ConnectionError, socket.timeout)):
            super().handle_error(request, client_address)


def main():
    server = Server(("0.0.0.0", PORT), Handler)
    # The first process of a container gets no default handlers. `shutdown` waits for the loop that
    # it interrupts, so it runs in a thread.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"listening on port {server.server_port}", file=sys.stderr, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
