"""Amazon CloudWatch Logs: PutLogEvents, a group for the audit trail and one for logs, a stream for each machine.

The service wants a request in order of time, at most 10,000 events, 1 MiB (26 bytes more for each event) and 24 hours wide, and
takes nothing older than 14 days or the group's retention. A stamp that goes back, or is too far off, is moved to the nearest
that is taken: the record's own `time` stays what it is. The message is the record, byte for byte.
"""

import time

import boto3
from botocore.config import Config

from edge_shipping.delivery import Delivery, Unavailable, moment, setting

MAX_BYTES, OVERHEAD, MAX_EVENTS = 1_048_576, 26, 10_000
HOUR = 3_600_000
DAY = 24 * HOUR


class CloudWatch(Delivery):
    """One for each kind of record."""

    def connect(self):
        self.group = setting(f"SHIP_CLOUDWATCH_{self.kind.upper()}_GROUP")
        self.stream = setting("SHIP_HOST")
        # Repeating is the buffer's part, which has all the time.
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
    """Parts a batch into what one request may carry."""
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
    """The events of a request that the service did not take."""
    early = max(rejected.get("tooOldLogEventEndIndex", 0), rejected.get("expiredLogEventEndIndex", 0))
    late = rejected.get("tooNewLogEventStartIndex", len(request))
    return request[:early] + request[late:]
