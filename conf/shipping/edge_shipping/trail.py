"""The audit trail as a source: every record once, in order, across rotations.

`audit.jsonl` is renamed to `audit.jsonl.000001` (and on) when it is full, perhaps while nobody reads. A source that knows files by name
would read a renamed one again, or lose its end. Here a file is known by its first line, which no two share (each has a
hash of its own); the place in a trail is that and an offset. A file is left for the next one only at its end and
when it is no longer the one that is written.

A record carries its place with it, and the destination keeps it (audit-places.json) when the record is delivered, not before.
syslog-ng's own trackers of acknowledgement do not serve: one counts records as delivered that its end throws away, the
others deadlock with fetching. While the destination is down reading stops by itself, and what is not read stays in the files. If rotation has removed the file
that was being read, the trail goes on with the oldest one, and the log says so.
"""

import glob
import hashlib
import json
import os

from edge_shipping.delivery import PLACE, delivered_places, say, setting
from syslogng import LogFetcher, LogMessage

# No record of ours is as long; a longer line is handed on in pieces.
LONGEST = 65_536


class Chain:
    """The files of one process, read one after the other."""

    def __init__(self, path, place):
        self.path, self.place, self.file = path, place, None

    def files(self):
        """The files that are there, oldest first: full ones by number, then the one that is written."""
        full = sorted(name for name in glob.glob(glob.escape(self.path) + ".*") if name.rsplit(".", 1)[1].isdigit())
        return [*full, self.path]

    def next_line(self):
        """The next whole line, or `None` if there is none yet."""
        if self.file is None and not self.resume():
            return None
        while True:
            # Before the read: once it has another name, nothing is added to it.
            full = not self.is_written()
            line = self.file.readline(LONGEST)
            if line.endswith(b"\n") or len(line) == LONGEST or (line and full):
                self.place = [self.place[0], self.file.tell()]
                return line.rstrip(b"\n")
            self.file.seek(self.place[1])
            if not full or not self.follow():
                return None

    def is_written(self):
        try:
            return os.path.samestat(os.fstat(self.file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            # Between the renaming and the making of a new one.
            return False

    def resume(self):
        """Opens the file that the place is in."""
        if self.place is None:
            return any(self.open(path, 0) for path in self.files())
        for path in self.files():
            if first_line(path) == self.place[0]:
                return self.open(path, self.place[1])
        say(f"the file of {self.path} that was being read is gone, records may be missing; on with the oldest")
        self.place = None
        return any(self.open(path, 0) for path in self.files())

    def follow(self):
        """Goes on to the file after the present one; tells whether there is one yet."""
        names = self.files()
        present = next((n for n, path in enumerate(names) if first_line(path) == self.place[0]), None)
        if present is None:
            self.file.close()
            self.file = None
            return self.resume()
        return any(self.open(path, 0) for path in names[present + 1 :])

    def open(self, path, offset):
        identity = first_line(path)
        if identity is None:
            return False
        if self.file is not None:
            self.file.close()
        self.file = open(path, "rb")
        self.file.seek(offset)
        self.place = [identity, offset]
        return True


def first_line(path):
    """What a file is known by; `None` until it has a line, or if it is gone."""
    try:
        with open(path, "rb") as file:
            line = file.readline(LONGEST)
    except FileNotFoundError:
        return None
    return hashlib.sha256(line).hexdigest()[:32] if line.endswith(b"\n") or len(line) == LONGEST else None


class Trail(LogFetcher):
    """The source of syslog-ng: all trails of a directory, in turn."""

    def init(self, options):
        self.pattern = os.path.join(glob.escape(setting("SHIP_AUDIT_DIR")), setting("SHIP_AUDIT_FILES"))
        self.places = delivered_places()
        self.chains = {}
        return True

    def fetch(self):
        for path in sorted(glob.glob(self.pattern)):
            name = os.path.basename(path)
            if name not in self.chains:
                self.chains[name] = Chain(path, self.places.get(name))
        # One that was just renamed is not found by its pattern, but is known.
        for name, chain in list(self.chains.items()):
            line = chain.next_line()
            if line:
                self.places[name] = list(chain.place)
                # Behind the others at the next turn.
                self.chains[name] = self.chains.pop(name)
                message = LogMessage(line.decode("utf-8", "replace"))
                message[PLACE] = json.dumps(self.places)
                return self.FETCH_SUCCESS, message
        return self.FETCH_NO_DATA, None
