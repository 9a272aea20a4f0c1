"""What both destinations share: batches, delivered in whole or offered again.

syslog-ng hands over records one by one (`send`), asks for the batch to be delivered (`flush`), and takes it out of its
buffer on SUCCESS. On NOT_CONNECTED it keeps the batch and comes again, without end; it would drop a batch after some tries of any other
failure, so none other is ever reported. It asks `open` first, each second: `time-reopen` has no effect on what is written in Python.
"""

import datetime
import json
import os
import sys
import time


# What carries a record's place in its audit trail through syslog-ng.
PLACE = "SHIP_PLACE"


def setting(name, default=None):
    """A variable of shipping.env; empty counts as not there."""
    value = os.environ.get(name) or default
    if value is None:
        raise ValueError(f"{name} is not set")
    return value


def secret(name):
    """Such a variable, itself or in the file that it names as file:PATH."""
    value = setting(name)
    if value.startswith("file:"):
        with open(value[len("file:") :], encoding="utf-8") as file:
            value = file.read().strip()
    return value


def say(text):
    """A line in the collector's own log."""
    print(f"profile-edge shipping: {text}", file=sys.stderr, flush=True)


def moment(text):
    """When a record was written, in seconds since 1970; `None` if it does not say."""
    try:
        record = json.loads(text)
        written = record.get("time") or record.get("timestamp")
        return datetime.datetime.fromisoformat(written.replace("Z", "+00:00")).timestamp()
    except (ValueError, AttributeError, TypeError):
        return None


def places_file():
    return os.path.join(setting("SHIP_STATE_DIR"), "audit-places.json")


def delivered_places():
    """How far each audit trail has been delivered."""
    try:
        with open(places_file(), encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return {}


def keep_places(places):
    """Keeps that, in one step: whoever is killed here leaves the old places or the new ones."""
    path = places_file()
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write(places)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)


class Unavailable(Exception):
    """The destination does not take the batch now; it may later."""


class Delivery:
    """A destination of syslog-ng; `connect` and `deliver` are left to each."""

    def init(self, options):
        self.kind, self.batch, self.place, self.down = options["kind"], [], None, False
        # Of the clock of `time.monotonic`.
        self.not_before = 0.0
        try:
            self.pause = float(setting("SHIP_RETRY_SECONDS"))
            self.connect()
        except (ValueError, OSError) as error:
            say(f"cannot be configured: {error}")
            return False
        return True

    def open(self):
        """Whether a destination that did not take something may be tried again."""
        return time.monotonic() >= self.not_before

    def send(self, message):
        self.batch.append(message["MESSAGE"].decode("utf-8", "replace"))
        self.place = message.get(PLACE) or self.place
        return self.QUEUED

    def flush(self):
        batch, self.batch = self.batch, []
        place, self.place = self.place, None
        if not batch:
            return self.SUCCESS
        try:
            self.deliver(batch)
            if place:
                keep_places(place.decode())
        except Exception as error:  # Whatever it is: a record that was not delivered is not let go.
            if not self.down:
                say(f"{self.kind} records wait, the destination does not take them: {error}")
            self.down, self.not_before = True, time.monotonic() + self.pause
            return self.NOT_CONNECTED
        if self.down:
            say(f"{self.kind} records are taken again")
        self.down = False
        return self.SUCCESS

    def refuse(self, text, reason):
        """Keeps a record that the destination will never take beside the buffer, and goes on."""
        say(f"a record of kind {self.kind} was refused for good and is kept in refused.jsonl: {reason}")
        path = os.path.join(setting("SHIP_STATE_DIR"), "refused.jsonl")
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": self.kind, "reason": reason, "record": text}) + "\n")
