"""Runs Schemathesis against a demo process."""

import os
import subprocess
import sys
import tempfile

from edge import Edge

here = os.path.dirname(os.path.abspath(__file__))

with Edge() as edge, tempfile.TemporaryDirectory(prefix="schemathesis-") as directory:
    command = [os.path.join(os.path.dirname(sys.executable), "schemathesis"), "--config-file", f"{here}/schemathesis.toml"]
    # A stream of changes has no end, so no check of its answer would end.
    command += ["run", f"{edge.url}/openapi.json", "--exclude-path", "/api/v1/changes"]
    command += ["--checks", "all", "--no-color", *(sys.argv[1:] or ["--max-examples", "30"])]
    code = subprocess.run(command, cwd=directory).returncode
    assert edge.metric("profile_edge_panics_total") == 0, "the service panicked"

sys.exit(code)
