"""Runs the collector of conf/shipping, unchanged, against receivers on loopback.

Only documented variables (shipping.env) are changed. Each scenario runs for Splunk and for CloudWatch, with its own
collector, state and files.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request

import redaction
import edge
from edge import Edge, customer
from edge_shipping.redact import redacted
from cloudwatch import CloudWatch
from splunk import TOKEN, Splunk

SHIPPING = pathlib.Path(__file__).parents[2] / "conf" / "shipping"
# Scenarios run in parallel, on a machine that may be busy.
eventually = functools.partial(edge.eventually, patience=120.0)
PLANTED = ["zephyrina.canary@example.com", "+15550199871", "7c9e6679-7425-40de-944b-e07fc1f90ae7", "tok-0123456789abcdefghij"]


def documented():
    """Returns the variables of shipping.env and their values there."""
    lines = (SHIPPING / "shipping.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


class Collector:
    """Runs syslog-ng with the shipped configuration and its own files. A context manager."""

    def __init__(self, receiver, root, **settings):
        self.root = root
        own = {
            "SHIP_DIR": str(SHIPPING), "SHIP_STATE_DIR": f"{root}/state", "SHIP_AUDIT_DIR": f"{root}/audit",
            "SHIP_LOG_DIR": f"{root}/logs", "SHIP_RETRY_SECONDS": "1",
        }  # fmt: skip
        variables = {**documented(), **own, **receiver.settings, **settings}
        assert variables.keys() == documented().keys(), "a variable is not documented"
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        credentials = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        self.environment = {**kept, **variables, **credentials, "PYTHONPATH": str(SHIPPING), "PYTHONDONTWRITEBYTECODE": "1"}
        self.configuration, self.process = SHIPPING / receiver.configuration, None
        self.output = open(root / "collector.log", "a+", encoding="utf-8")

    def __enter__(self):
        state = self.root / "state"
        command = [
            "syslog-ng", "--foreground", "--no-caps", "--cfgfile", self.configuration, "--persist-file", state / "position",
            "--control", state / "control", "--pidfile", state / "pid",
        ]  # fmt: skip
        self.process = subprocess.Popen(command, env=self.environment, stdout=self.output, stderr=self.output)
        eventually("a running collector", lambda: (state / "control").exists() or self.process.poll() is not None)
        assert self.process.poll() is None, (self.root / "collector.log").read_text()
        return self

    def __exit__(self, failed, *_):
        self.end()
        self.output.seek(0)
        output = self.output.read()
        self.output.close()
        if failed:
            print(output[-6000:], file=sys.stderr)
        else:
            assert "dropping" not in output, output

    def end(self, kill=False):
        if self.process.poll() is None:
            (self.process.kill if kill else self.process.terminate)()
        self.process.wait(30)
        (self.root / "state" / "control").unlink(missing_ok=True)

    def restart(self, kill=False):
        self.end(kill)
        self.__enter__()

    def says(self, text):
        def said():
            return text in (self.root / "collector.log").read_text()

        eventually(f"the collector logs: {text}", said)


class Trail:
    """An audit trail that is rotated as the service does it, and the lines that were written to it."""

    def __init__(self, root, name="audit.jsonl"):
        self.path, self.lines = root / "audit" / name, []
        self.numbers, self.full = itertools.count(1), itertools.count(1)

    def rotate(self):
        self.path.rename(f"{self.path}.{next(self.full):06}")

    def write(self, count):
        lines = []
        for number in itertools.islice(self.numbers, count):
            digest = hashlib.sha256(f"{self.path.name} {number}".encode()).hexdigest()
            lines.append(json.dumps({**redaction.AUDIT, "seq": number, "hash": digest}, **redaction.DENSE))
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
        self.lines += lines


def log_line(text, **more):
    line = {"timestamp": "2026-11-24T10:00:00.123456Z", "level": "WARN", "message": text, **more, "target": "profile_edge::app"}
    return json.dumps(line, **redaction.DENSE)


def arrived(receiver, expected, kind="audit"):
    """Waits for the expected number of records, and compares them: complete, in order, byte for byte, without duplicates."""
    eventually(f"{len(expected)} of kind {kind}", lambda: len(receiver.received(kind)) >= len(expected))
    found = receiver.received(kind)
    assert found == expected, difference(found, expected)


def difference(found, expected):
    at = next((i for i, (a, b) in enumerate(zip(found, expected)) if a != b), min(len(found), len(expected)))
    return f"got {len(found)} of {len(expected)}, difference at {at}: {found[at:at + 2]}, expected {expected[at:at + 2]}"


def records_arrive_complete_and_in_order(receiver, root):
    receiver.up()
    trail = Trail(root)
    trail.write(1200)
    with Collector(receiver, root) as collector:
        arrived(receiver, trail.lines)
        trail.rotate()
        trail.write(700)
        arrived(receiver, trail.lines)
        # An incomplete line is not sent.
        line = json.dumps({**redaction.AUDIT, "seq": 0}, **redaction.DENSE)
        with open(trail.path, "a", encoding="utf-8") as file:
            file.write(line[:40])
            file.flush()
            collector.restart()
            with open(root / "logs" / "edge.log", "a", encoding="utf-8") as log:
                log.write(log_line("ready") + "\n")
            arrived(receiver, [log_line("ready")], "log")
            file.write(line[40:] + "\n")
        arrived(receiver, [*trail.lines, line])


def every_process_has_its_own_trail_and_a_removed_file_is_logged(receiver, root):
    receiver.up()
    trails = [Trail(root), Trail(root, "audit-2.jsonl")]
    with Collector(receiver, root) as collector:
        for trail in trails:
            trail.write(50)
            trail.rotate()
            trail.write(50)
        eventually("both", lambda: len(receiver.received("audit")) >= 200)
        found = receiver.received("audit")
        for trail in trails:
            there = set(trail.lines)
            assert [line for line in found if line in there] == trail.lines
        assert len(found) == 200
        collector.end()
        trails[0].write(10)
        trails[0].rotate()
        trails[0].write(10)
        (root / "audit" / "audit.jsonl.000002").unlink()
        (root / "audit" / "audit.jsonl.000001").unlink()
        collector.restart()
        collector.says("that was being read is gone, records may be missing")
        arrived(receiver, found + trails[0].lines[-10:])


def planted_personal_data_arrives_masked(receiver, root):
    receiver.up()
    Trail(root)
    lines = [log_line(f"lookup of {planted} failed") for planted in PLANTED]
    lines += [log_line("lookup failed", customer=planted, error=f"got {planted}") for planted in PLANTED]
    lines += [f"thread 'main' panicked: {planted}" for planted in PLANTED]
    with open(root / "logs" / "edge.log", "w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)
    # As Docker writes them; lines of another container are not sent.
    wrapped = [(lines[0], "profile-edge"), (json.dumps({"message": "not ours"}), "another")]
    (root / "logs" / "4711").mkdir()
    with open(root / "logs" / "4711" / "edge-json.log", "w", encoding="utf-8") as file:
        for line, tag in wrapped:
            file.write(json.dumps({"log": line + "\n", "stream": "stderr", "attrs": {"tag": tag}, "time": "x"}) + "\n")
    with Collector(receiver, root, SHIP_LOG_FILES="*.log"):
        eventually("all lines", lambda: len(receiver.received("log")) >= len(lines) + 1)
        found = receiver.received("log")
        assert len(found) == len(lines) + 1, found
        for line in found:
            assert "[masked]" in line and json.loads(line)["shipping"]["masked"], line
            assert not any(planted in line for planted in PLANTED), line
        assert "not ours" not in "".join(found) and "customer" in "".join(found)
        # The collector's files on disk must not contain it either.
        for path in (root / "state").iterdir():
            if path.is_file():
                assert not any(planted.encode() in path.read_bytes() for planted in PLANTED), path


def nothing_is_lost_while_the_destination_is_down(receiver, root):
    receiver.up()
    trail = Trail(root)
    trail.write(300)
    with Collector(receiver, root) as collector:
        arrived(receiver, trail.lines)
        receiver.down()
        trail.write(300)
        collector.says("audit records wait, the destination does not accept them")
        collector.restart()
        trail.rotate()
        trail.write(300)
        trail.rotate()
        trail.write(200)
        collector.end()
        # Rotated twice while the collector is stopped.
        for _ in range(2):
            trail.write(100)
            trail.rotate()
        trail.write(100)
        receiver.up()
        collector.restart()
        arrived(receiver, trail.lines)


def lines_beyond_the_buffer_stay_in_the_files(receiver, root):
    lines = [log_line(f"line {number} {'x ' * 12_000}") for number in range(240)]
    with open(root / "logs" / "edge.log", "w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)
    most = 5 * 1_048_576
    assert sum(map(len, lines)) > most
    with Collector(receiver, root, SHIP_BUFFER_BYTES=str(most)) as collector:
        collector.says("log records wait, the destination does not accept them")
        buffers = list((root / "state").glob("*.rqf"))
        # Reading stops before the buffer is full.
        eventually("a filled buffer", lambda: sum(path.stat().st_size for path in buffers) > most - 4_194_304)
        receiver.up()
        arrived(receiver, lines, "log")
        assert all(path.stat().st_size <= most for path in buffers), [path.stat().st_size for path in buffers]


def a_restart_repeats_nothing(receiver, root):
    receiver.up()
    trail = Trail(root)
    with Collector(receiver, root) as collector:
        for _ in range(3):
            trail.write(150)
            arrived(receiver, trail.lines)
            collector.restart()
        trail.write(1)
        arrived(receiver, trail.lines)


def a_kill_repeats_at_most_one_batch_and_loses_nothing(receiver, root):
    receiver.up()
    trail = Trail(root)
    with Collector(receiver, root) as collector:
        for _ in range(3):
            trail.write(400)
            before = len(receiver.received("audit"))
            eventually("some of them", lambda: len(receiver.received("audit")) > before)
            collector.restart(kill=True)
        eventually("all of them", lambda: set(receiver.received("audit")) >= set(trail.lines))
        found = receiver.received("audit")
        assert list(dict.fromkeys(found)) == trail.lines, "records must first arrive in order"
        assert len(found) <= len(trail.lines) + 3 * 500, len(found)


def splunk_records_count_as_delivered_when_indexed(receiver, root):
    """Unacknowledged batches are sent again, a refused token loses no record, and one invalid record blocks no other."""
    receiver.up()
    receiver.forgetful = 1
    trail = Trail(root)
    trail.write(200)
    with Collector(receiver, root) as collector:
        arrived(receiver, trail.lines)
        collector.says("no acknowledgement of the indexer in time")
        assert receiver.forgetful == 0
        collector.end()
        receiver.set_token("wrong")
        trail.write(100)
        collector.restart()
        eventually("a refusal", lambda: receiver.refusals)
        receiver.set_token(TOKEN)
        collector.restart()
        arrived(receiver, trail.lines)
        good = [log_line(f"line {letter}") for letter in "abcdefgh"]
        with open(root / "logs" / "edge.log", "w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in [*good[:5], log_line("POISON"), *good[5:]])
        arrived(receiver, good, "log")
        assert "POISON" in (root / "state" / "refused.jsonl").read_text()


def real_logs_and_audit_records_pass_unchanged():
    """The real binary writes only fields that the redaction knows."""
    trail = {"AUDIT__SINK": "file", "AUDIT__LOOKUPS": "all"}
    with Edge(LOG__LEVEL="trace", LOG__FORMAT="json", **trail) as service:
        service.at_genesys("POST", "/sandbox/behaviour", {"fail_status": 500, "fail_ratio": 1.0})
        lookup = f"{service.url}/api/v1/profile?tenantId=10001&customerId={customer(1)}"
        event = json.dumps({"tenantId": "10001", "customerId": customer(2)}).encode()
        posted = {"X-API-Key": "demo-secret", "Content-Type": "application/json"}
        for request in [
            urllib.request.Request(lookup, headers={"X-API-Key": "demo-key", "X-Request-Id": "asked-4711"}),
            urllib.request.Request(lookup, headers={"X-API-Key": "nobody's"}),
            urllib.request.Request(f"{service.url}/webhooks/10001", event, posted),
            urllib.request.Request(f"{service.url}/webhooks/10001", event, {**posted, "X-API-Key": "wrong"}),
            urllib.request.Request(f"{service.url}/oauth/token", b"grant_type=client_credentials"),
        ]:
            with contextlib.suppress(urllib.error.HTTPError):
                urllib.request.urlopen(request, timeout=10).close()
        eventually("an applied event", lambda: "event applied" in service.log())
        for path, order in [("replay", {"since": "1h"}), ("dead-letters/redrive", {"all": True}),
                            ("dead-letters/purge", {"all": True})]:  # fmt: skip
            asked = urllib.request.Request(f"http://127.0.0.1:{service.admin}/admin/{path}", json.dumps(order).encode(), posted)
            urllib.request.urlopen(asked, timeout=10).read()
        eventually("the end of a replay", lambda: '"replay.ended"' in service.audit())
        # Clients may close their sending half, so the service notices a disconnected one when it writes progress.
        for _ in range(10):
            urllib.request.urlopen(urllib.request.Request(f"{service.url}/webhooks/10001", event, posted), timeout=10).close()
        slow = json.dumps({"since": "1h", "rate": 1}).encode()
        slow = urllib.request.Request(f"http://127.0.0.1:{service.admin}/admin/replay", slow, posted)
        with urllib.request.urlopen(slow, timeout=10) as followed:
            followed.readline()
        eventually("a replay whose client has disconnected", lambda: "a replay ended early" in service.log())
        lines = [line for line in service.log().splitlines() if line.startswith("{")]
        for part in ['"verdict":"applied"', '"type":"webhook"', '"type":"token"', '"reason":"unauthorized"']:
            eventually(f"a record with {part}", lambda part=part: part in service.audit())
        records = service.audit().splitlines()
    assert "asked-4711" in "".join(lines), lines
    for line in lines:
        assert redacted(line, "log") == ("log", line), (line, redacted(line, "log"))
    kinds = {json.loads(record)["type"] for record in records}
    assert kinds == {"chain", "process", "lookup", "token", "event", "webhook", "operator"}, kinds
    for record in records:
        assert redacted(record, "audit") == ("audit", record), (record, redacted(record, "audit"))
    shipped = [redacted(record, "audit")[1] for record in records]
    assert verified(shipped).returncode == 0, verified(shipped).stdout
    # A record that had to be masked does not verify, and is named; its fields "hash" and "shipping" say which it was.
    asked = next(number for number, record in enumerate(records) if '"asked-4711"' in record)
    masked = records[asked].replace('"asked-4711"', '"+15550199871"')
    shipped[asked] = redacted(masked, "audit")[1]
    assert "15550199871" not in shipped[asked] and json.loads(shipped[asked])["hash"] == json.loads(records[asked])["hash"]
    found = verified(shipped)
    assert found.returncode == 1 and f"line {asked + 1}:" in found.stdout, found.stdout
    return len(lines), len(records)


def verified(records):
    """Runs `profile-edge audit verify` on records that were shipped."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
        file.writelines(record + "\n" for record in records)
        file.flush()
        command = [os.environ["EDGE_BINARY"], "audit", "verify", file.name]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


BOTH = [
    records_arrive_complete_and_in_order,
    every_process_has_its_own_trail_and_a_removed_file_is_logged,
    planted_personal_data_arrives_masked,
    nothing_is_lost_while_the_destination_is_down,
    lines_beyond_the_buffer_stay_in_the_files,
    a_restart_repeats_nothing,
    a_kill_repeats_at_most_one_batch_and_loses_nothing,
]


def ran(destination, check):
    """Runs a scenario with its own destination and files."""
    with tempfile.TemporaryDirectory(prefix="profile-edge-shipping-") as directory:
        for folder in ("state", "audit", "logs"):
            (pathlib.Path(directory) / folder).mkdir()
        receiver = destination(directory)
        check(receiver, pathlib.Path(directory))
        receiver.down()
    print(f"  {destination.__name__}: {check.__name__.replace('_', ' ')}", flush=True)


def main():
    for check in redaction.CHECKS:
        check()
    lines, records = real_logs_and_audit_records_pass_unchanged()
    print(f"  the redaction: {len(redaction.CHECKS)} checks; {lines} lines and {records} records of the service unchanged")
    plan = [(destination, check) for check in BOTH for destination in (Splunk, CloudWatch)]
    plan.append((Splunk, splunk_records_count_as_delivered_when_indexed))
    # The scenarios mostly wait.
    with concurrent.futures.ThreadPoolExecutor(4) as workers:
        for done in [workers.submit(ran, *what) for what in plan]:
            done.result()
    print(f"{len(redaction.CHECKS) + 1 + len(plan)} passed, 0 failed")


if __name__ == "__main__":
    sys.exit(main())
