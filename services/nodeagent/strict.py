"""Strict mode: runs ``nft`` to put up the gate and to keep it. What the gate is says ``gate``.

It is not removed when the agent ends: pods that start meanwhile stay shut. Who is let through says the device group of
each interface (``links``), so that opening one needs no ``nft``.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess

from services.common.log import get_logger
from services.nodeagent import gate
from services.nodeagent.gate import Command

_log = get_logger("strict")


class GateError(RuntimeError):
    """``nft`` refused, or the gate would shut what it must not; the message says which."""


class Gate:
    """The gate of one network namespace."""

    def __init__(self) -> None:
        self._is_up = False
        self.restored = 0
        """Times somebody else had removed the gate."""

    async def put_up(self) -> None:
        """Make the gate, or take over the one an earlier agent left. GateError if nft refuses."""
        await asyncio.to_thread(_run, gate.make_gate())
        self._is_up = True

    async def check(self) -> None:
        """Make the gate again if a foreign flush took it away."""
        if not self._is_up or await asyncio.to_thread(is_up):
            return
        self.restored += 1
        _log.warning("the gate was removed by somebody else, put back")
        await self.put_up()


def _run(commands: list[Command]) -> None:
    """A pipe, not the loop's socket pair: nft opens /dev/stdin by name, which a socket refuses."""
    given = json.dumps({"nftables": commands})
    done = subprocess.run(["nft", "-j", "-f", "-"], input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise GateError(done.stderr.strip() or f"nft ended with {done.returncode}")


def is_up() -> bool:
    """Whether both tables hold their rules."""
    return all(_has_rules(family) for family in gate.FAMILIES)


def _has_rules(family: str) -> bool:
    return (_list_table(family) or "").count("drop") == len(gate.HOOKS)


def _list_table(family: str) -> str | None:
    done = subprocess.run(["nft", "list", "table", family, gate.TABLE], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def remove() -> None:
    """No trace of the gate; GateError if nft refuses. Where there is no nft there is no gate."""
    if shutil.which("nft") is not None and any(_list_table(family) is not None for family in gate.FAMILIES):
        _run(gate.remove_gate())
