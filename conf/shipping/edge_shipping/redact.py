"""The redaction: only the fields that are listed here leave this site, without personal data.

Logs and audit records hold no personal data; this step protects against mistakes. Of a record, only the fields listed
below are kept, each in its form. In free text, e-mail addresses, phone numbers, UUIDs (customer ids are UUIDs) and secrets
are masked. A record with nothing to remove is sent byte for byte, so that `profile-edge audit verify` works on what
arrived. A changed record has a field `shipping`: the removed fields, and the number of masked texts.

A line that is not a JSON object is sent as masked text. Lines of Docker's json-file driver are unwrapped first.
"""

import json
import os
import re

MASK = "[masked]"


def form(pattern):
    """Accepts text of this form; other text is masked whole."""
    whole = re.compile(pattern)
    return lambda value: value if isinstance(value, str) and whole.fullmatch(value) else None


def number(value):
    """Accepts numbers, booleans, and null."""
    return value if value is None or isinstance(value, (bool, int, float)) else None


def words(value):
    """Accepts a list of field names."""
    name = re.compile(r"\*|[A-Za-z0-9._-]{1,256}")
    return value if isinstance(value, list) and all(isinstance(v, str) and name.fullmatch(v) for v in value) else None


def digests(value):
    """Accepts a list of digests."""
    digest = re.compile(r"[0-9a-f]{16,128}")
    return value if isinstance(value, list) and all(isinstance(v, str) and digest.fullmatch(v) for v in value) else None


HEX = form(r"[0-9a-f]{16,128}")
# A list of digests in a log line.
KEYS = form(r"\[([0-9a-f]{32}(, [0-9a-f]{32})*)?\]")
# An entry key: the digest alone, or after its scheme and tenant.
KEY = form(r"([a-z0-9]{1,16}:[a-z0-9]{1,16}:[A-Za-z0-9._-]{1,64}:)?[0-9a-f]{16,128}")
WORD = form(r"[A-Za-z][A-Za-z0-9_.:-]{0,63}")
# The scope of a token: names of tenants and fields (src/http/auth/scope.rs).
SCOPE = form(r"(tenant|fields):[A-Za-z0-9._,*-]{1,1024}( (tenant|fields):[A-Za-z0-9._,*-]{1,1024})?")
# The handle of an agent's token: base64url of 16 bytes.
HANDLE = form(r"[A-Za-z0-9_-]{22}")
# Tenants and callers (`is_name` in src/domain/tenant.rs).
NAME = form(r"[A-Za-z0-9._-]{1,64}")
# Ids of requests and events; they may be UUIDs, but not phone numbers: long ones have a letter.
ID = form(r"(?!\+)(?=.{0,128}[A-Za-z]|.{1,6}\Z)[A-Za-z0-9._:+-]{1,128}")
TIME = form(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")
FILE = form(r"[a-z0-9._-]{1,64}")
TEXT = object()

# The fields of audit records: of the chain, lookups, events, webhooks, operator commands, and the audit itself.
AUDIT = {
    "v": number, "chain": HEX, "seq": number, "time": TIME, "prev": HEX, "hash": HEX, "type": WORD,
    "request": ID, "caller": NAME, "scope": SCOPE, "agent": HANDLE, "tenant": NAME, "key": KEY, "decision": WORD, "result": WORD,
    "reason": WORD, "fields": words,
    "event": ID, "digest": HEX, "keys": digests, "kind": WORD, "shape": WORD, "verdict": WORD,
    "replayed": number, "redriven": number, "replay": ID, "count": number, "action": WORD, "outcome": WORD,
    "algorithm": WORD, "after": FILE, "mistrusted": TEXT, "bytes": number, "sha256": HEX, "records": number,
    "lookups": number, "events": number, "others": number, "version": FILE, "pid": number, "duration_ms": number,
}  # fmt: skip

# The fields of log lines: those of tracing, then those of the log statements.
LOG = {
    "timestamp": TIME, "level": WORD, "target": WORD, "message": TEXT, "name": WORD, "request_id": ID,
    "trace_id": HEX, "span_id": HEX,
    "admin": TEXT, "again": WORD, "broker": TEXT, "bytes": number, "caller": NAME, "cause": TEXT, "chain": HEX, "code": WORD,
    "connection": number, "connections": number, "deadline": TEXT, "dependency": TEXT, "dry_run": number, "error": TEXT,
    "event": ID, "event_id": ID, "events": number, "field": TEXT, "files": number, "finished": number, "force": number,
    "hash": HEX, "kept": number, "key": KEY, "keys": KEYS, "kind": WORD, "length": number, "listen": TEXT,
    "location": TEXT, "matched": number, "order": TEXT, "path": TEXT, "patience": TEXT, "public": TEXT, "purged": number,
    "purpose": WORD, "put_behind": FILE, "queue": TEXT, "rate": number, "ready_after": TEXT, "reason": TEXT,
    "records": number, "replay": ID, "replayed": number, "resumed": number, "resume_since": TIME, "sandbox": TEXT, "seq": number,
    "settings": TEXT, "sha256": HEX, "since": TEXT, "startup_timeout": TEXT, "status": number, "taken_at": number, "tasks": number,
    "total_ms": number, "auth_ms": number, "store_ms": number, "wait_ms": number, "token_ms": number, "connect_ms": number, "fetch_ms": number, "fill_ms": number,
    "suppressed": number, "tenant": NAME, "unfit": WORD, "until": TEXT, "verdict": TEXT, "wanted": number, "why": TEXT,
    "contacts": number, "delay": TEXT, "failed": number, "file": TEXT, "invalid": TEXT, "lane": number, "left": number,
    "limit": number, "lines": number, "mode": TEXT, "oldest_seconds": number, "origin": WORD, "rejected": number,
    "renamed_to": TEXT, "server": TEXT, "shard": number, "shortest_read_ms": number, "unreadable": number, "waiting": number,
}  # fmt: skip
# Objects whose fields follow the same rules.
NESTED = {"span"}

# The patterns that are masked in free text, in this order. Every repetition is bounded, or can start at only one place of
# a run, so that the time for a line is proportional to its length.
SECRET = re.compile(
    r"(?i)\b(?:bearer|basic|splunk)\s+[A-Za-z0-9._~+/=-]{6,}"
    r"|\beyJ[A-Za-z0-9_-]{5,}(?:\.[A-Za-z0-9_-]*){0,4}"
    r"|\b(?:password|passwd|secret|token|api[_-]?key|x-api-key|client_secret|authorization)\"?\s*[=:]\s*\"?[^\s\"',;&]+"
    r"|(?<=//)[^\s/@]{1,128}:[^\s/@]{1,128}(?=@)"
)
EMAIL = re.compile(
    r"(?i)[^][\s@\"'<>(),;:=]{1,64}(?:@|%40|&#64;|\\u0040)[^][\s@\"'<>(),;:/&]{1,190}\.[^][\s@\"'<>(),;:/&.]{2,63}"
)
UUID = re.compile(r"(?i)(?<![0-9a-f])[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}(?![0-9a-f])")
PHONE = re.compile(r"(?<![\w.])(?:\+|%2B|00)?\(?\d[\d ()./-]{6,20}\d(?![\w])", re.IGNORECASE)
# Runs that contain both letters and digits: tokens, base64, and hexadecimal text.
RUN = re.compile(r"(?<![A-Za-z0-9_+/=-])(?=[A-Za-z_+/=-]*\d)(?=[\d_+/=-]*[A-Za-z])[A-Za-z0-9_+/=-]{24,}")
NO_PHONE = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}(?:/\d{1,2})?|\d{4}-\d\d-\d\d(?:[ ]\d\d)?|\d+\.\d+")


def mask(text):
    """Returns the text with personal data and secrets masked, and the number of masked places."""
    count = 0

    def masked(_match):
        nonlocal count
        count += 1
        return MASK

    def unless_harmless(match):
        return match[0] if NO_PHONE.fullmatch(match[0]) else masked(match)

    for pattern in (SECRET, EMAIL, UUID):
        text = pattern.sub(masked, text)
    text = PHONE.sub(unless_harmless, text)
    return RUN.sub(masked, text), count


class Record:
    """Applies the rules to one record, and counts the changes."""

    def __init__(self, rules):
        self.rules, self.removed, self.masked = rules, [], 0

    def kept(self, record):
        """Returns the object with only the listed fields."""
        result = {}
        for name, value in record.items():
            rule = self.rules.get(name)
            if name in NESTED and isinstance(value, dict):
                result[name] = self.kept(value)
            elif rule is None:
                # A field name may be personal data too.
                self.removed.append(name if re.fullmatch(r"[a-z][a-z_]{0,31}", name) else "?")
            else:
                result[name] = self.value(rule, value)
        return result

    def value(self, rule, value):
        """Returns the value if it has its form; masked otherwise."""
        if value is None or isinstance(value, bool):
            return value
        if rule is TEXT:
            if isinstance(value, (int, float)):
                return value
            text, count = mask(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
            self.masked += count
            return text if count or isinstance(value, str) else value
        found = rule(value)
        if found is None:
            self.masked += 1
            return MASK
        return found


def parsed(text):
    """Returns the object of a line, or `None` if it is not an object, and whether a name occurs twice."""
    twice = False

    def unique(pairs):
        nonlocal twice
        result = dict(pairs)
        twice = twice or len(result) != len(pairs)
        return result

    try:
        record = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        return None, False
    return (record, twice) if isinstance(record, dict) else (None, False)


def redacted(text, origin, tag=""):
    """Returns the kind of a line (audit, log, other) and the text that may be sent."""
    record, twice = parsed(text)
    if record is not None and isinstance(record.get("log"), str) and "stream" in record:
        attributes = record.get("attrs")
        if not isinstance(attributes, dict) or attributes.get("tag") != tag:
            return "other", ""
        text, origin = record["log"].rstrip("\n"), "log"
        stdout = record["stream"] == "stdout"
        record, twice = parsed(text)
        if stdout and record is not None and {"seq", "prev", "hash"} <= record.keys():
            origin = "audit"
    if not text.strip():
        return "other", ""
    if record is None:
        record, twice = {"message": text}, True
        rules = LOG
    else:
        rules = AUDIT if origin == "audit" else LOG
    walk = Record(rules)
    result = walk.kept(record)
    if not walk.removed and not walk.masked and not twice:
        return origin, text
    if walk.removed or walk.masked:
        result["shipping"] = {"removed": sorted(walk.removed), "masked": walk.masked}
    return origin, json.dumps(result, ensure_ascii=False, separators=(",", ":"))


class Redact:
    """The parser of syslog-ng."""

    def init(self, options):
        self.origin, self.tag = options["from"], os.environ.get("SHIP_LOG_TAG", "")
        return True

    def parse(self, message):
        try:
            kind, text = redacted(message["MESSAGE"].decode("utf-8", "replace"), self.origin, self.tag)
        except Exception as error:  # A record whose redaction fails is not sent, but leaves a trace.
            failed = {"message": MASK, "shipping": {"failed": type(error).__name__}}
            kind, text = self.origin, json.dumps(failed, separators=(",", ":"))
        message[".edge.kind"], message["MESSAGE"] = kind, text
        return True
