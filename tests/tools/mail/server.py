"""An SMTP server that keeps what it receives, for the tests. Run it with tools-python.

The protocol is aiosmtpd's. This file adds what tests need: a REST API to read the mail, and
switchable faults. On start it prints one line of JSON with its ports:
{"smtp": 40001, "http": 40002}.
"""

import argparse
import asyncio
import email
import email.policy
import json
import signal
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult


class Mailbox:
    """Received mail and the active fault, shared by the SMTP thread and the HTTP threads."""

    def __init__(self):
        self.lock = threading.Lock()
        self.messages = []
        self.attempts = 0
        self.fault = None
        # Number of connections since the start, and the open ones.
        self.connections = 0
        self.sessions = set()

    def reply_for(self, stage):
        with self.lock:
            fault = self.fault
            if not fault or fault["stage"] != stage:
                return None
            if fault["times"] is not None:
                fault["times"] -= 1
                if fault["times"] <= 0:
                    self.fault = None
            return fault["reply"]

    def close_all(self):
        with self.lock:
            sessions, self.sessions = self.sessions, set()
        for session in sessions:
            if session.transport is not None:
                session.loop.call_soon_threadsafe(session.transport.close)


class Handler:
    def __init__(self, mailbox):
        self.mailbox = mailbox

    async def fault(self, server, stage):
        """Returns the reply to send in place of the usual one. No reply is a fault as well."""
        reply = self.mailbox.reply_for(stage)
        if reply == "hang":
            await asyncio.sleep(3600)
        elif reply == "drop":
            server.transport.abort()
            return "421 closed"
        return reply

    async def handle_MAIL(self, server, session, envelope, address, options):
        with self.mailbox.lock:
            self.mailbox.attempts += 1
        fault = await self.fault(server, "mail")
        if fault:
            return fault
        # A handler that replaces aiosmtpd's command has to set these two.
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_RCPT(self, server, session, envelope, address, options):
        fault = await self.fault(server, "rcpt")
        if fault:
            return fault
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        fault = await self.fault(server, "data")
        if fault:
            return fault
        raw = envelope.content
        parsed = email.message_from_bytes(raw, policy=email.policy.default)
        body = parsed.get_body(("plain",))
        html = parsed.get_body(("html",))
        message = {
            "from": envelope.mail_from,
            "to": list(envelope.rcpt_tos),
            # Not session.ssl, because aiosmtpd sets it for STARTTLS only.
            "tls": server.transport.get_extra_info("ssl_object") is not None,
            "user": session.auth_data,
            "headers": [[name, str(value)] for name, value in parsed.items()],
            "text": body.get_content() if body else "",
            "html": html.get_content() if html else "",
            "raw": raw.decode("utf-8", "replace"),
        }
        with self.mailbox.lock:
            message["id"] = len(self.mailbox.messages) + 1
            self.mailbox.messages.append(message)
        return "250 OK"


def rest(mailbox):
    class Rest(BaseHTTPRequestHandler):
        def answer(self, status, value):
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            with mailbox.lock:
                messages = list(mailbox.messages)
                attempts, connections = mailbox.attempts, mailbox.connections
                fault = mailbox.fault
            if self.path == "/messages":
                self.answer(200, messages)
            elif self.path == "/state":
                self.answer(200, {
                    "messages": len(messages),
                    "attempts": attempts,
                    "fault": fault,
                    "connections": connections,
                })
            else:
                self.answer(404, {"error": "not found"})

        def do_DELETE(self):
            if self.path == "/connections":
                mailbox.close_all()
                return self.answer(200, {})
            if self.path not in ("/messages", "/fault"):
                return self.answer(404, {"error": "not found"})
            with mailbox.lock:
                if self.path == "/messages":
                    mailbox.messages, mailbox.attempts = [], 0
                else:
                    mailbox.fault = None
            self.answer(200, {})

        def do_PUT(self):
            if self.path != "/fault":
                return self.answer(404, {"error": "not found"})
            try:
                wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stage, reply, times = wanted["stage"], wanted["reply"], wanted.get("times")
                stages = ("auth", "mail", "rcpt", "data")
                silent = reply in ("hang", "drop") and stage != "auth"
                if stage not in stages or not (silent or reply[:3].isdigit()):
                    raise ValueError(
                        "stage is auth, mail, rcpt or data; "
                        "reply begins with its code, or is hang or drop"
                    )
            except (ValueError, KeyError, TypeError) as error:
                return self.answer(400, {"error": str(error)})
            with mailbox.lock:
                mailbox.fault = {"stage": stage, "reply": reply, "times": times}
            self.answer(200, {})

        def log_message(self, *_):
            pass

    return Rest


def closed(session):
    return session.transport is not None and session.transport.is_closing()


class Server(Controller):
    def factory(self):
        session = super().factory()
        mailbox = self.handler.mailbox
        with mailbox.lock:
            mailbox.connections += 1
            mailbox.sessions = {known for known in mailbox.sessions if not closed(known)} | {session}
        return session

    def _trigger_server(self):
        # aiosmtpd checks that its port answers, which fails for port 0.
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tls", choices=["none", "starttls", "implicit"], default="none",
                        help="starttls: mail without STARTTLS is refused (530)")
    parser.add_argument("--cert", help="PEM certificate chain, for starttls and implicit")
    parser.add_argument("--key", help="PEM private key, for starttls and implicit")
    parser.add_argument("--auth", metavar="USER:PASSWORD",
                        help="require this login (530 without one, 535 if it is wrong)")
    parser.add_argument("--listen", metavar="ADDRESS", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--smtp-port", type=int, default=0, help="default: a free one")
    parser.add_argument("--http-port", type=int, default=0, help="default: a free one")
    options = parser.parse_args()
    # In a container this is process 1, which SIGTERM does not end by default.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    context = None
    if options.tls != "none":
        if not (options.cert and options.key):
            parser.error("--tls needs --cert and --key")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(options.cert, options.key)

    mailbox = Mailbox()

    def authenticate(server, session, envelope, mechanism, data):
        fault = mailbox.reply_for("auth")
        if fault:
            return AuthResult(success=False, handled=False, message=fault)
        given = (data.login or b"") + b":" + (data.password or b"")
        if given != options.auth.encode():
            return AuthResult(success=False, handled=False)
        return AuthResult(success=True, auth_data=data.login.decode())

    smtp = {"server_hostname": "localhost"}
    if options.auth:
        # Only STARTTLS counts as TLS for aiosmtpd, so requiring it would exclude implicit TLS.
        smtp.update(
            authenticator=authenticate,
            auth_required=True,
            auth_require_tls=options.tls == "starttls",
        )
    if options.tls == "starttls":
        smtp.update(tls_context=context, require_starttls=True)

    server = Server(Handler(mailbox), hostname=options.listen, port=options.smtp_port,
                    ssl_context=context if options.tls == "implicit" else None, **smtp)
    server.start()
    with mailbox.lock:
        # The controller connects once when it starts.
        mailbox.connections = 0
    http = ThreadingHTTPServer((options.listen, options.http_port), rest(mailbox))
    print(json.dumps({"smtp": server.port, "http": http.server_address[1]}), flush=True)
    try:
        http.serve_forever()
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
