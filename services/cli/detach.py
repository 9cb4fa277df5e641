"""``yett detach``."""

from __future__ import annotations

import os
import subprocess
import sys

import typer


def command() -> None:
    """Remove every trace of this node's agent, which must not run: filters, nftables, pinned maps, state. Needs root.

    Settings come from the same YETT_ variables or file as the agent's.
    """
    environment = {"YETT_NODE": "this", **os.environ}
    done = subprocess.run([sys.executable, "-m", "services.nodeagent", "detach"], env=environment, check=False)
    raise typer.Exit(done.returncode)
