"""Amazon CloudWatch Logs: PutLogEvents, one group for the audit trail, one for logs, and one stream for each machine.

A request must be in order of time, and has at most 10,000 events, 1 MiB (with 26 bytes for each event) and a span of 24
hours. Events older than 14 days or the group's retention are rejected. A timestamp that is out of order or out of range is
moved to the nearest allowed one; the record's own `time` is unchanged. The message is the record, byte for byte.
"""

import time

import boto3
from botocore.config import Config

from edge_shipping.delivery import Delivery, Unavailable, moment, setting

MAX_BYTES, OVERHEAD, MAX_EVENTS = 1_048_576, 26, 10_000
HOUR = 3_600_000
DAY = 24 * HOUR


class CloudWatch(Delivery):
    """A destination for one kind of record."""

    def connect(self):
        self.group = setting(f"SHIP_CLOUDWATCH_{self.kind.upper()}_GROUP")
        self.stream = setting("SHIP_HOST")
        # syslog-ng retries from its buffer.
        once = Config(retries={"total_max_attempts": 1}, connect_timeout=10, read_timeout=30)
        self.logs = boto3.client("logs", endpoint_url=setting("SHIP_CLOUDWATCH_ENDPOINT", "") or None, config=once)

    def deliver(self, batch):
        for request in requests(batch, int(time.time() * 1000)):
            try:
                answer = self.put(request)
            except self.logs.exceptions.ResourceNotFoundException:
                self.create_stream()
                answer = self.put(request)
            if rejected := answer.get("rejectedLogEventsInfo"):
                for event in refused(request, rejected):
                    self.refuse(event["message"], f"cloudwatch: {rejected}")

    def put(self, events):
        return self.logs.put_log_events(logGroupName=self.group, logStreamName=self.stream, logEvents=events)

    def create_stream(self):
        try:
            self.logs.create_log_stream(logGroupName=self.group, logStreamName=self.stream)
        except self.logs.exceptions.ResourceAlreadyExistsException:
            pass
        except self.logs.exceptions.ResourceNotFoundException as error:
            raise Unavailable(f"there is no log group {self.group}") from error


def requests(batch, now):
    """Splits a batch into requests within the limits."""
    request, size, last = [], 0, 0
    for text in batch:
        written = moment(text)
        stamp = now if written is None else int(written * 1000)
        stamp = max(last, min(max(stamp, now - 14 * DAY + HOUR), now + HOUR))
        cost = len(text.encode()) + OVERHEAD
        full = size + cost > MAX_BYTES or len(request) == MAX_EVENTS
        if request and (full or stamp - request[0]["timestamp"] >= DAY):
            yield request
            request, size = [], 0
        request.append({"timestamp": stamp, "message": text})
        size, last = size + cost, stamp
    if request:
        yield request


def refused(request, rejected):
    """Returns the events of a request that the service rejected."""
    early = max(rejected.get("tooOldLogEventEndIndex", 0), rejected.get("expiredLogEventEndIndex", 0))
    late = rejected.get("tooNewLogEventStartIndex", len(request))
    return request[:early] + request[late:]
