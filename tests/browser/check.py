"""Starts profile-edge with its sandbox, and runs the checks of the example page in Chromium."""

import subprocess

from edge import Edge

# The whole check takes seconds; a page that hangs must not hold up the others.
PATIENCE = 100

with Edge() as edge:
    subprocess.run(["node", "tests/browser/page.mjs", edge.sandbox_url], check=True, timeout=PATIENCE)
    requested = edge.metric("profile_edge_lookup_requests_total")
    assert requested >= 3, f"the page looked up {requested} times"
print("the example page works in chromium")
