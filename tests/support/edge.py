"""Runs a profile-edge process with its sandbox on free ports, for checks in Python."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

PATIENCE = 30.0


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def customer(number):
    """Returns the id of a sandbox customer."""
    return f"00000000-0000-4000-8000-{number:012d}"


def eventually(what, ask, patience=PATIENCE):
    """Repeats a question until its answer is true, and returns the answer."""
    deadline = time.monotonic() + patience
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: timeout after {patience} s")
        time.sleep(0.02)


class Edge:
    """Runs the binary that EDGE_BINARY names. A context manager."""

    def __init__(self, **settings):
        self.public, self.admin, self.sandbox = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.public}"
        self.sandbox_url = f"http://127.0.0.1:{self.sandbox}"
        self._directory = tempfile.TemporaryDirectory(prefix="profile-edge-")
        self._settings = {
            "HTTP__LISTEN": f"127.0.0.1:{self.public}",
            "ADMIN__LISTEN": f"127.0.0.1:{self.admin}",
            "SANDBOX__LISTEN": f"127.0.0.1:{self.sandbox}",
            "SANDBOX__LATENCY": "0ms",
            "LOG__LEVEL": "error",
            **settings,
        }

    def __enter__(self):
        settings = {f"PROFILE_EDGE__{name}": value for name, value in self._settings.items()}
        self._log = open(os.path.join(self._directory.name, "log"), "w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [os.environ["EDGE_BINARY"]],
            cwd=self._directory.name,
            env={**os.environ, **settings},
            stdout=subprocess.DEVNULL,
            stderr=self._log,
        )
        eventually("readiness", self._ready)
        return self

    def __exit__(self, failed, *_):
        self._process.terminate()
        code = self._process.wait(PATIENCE)
        if failed or code != 0:
            self._log.seek(0)
            print(self._log.read(), file=sys.stderr)
        self._log.close()
        self._directory.cleanup()
        assert code == 0, f"profile-edge ended with {code}"

    def _ready(self):
        assert self._process.poll() is None, "profile-edge has ended"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/readyz", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def audit(self):
        """Returns the present contents of the audit file, if the process has one."""
        with open(os.path.join(self._directory.name, "data/audit.jsonl"), encoding="utf-8") as trail:
            return trail.read()

    def log(self):
        """Returns the standard error of the process so far."""
        with open(self._log.name, encoding="utf-8") as file:
            return file.read()

    def metric(self, name):
        """Returns the sum of all series of a metric."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def at_genesys(self, method, path, body=None):
        """Sends a request to the sandbox as its editor."""
        request = urllib.request.Request(
            f"{self.sandbox_url}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": "Bearer sandbox-editor", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=5) as answer:
            text = answer.read()
        return json.loads(text) if text else None
