"""The common part of both destinations: a batch is delivered whole, or offered again.

syslog-ng passes records one by one (`send`), requests the delivery of the batch (`flush`), and removes it from its buffer
on SUCCESS. On NOT_CONNECTED it keeps the batch and retries without a limit. It drops a batch after a few attempts with any
other failure, so no other failure is reported. It calls `open` first, once a second: `time-reopen` has no effect on Python
destinations.
"""

import datetime
import json
import os
import sys
import time


# The name-value pair that carries a record's position in its audit trail through syslog-ng.
PLACE = "SHIP_PLACE"


def setting(name, default=None):
    """Returns a variable of shipping.env; an empty one counts as missing."""
    value = os.environ.get(name) or default
    if value is None:
        raise ValueError(f"{name} is not set")
    return value


def secret(name):
    """Returns the value of a variable, or the contents of the file that it names as file:PATH."""
    value = setting(name)
    if value.startswith("file:"):
        with open(value[len("file:") :], encoding="utf-8") as file:
            value = file.read().strip()
    return value


def say(text):
    """Writes a line to the collector's own log."""
    print(f"profile-edge shipping: {text}", file=sys.stderr, flush=True)


def moment(text):
    """Returns the time of a record, in seconds since 1970, or `None` if it has none."""
    try:
        record = json.loads(text)
        written = record.get("time") or record.get("timestamp")
        return datetime.datetime.fromisoformat(written.replace("Z", "+00:00")).timestamp()
    except (ValueError, AttributeError, TypeError):
        return None


def places_file():
    return os.path.join(setting("SHIP_STATE_DIR"), "audit-places.json")


def delivered_places():
    """Returns the position up to which each audit trail has been delivered."""
    try:
        with open(places_file(), encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return {}


def keep_places(places):
    """Stores the positions atomically: a kill leaves either the old or the new ones."""
    path = places_file()
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write(places)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)


class Unavailable(Exception):
    """The destination does not accept the batch now, but may later."""


class Delivery:
    """A destination of syslog-ng. Subclasses implement `connect` and `deliver`."""

    def init(self, options):
        self.kind, self.batch, self.place, self.down = options["kind"], [], None, False
        # A time of `time.monotonic`.
        self.not_before = 0.0
        try:
            self.pause = float(setting("SHIP_RETRY_SECONDS"))
            self.connect()
        except (ValueError, OSError) as error:
            say(f"cannot be configured: {error}")
            return False
        return True

    def open(self):
        """Returns whether a failed destination may be retried."""
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
        except Exception as error:  # Any failure: an undelivered record must stay in the buffer.
            if not self.down:
                say(f"{self.kind} records wait, the destination does not accept them: {error}")
            self.down, self.not_before = True, time.monotonic() + self.pause
            return self.NOT_CONNECTED
        if self.down:
            say(f"{self.kind} records are accepted again")
        self.down = False
        return self.SUCCESS

    def refuse(self, text, reason):
        """Writes a record that the destination rejects permanently to refused.jsonl, and continues."""
        say(f"a record of kind {self.kind} was rejected permanently and is kept in refused.jsonl: {reason}")
        path = os.path.join(setting("SHIP_STATE_DIR"), "refused.jsonl")
        # Only its owner can read it, as the audit files.
        with open(path, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(json.dumps({"kind": self.kind, "reason": reason, "record": text}) + "\n")
