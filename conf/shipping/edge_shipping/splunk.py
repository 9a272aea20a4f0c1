"""Splunk's HTTP Event Collector, with indexer acknowledgement.

A batch is one request to /services/collector/event. With acknowledgement, the answer has an `ackId`, which is polled until
the indexer reports that the batch is on disk. Until then the batch is not delivered; after SHIP_SPLUNK_ACK_SECONDS it is
sent again. So a record may arrive twice, but is never lost; the `hash` of an audit record identifies duplicates. The record
itself is the event's text, so that Splunk's `_raw` is the original, byte for byte. Set `KV_MODE = json` for the source types
`profile-edge:audit` and `profile-edge:log` to search its fields.
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
# Splunk Cloud accepts requests up to 1 MB. The envelope of an event is less than 1 kB.
MAX_BYTES, ENVELOPE = 1_000_000, 1_000
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Splunk(Delivery):
    """A destination for one kind of record, with its own channel."""

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
        """Delivers a batch over its own connection, so that the indexer that accepted it gets the acknowledgement requests."""
        with contextlib.closing(self.connection()) as link:
            for part in parts(batch):
                self.deliver_over(link, part)

    def deliver_over(self, link, batch):
        """Delivers a batch. Records that Splunk rejects permanently are separated from the rest."""
        status, answer = self.post(link, "/services/collector/event", "\n".join(map(self.event, batch)))
        if status in (400, 413) and answer.get("code") in (5, 6, 12, 13, 15, 27, None):
            if len(batch) == 1:
                self.refuse(batch[0], f"{status} {answer.get('text', '')}")
                return
            # Halves the batch until the rejected record is alone.
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
    """Splits a batch into requests within the size limit."""
    part, size = [], 0
    for text in batch:
        # JSON within JSON grows by its escapes.
        cost = len(json.dumps(text, ensure_ascii=False).encode()) + ENVELOPE
        if part and size + cost > MAX_BYTES:
            yield part
            part, size = [], 0
        part.append(text)
        size += cost
    if part:
        yield part
