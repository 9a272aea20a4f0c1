"""The audit trail as a source: every record once, in order, across rotations.

A full `audit.jsonl` is renamed to `audit.jsonl.000001` (and so on), perhaps while the collector is stopped. A source that
identifies files by name would read a renamed file again, or lose its end. Here the first line identifies a file, since its
hash is unique. A position is that identity and an offset. The source continues with the next file only at the end of a
file that is no longer written.

A record carries its position, and the destination stores it (audit-places.json) after the delivery of the record.
The acknowledgement trackers of syslog-ng are not suitable: one counts records as delivered that a shutdown discards, the
others deadlock with fetching. While the destination is down, reading stops, and unread records stay in the files. If a
rotation has removed the current file, reading continues with the oldest one, and the log reports it.
"""

import glob
import hashlib
import json
import os

from edge_shipping.delivery import PLACE, delivered_places, say, setting
from syslogng import LogFetcher, LogMessage

# Audit records are shorter; a longer line is passed on in pieces.
LONGEST = 65_536


class Chain:
    """The files of one process, read in order."""

    def __init__(self, path, place):
        self.path, self.place, self.file = path, place, None

    def files(self):
        """Returns the existing files, oldest first: rotated ones by number, then the one that is written."""
        full = sorted(name for name in glob.glob(glob.escape(self.path) + ".*") if name.rsplit(".", 1)[1].isdigit())
        return [*full, self.path]

    def next_line(self):
        """Returns the next complete line, or `None` if there is none yet."""
        if self.file is None and not self.resume():
            return None
        while True:
            # Checked before the read: after a file is renamed, nothing is appended to it.
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
            # Between the renaming and the creation of the new file.
            return False

    def resume(self):
        """Opens the file of the current position."""
        if self.place is None:
            return any(self.open(path, 0) for path in self.files())
        for path in self.files():
            if first_line(path) == self.place[0]:
                return self.open(path, self.place[1])
        say(f"the file of {self.path} that was being read is gone, records may be missing; continuing with the oldest")
        self.place = None
        return any(self.open(path, 0) for path in self.files())

    def follow(self):
        """Opens the next file; returns whether there is one."""
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
    """Returns the identity of a file, or `None` if it has no complete line or does not exist."""
    try:
        with open(path, "rb") as file:
            line = file.readline(LONGEST)
    except FileNotFoundError:
        return None
    return hashlib.sha256(line).hexdigest()[:32] if line.endswith(b"\n") or len(line) == LONGEST else None


class Trail(LogFetcher):
    """The source of syslog-ng: reads all trails of a directory in turn."""

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
        # A file that was just renamed does not match the pattern, but its trail is known.
        for name, chain in list(self.chains.items()):
            line = chain.next_line()
            if line:
                self.places[name] = list(chain.place)
                # The other trails come first next time.
                self.chains[name] = self.chains.pop(name)
                message = LogMessage(line.decode("utf-8", "replace"))
                message[PLACE] = json.dumps(self.places)
                return self.FETCH_SUCCESS, message
        return self.FETCH_NO_DATA, None
