"""A Splunk HTTP Event Collector.

The program `splunk.py DIRECTORY HOST PORT` serves with its own certificate for this host until it is stopped. It prints
each indexed event after its source type.
"""

import http.server
import json
import os
import ssl
import subprocess
import sys
import threading
import urllib.parse

from edge import free_port

TOKEN = "11111111-2222-3333-4444-555555555555"


class Splunk:
    """Accepts events over TLS, and indexes them when their acknowledgement is requested. While it is down, nothing listens."""

    settings = property(
        lambda self: {
            "SHIP_SPLUNK_URL": f"https://{self.host}:{self.port}",
            "SHIP_SPLUNK_TOKEN": f"file:{self.token_file}",
            "SHIP_SPLUNK_CA": self.certificate,
            "SHIP_SPLUNK_ACK_SECONDS": "2",
        }
    )
    configuration = "splunk.conf"

    def __init__(self, directory, host="127.0.0.1", port=None):
        self.certificate, key = f"{directory}/hec.pem", f"{directory}/hec.key"
        self.token_file = f"{directory}/token"
        self.set_token(TOKEN)
        # A restart keeps the certificate.
        if not os.path.exists(self.certificate):
            name = f"IP:{host}" if host[0].isdigit() else f"DNS:{host}"
            subprocess.run(
                ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                 "-days", "2", "-subj", f"/CN={host}", "-addext", f"subjectAltName={name}",
                 "-keyout", key, "-out", self.certificate],
                check=True, capture_output=True,
            )  # fmt: skip
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(self.certificate, key)
        self.host, self.port, self.server = host, port or free_port(), None
        self.lock = threading.Lock()
        # The accepted batches by channel and number, the indexed events, and how many batches are accepted but never indexed.
        self.taken, self.events, self.numbers, self.forgetful, self.refusals = {}, [], 0, 0, 0

    def set_token(self, token):
        with open(self.token_file, "w", encoding="utf-8") as file:
            file.write(token + "\n")

    def up(self):
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = receiver.answer(self.path, self.headers, body.decode())
                text = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)
                # A stopped server closes its connections; otherwise an old thread would continue to serve.
                self.close_connection = receiver.server is None

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer((self.host, self.port), Handler)
        self.server.daemon_threads = True
        self.server.socket = self.tls.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def down(self):
        server, self.server = self.server, None
        server.shutdown()
        server.server_close()

    def answer(self, path, headers, body):
        with self.lock:
            if self.server is None:
                return 503, {"text": "Server is shutting down", "code": 23}
            if headers["Authorization"] != f"Splunk {TOKEN}":
                self.refusals += 1
                return 403, {"text": "Invalid token", "code": 4}
            channel = headers["X-Splunk-Request-Channel"]
            if not channel:
                return 400, {"text": "Data channel is missing", "code": 10}
            if path == "/services/collector/event":
                return self.take(channel, body)
            url = urllib.parse.urlsplit(path)
            assert url.path == "/services/collector/ack" and f"channel={channel}" in url.query, path
            return 200, {"acks": {str(n): self.index(channel, n) for n in json.loads(body)["acks"]}}

    def take(self, channel, body):
        if len(body.encode()) > 1_000_000:
            return 413, {"text": "Content-Length too large", "code": 27}
        decoder, events, at = json.JSONDecoder(), [], 0
        while at < len(body):
            event, at = decoder.raw_decode(body, at)
            if "POISON" in event["event"]:
                return 400, {"text": "Invalid data format", "code": 6, "invalid-event-number": len(events)}
            events.append(event)
            while at < len(body) and body[at].isspace():
                at += 1
        self.numbers += 1
        if self.forgetful:
            self.forgetful -= 1
        else:
            self.taken[channel, self.numbers] = events
        return 200, {"text": "Success", "code": 0, "ackId": self.numbers}

    def index(self, channel, number):
        events = self.taken.pop((channel, number), None)
        self.events += events or []
        return events is not None

    def received(self, kind):
        with self.lock:
            return [event["event"] for event in self.events if event["sourcetype"] == f"profile-edge:{kind}"]


class Printing(Splunk):
    """Prints what it indexes."""

    def index(self, channel, number):
        known = len(self.events)
        indexed = super().index(channel, number)
        for event in self.events[known:]:
            print(event["sourcetype"], event["event"], flush=True)
        return indexed


if __name__ == "__main__":
    Printing(sys.argv[1], sys.argv[2], int(sys.argv[3])).up()
    threading.Event().wait()
