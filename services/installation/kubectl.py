"""kubectl as a person has set it up: its configuration, its ways to log in. Errors are translated here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Obj = dict[str, Any]


class KubectlError(RuntimeError):
    """kubectl is absent, or refused: its own words."""


def find_kubectl() -> str:
    """The one on PATH, else this environment's; KubectlError if there is none."""
    beside = Path(sys.executable).parent / "kubectl"
    found = shutil.which("kubectl") or (str(beside) if beside.exists() else "")
    if not found:
        raise KubectlError("no kubectl on PATH")
    return found


class Kubectl:
    """One cluster, one namespace. ``context``: of the kubeconfig; empty: the current one."""

    def __init__(self, namespace: str, context: str = "") -> None:
        self.namespace = namespace
        self._command = [find_kubectl(), *(("--context", context) if context else ()), "--namespace", namespace]

    def run(self, *arguments: str, given: str = "") -> str:
        """What it says; KubectlError."""
        done = subprocess.run(
            [*self._command, *arguments], input=given, capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode:
            raise KubectlError(done.stderr.strip() or f"kubectl {arguments[0]} ended with {done.returncode}")
        return done.stdout

    def get(self, *arguments: str) -> Obj | None:
        """An object, or a list of them; None if there is no such object."""
        text = self.run("get", *arguments, "--ignore-not-found", "--output", "json")
        found: Obj | None = json.loads(text) if text.strip() else None
        return found

    def items(self, *arguments: str) -> list[Obj]:
        """The objects of a list."""
        found = self.get(*arguments)
        return list(found["items"]) if found else []

    def apply(self, obj: Obj) -> None:
        """As it stands here, whatever stands there."""
        self.run("apply", "--filename", "-", given=json.dumps(obj))

    def delete(self, what: Sequence[str], *, seconds: float) -> str:
        """Gone when it returns, with what it owned; what is not there is no error."""
        limit = f"--timeout={seconds:.0f}s"
        return self.run("delete", *what, "--ignore-not-found", "--cascade=foreground", "--wait=true", limit)
