"""The destinations, on loopback: a Splunk HTTP Event Collector, and CloudWatch Logs (moto's)."""

import http.server
import json
import logging
import ssl
import subprocess
import threading
import urllib.parse

import boto3
from moto.server import ThreadedMotoServer

from edge import free_port

TOKEN = "11111111-2222-3333-4444-555555555555"


class Splunk:
    """Takes events over TLS, and has them only when they are acknowledged. Down, nobody listens."""

    settings = property(
        lambda self: {
            "SHIP_SPLUNK_URL": f"https://127.0.0.1:{self.port}",
            "SHIP_SPLUNK_TOKEN": f"file:{self.token_file}",
            "SHIP_SPLUNK_CA": self.certificate,
            "SHIP_SPLUNK_ACK_SECONDS": "2",
        }
    )
    configuration = "splunk.conf"

    def __init__(self, directory):
        self.certificate, key = f"{directory}/hec.pem", f"{directory}/hec.key"
        self.token_file = f"{directory}/token"
        self.set_token(TOKEN)
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
             "-keyout", key, "-out", self.certificate],
            check=True, capture_output=True,
        )  # fmt: skip
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(self.certificate, key)
        self.port, self.server = free_port(), None
        self.lock = threading.Lock()
        # What was taken, by channel and number; what was indexed; how many batches are taken and never indexed.
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
                # As a server that is ended would: without it an old thread of ours went on serving.
                self.close_connection = receiver.server is None

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
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


class CloudWatch:
    """moto's CloudWatch Logs in this process: its memory outlives a time of being down."""

    configuration = "cloudwatch.conf"

    def __init__(self, directory):
        self.groups = {"audit": f"{directory}/audit", "log": f"{directory}/logs"}
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.port, self.server = free_port(), None
        self.settings = {
            "SHIP_CLOUDWATCH_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "SHIP_CLOUDWATCH_AUDIT_GROUP": self.groups["audit"],
            "SHIP_CLOUDWATCH_LOG_GROUP": self.groups["log"],
        }
        credentials = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "eu-central-1"}
        self.client = boto3.client("logs", endpoint_url=self.settings["SHIP_CLOUDWATCH_ENDPOINT"], **credentials)
        self.up()
        for group in self.groups.values():
            self.client.create_log_group(logGroupName=group)
        self.down()

    def up(self):
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self.server.start()

    def down(self):
        self.server.stop()

    def received(self, kind):
        streams = self.client.describe_log_streams(logGroupName=self.groups[kind])["logStreams"]
        if not streams:
            return []
        assert [stream["logStreamName"] for stream in streams] == ["edge-1"]
        found, token = [], {}
        while True:
            page = self.client.get_log_events(
                logGroupName=self.groups[kind], logStreamName="edge-1", startFromHead=True, **token
            )
            if not page["events"]:
                return [event["message"] for event in found]
            found += page["events"]
            token = {"nextToken": page["nextForwardToken"]}


