"""The README's lines for a cluster, run as they are written there."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from services.access.folder import Folder

ROOT = Path(__file__).parents[2]


def written(part: str) -> str:
    """The command of the README with this part in it; where it stands there more than once it is the same."""
    lines = (ROOT / "README.md").read_text().splitlines()
    (line,) = {each.strip().partition("  #")[0].rstrip() for each in lines if each.startswith("    ") and part in each}
    return line


def make_keys(folder: Path, node: str) -> Folder:
    """What ``yett keys init`` makes in a folder, on a cluster with one node."""
    commands = {
        "yett": f'PYTHONPATH={shlex.quote(str(ROOT))} exec {shlex.quote(sys.executable)} -m services.cli "$@"',
        "kubectl": f"echo --node {shlex.quote(node)}",
    }
    for name, script in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    given = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-c", written("yett keys init keys --mounted")], cwd=folder, env=given, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return Folder(folder / "keys")
