"""Checks what the redaction keeps and what it removes, without a collector."""

import base64
import datetime
import json
import random
import time
import unittest.mock
import urllib.parse

from edge_shipping.cloudwatch import refused, requests
from edge_shipping.delivery import Delivery
from edge_shipping.redact import mask, redacted

EMAIL, PHONE = "zephyrina.canary@example.com", "+1 (555) 019-9871"
UUID, TOKEN = "7c9e6679-7425-40de-944b-e07fc1f90ae7", "s3cr3t-9f86d081884c7d659a2feaa0c55ad015"
LEAKS = [
    EMAIL, EMAIL.upper(), urllib.parse.quote(EMAIL, safe=""), "zephyrina@münchen.example", "a+tag@b.co",
    PHONE, "+15550199871", "0049 30 1234567", "%2B15550199871", "555-019-9871",
    UUID, UUID.upper(), UUID.replace("-", ""), f"urn:uuid:{UUID}",
    TOKEN, f"Bearer {TOKEN}", "Basic ZGVtbzpkZW1vLWtleQ==", f"password={'x' * 5}", "client_secret: hunter2",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "amqp://edge:edge-demo@rabbitmq",
    base64.b64encode(b"zephyrina.canary@example.com").decode(), EMAIL.encode().hex(),
]  # fmt: skip
HARMLESS = [
    "ready", "request to genesys failed", "moved an invalid delivery to the dead letters", "10.244.132.117:5672",
    "192.168.100.200", "2026-11-24T10:00:00.123Z", "1.234567891s", "400 events in 1.5 s", "src/consumer/worker.rs:132:17",
    "operation timed out after 20s", "http://genesys.example:443", "profile_edge::http::serve", "2026-11-24",
]  # fmt: skip
AUDIT = {
    "v": 1, "seq": 12, "time": "2024-02-29T10:00:00.123Z", "type": "lookup", "kind": "updated", "caller": "architect", "tenant": "10001",
    "key": "0123456789abcdef0123456789abcdef", "decision": "allowed", "result": "hit", "fields": ["id", "firstName"],
    "request": UUID, "prev": "ab" * 32, "hash": "cd" * 32,
}  # fmt: skip
DENSE = {"ensure_ascii": False, "separators": (",", ":")}


def leaks_are_masked_at_any_position():
    choice = random.Random(4711)
    for leak in LEAKS:
        for before, after in [("", ""), ("lookup of ", " failed"), ('{"id":"', '"}'), ("at //", "@x"), ("(", ")")]:
            text, count = mask(before + leak + after)
            secret = max(leak.replace(":", " ").replace("=", " ").split(), key=len)
            assert count and secret not in text, f"{leak!r} became {text!r}"
        words = [choice.choice(HARMLESS) for _ in range(choice.randrange(8))]
        words.insert(choice.randrange(len(words) + 1), leak)
        text, count = mask(" ".join(words))
        assert count, f"{leak!r} among others: {text!r}"


def harmless_text_is_unchanged():
    for text in HARMLESS:
        assert mask(text) == (text, 0), mask(text)


def a_clean_record_is_sent_byte_for_byte():
    event = {"type": "event", "event": "4711", "keys": ["0123456789abcdef0123456789abcdef"], "verdict": "recovered",
             "shape": "flat", "replayed": True, "replay": UUID, "digest": "ab" * 16}  # fmt: skip
    command = {"type": "operator", "request": UUID, "action": "dead_letters.redrive", "outcome": "ok", "count": 7}
    note = {"type": "chain", "action": "continued", "algorithm": "hmac-sha-256", "after": "audit.jsonl.000012"}
    for record in (event, command, note):
        line = json.dumps({"seq": 1, **record, "prev": "ab" * 32, "hash": "cd" * 32}, **DENSE)
        assert redacted(line, "audit") == ("audit", line), redacted(line, "audit")
    for line in [json.dumps(AUDIT, **DENSE), json.dumps(AUDIT), json.dumps({**AUDIT, "count": 37000}, **DENSE)]:
        assert redacted(line, "audit") == ("audit", line)
    line = json.dumps({"timestamp": AUDIT["time"], "level": "INFO", "message": "ready", "target": "profile_edge::app",
                       "span": {"request_id": UUID, "name": "request"}}, **DENSE)  # fmt: skip
    assert redacted(line, "log") == ("log", line)


def names_of_callers_tenants_and_fields_pass_unchanged():
    for name in ("architect-ivr-production-eu1", UUID, "4711", "-", "a" * 64, "k8s.eu-central-1_prod-0123456789abcdef"):
        line = json.dumps({**AUDIT, "caller": name, "tenant": name, "fields": ["id", f"custom-{name}.x_1"]}, **DENSE)
        assert redacted(line, "audit") == ("audit", line), redacted(line, "audit")
        line = json.dumps({"message": "lookup failed", "caller": name, "tenant": name, "suppressed": 4}, **DENSE)
        assert redacted(line, "log") == ("log", line), redacted(line, "log")
    for name in (EMAIL, PHONE, "Ada Lovelace", "a" * 65, ""):
        _, text = redacted(json.dumps({**AUDIT, "caller": name}), "audit")
        assert json.loads(text)["caller"] == "[masked]", text


def undocumented_fields_are_removed_and_reported():
    for more in [{"firstName": "Zephyrina"}, {"person": {"name": "Zephyrina"}}, {"Zephyrina": 1}]:
        for origin, record in [("audit", AUDIT), ("log", {"message": "x"}), ("log", {"span": more})]:
            kind, text = redacted(json.dumps({**record, **more}), origin)
            assert kind == origin and "Zephyrina" not in text, text
            assert json.loads(text)["shipping"]["removed"], text


def a_field_of_the_wrong_form_is_masked():
    for name in AUDIT.keys():
        _, text = redacted(json.dumps({**AUDIT, name: f"Zephyrina {EMAIL}"}), "audit")
        assert "ephyrina" not in text and json.loads(text)["shipping"]["masked"] == 1, text
    key = {**AUDIT, "key": "cust:profile:10001:0123456789abcdef0123456789abcdef"}
    assert redacted(json.dumps(key), "audit") == ("audit", json.dumps(key))
    for name in ("request_id", "key", "hash"):
        assert "15550199871" not in redacted(json.dumps({**AUDIT, name: "+15550199871"}), "audit")[1]
    for number in ("15550199871", "555-019-9871", "555.019.9871"):
        assert number not in redacted(json.dumps({**AUDIT, "request": number}), "audit")[1], number


def unusual_json_does_not_bypass_the_redaction():
    twice = json.dumps({**AUDIT}, **DENSE).replace('"caller":', f'"caller":"{EMAIL}","caller":')
    assert EMAIL not in redacted(twice, "audit")[1]
    escaped = json.dumps({"message": EMAIL}).replace("@", "\\u0040")
    assert "zephyrina" not in redacted(escaped, "log")[1]
    for line in [f"thread panicked at {EMAIL}", f'["{EMAIL}"]', f'{{"message":"{EMAIL}"', f'"{EMAIL}"', "[" * 100_000 + EMAIL]:
        kind, text = redacted(line, "log")
        assert kind == "log" and EMAIL not in text and json.loads(text)["shipping"]["masked"], text[-200:]


def docker_log_lines_are_unwrapped_and_others_are_ignored():
    def wrapped(line, stream, tag):
        return json.dumps({"log": line + "\n", "stream": stream, "attrs": tag and {"tag": tag}, "time": "x"})

    audit, log = json.dumps(AUDIT, **DENSE), json.dumps({"message": "ready"}, **DENSE)
    assert redacted(wrapped(audit, "stdout", "profile-edge"), "log", "profile-edge") == ("audit", audit)
    assert redacted(wrapped(log, "stderr", "profile-edge"), "log", "profile-edge") == ("log", log)
    for tag in ("another", None):
        assert redacted(wrapped(log, "stderr", tag), "log", "profile-edge") == ("other", "")


def the_redaction_time_is_not_quadratic():
    for piece in ["-", "a:", "@", "1", "a@", "//a:", "eyJ.", "bearer ", "%40", "f", "a1-", "1 ", "token="]:
        def seconds(length):
            started = time.process_time()
            mask(piece * (length // len(piece)))
            return time.process_time() - started

        # Sixteen times the length may take 64 times as long, but not 256 times, as a quadratic pattern would.
        assert seconds(64_000) < 64 * max(seconds(4_000), 0.002), piece


def cloudwatch_requests_stay_within_the_limits():
    now = 1_800_000_000_000

    def record(seconds, size=0):
        when = datetime.datetime.fromtimestamp(now / 1000 + seconds, datetime.UTC)
        return json.dumps({"time": when.isoformat().replace("+00:00", "Z"), "x": "x" * size})

    day = 24 * 3600
    # Too old, of two days, out of order, too new, without a time, and large.
    batch = [record(-40 * day), record(-2 * day), record(-2 * day - 5), record(0), record(-60), record(7 * day), "none"]
    batch += [record(0, 250_000) for _ in range(9)]
    made = list(requests(batch, now))
    assert [event["message"] for request in made for event in request] == batch
    stamps = [event["timestamp"] for request in made for event in request]
    assert stamps == sorted(stamps) and now - 14 * day * 1000 < stamps[0] and stamps[-1] == now + 3_600_000
    assert stamps[1] == now - 2 * day * 1000 and len(made) == 5, (stamps, len(made))
    for request in made:
        assert sum(len(event["message"]) + 26 for event in request) <= 1_048_576
        assert request[-1]["timestamp"] - request[0]["timestamp"] < day * 1000
    rejected = {"tooOldLogEventEndIndex": 1, "tooNewLogEventStartIndex": 3}
    assert refused(list("abcd"), rejected) == ["a", "d"]


def an_unavailable_destination_is_retried_after_the_pause():
    class Down(Delivery):
        SUCCESS, NOT_CONNECTED, QUEUED = "success", "not connected", "queued"

        def connect(self):
            self.up = False

        def deliver(self, batch):
            if not self.up:
                raise OSError("refused")

    clock = unittest.mock.Mock(return_value=100.0)
    with unittest.mock.patch.dict("os.environ", SHIP_RETRY_SECONDS="10"), unittest.mock.patch("time.monotonic", clock):
        destination = Down()
        assert destination.init({"kind": "log"}) and destination.open()
        destination.send({"MESSAGE": b"line"})
        assert destination.flush() == "not connected" and not destination.open()
        clock.return_value = 109.9
        assert not destination.open()
        clock.return_value = 110.0
        assert destination.open()
        destination.up = True
        destination.send({"MESSAGE": b"line"})
        assert destination.flush() == "success" and destination.open()


CHECKS = [
    leaks_are_masked_at_any_position,
    harmless_text_is_unchanged,
    a_clean_record_is_sent_byte_for_byte,
    names_of_callers_tenants_and_fields_pass_unchanged,
    undocumented_fields_are_removed_and_reported,
    a_field_of_the_wrong_form_is_masked,
    unusual_json_does_not_bypass_the_redaction,
    docker_log_lines_are_unwrapped_and_others_are_ignored,
    the_redaction_time_is_not_quadratic,
    cloudwatch_requests_stay_within_the_limits,
    an_unavailable_destination_is_retried_after_the_pause,
]
