"""Splunk's HTTP Event Collector, with indexer acknowledgement.

A batch is one request to /services/collector/event. With acknowledgement its answer names an `ackId`, which is asked about
until the indexer says that the batch is on its disk; until then it is not delivered, and after SHIP_SPLUNK_ACK_SECONDS it is
sent again. A record may therefore arrive twice, never not at all; audit records tell by their `hash`. The record itself is
the event's text, so that Splunk's `_raw` is what was written, byte for byte; `KV_MODE = json` for the source types
`profile-edge:audit` and `profile-edge:log` lets one search its fields.
"""

import contextlib
import http.client
import json
import ssl
import time
import urllib.parse
import uuid

from edge_shipping.delivery import Delivery, Unavailable, moment, secret, setting

TIMEOUT = 30.0
# Splunk Cloud takes no larger request than 1 MB; an event's envelope is less than a kilobyte.
MAX_BYTES, ENVELOPE = 1_000_000, 1_000
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Splunk(Delivery):
    """One for each kind of record, each with a channel of its own."""

    def connect(self):
        url = urllib.parse.urlsplit(setting("SHIP_SPLUNK_URL"))
        if url.scheme != "https" and url.hostname not in LOOPBACK:
            raise ValueError("SHIP_SPLUNK_URL must be https beyond loopback")
        self.address = url
        self.tls = ssl.create_default_context(cafile=setting("SHIP_SPLUNK_CA", "") or None)
        self.acknowledged = setting("SHIP_SPLUNK_ACK") == "yes"
        self.patience = float(setting("SHIP_SPLUNK_ACK_SECONDS"))
        self.channel = str(uuid.uuid4())
        self.headers = {
            "Authorization": f"Splunk {secret('SHIP_SPLUNK_TOKEN')}",
            "X-Splunk-Request-Channel": self.channel,
            "Content-Type": "application/json",
        }
        self.common = {"host": setting("SHIP_HOST"), "source": "profile-edge", "sourcetype": f"profile-edge:{self.kind}"}
        if index := setting("SHIP_SPLUNK_INDEX", ""):
            self.common["index"] = index

    def deliver(self, batch):
        """Delivers a batch over a connection of its own, so that the indexer that took it is asked about it."""
        with contextlib.closing(self.connection()) as link:
            for part in parts(batch):
                self.deliver_over(link, part)

    def deliver_over(self, link, batch):
        """Delivers a batch; what Splunk calls wrong for good is parted from the rest."""
        status, answer = self.post(link, "/services/collector/event", "\n".join(map(self.event, batch)))
        if status in (400, 413) and answer.get("code") in (5, 6, 12, 13, 15, 27, None):
            if len(batch) == 1:
                self.refuse(batch[0], f"{status} {answer.get('text', '')}")
                return
            # Halves, until what is refused stands alone.
            self.deliver_over(link, batch[: len(batch) // 2])
            self.deliver_over(link, batch[len(batch) // 2 :])
        elif status != 200:
            raise Unavailable(f"splunk answers {status} {answer.get('text', '')}")
        elif self.acknowledged:
            if "ackId" not in answer:
                raise Unavailable("the token has no indexer acknowledgement, see SHIP_SPLUNK_ACK")
            self.await_acknowledgement(link, answer["ackId"])

    def event(self, text):
        written = moment(text)
        when = {} if written is None else {"time": round(written, 3)}
        return json.dumps({**when, **self.common, "event": text}, ensure_ascii=False)

    def await_acknowledgement(self, link, number):
        deadline, pause = time.monotonic() + self.patience, 0.1
        while time.monotonic() < deadline:
            asked = json.dumps({"acks": [number]})
            status, answer = self.post(link, f"/services/collector/ack?channel={self.channel}", asked)
            if status != 200:
                raise Unavailable(f"splunk answers {status} about an acknowledgement")
            if answer.get("acks", {}).get(str(number)):
                return
            time.sleep(pause)
            pause = min(pause * 2, 5.0)
        raise Unavailable("no acknowledgement of the indexer in time, the batch is sent again")

    def connection(self):
        host, port = self.address.hostname, self.address.port
        if self.address.scheme == "https":
            return http.client.HTTPSConnection(host, port or 443, timeout=TIMEOUT, context=self.tls)
        return http.client.HTTPConnection(host, port or 80, timeout=TIMEOUT)

    def post(self, link, path, body):
        link.request("POST", path, body.encode(), self.headers)
        response = link.getresponse()
        try:
            answer = json.loads(response.read())
        except ValueError:
            answer = {}
        return response.status, answer if isinstance(answer, dict) else {}


def parts(batch):
    """Parts a batch into what one request may carry."""
    part, size = [], 0
    for text in batch:
        # As JSON in JSON it grows by its escapes.
        cost = len(json.dumps(text, ensure_ascii=False).encode()) + ENVELOPE
        if part and size + cost > MAX_BYTES:
            yield part
            part, size = [], 0
        part.append(text)
        size += cost
    if part:
        yield part
