"""Strict mode: runs ``nft`` so that an interface is open only once it is judged. What the gate is says ``gate``.

The set is replaced in one transaction with the gate itself, so a restart leaves no moment without it; it is not removed
when the agent ends: pods that start meanwhile stay shut.
"""

from __future__ import annotations

import asyncio
import json
import subprocess

from services.common.log import get_logger
from services.nodeagent import gate
from services.nodeagent.gate import Command

_log = get_logger("strict")


class GateError(RuntimeError):
    """``nft`` refused; the message is its own."""


class Gate:
    """The gate of one network namespace."""

    def __init__(self) -> None:
        self._members: frozenset[int] | None = None
        self.restored = 0
        """Times somebody else had removed the gate."""

    async def adopt(self, uplinks: frozenset[int]) -> None:
        """Put up the gate, or take over the one an earlier agent left: what it had judged stays open."""
        await _run([*gate.make_gate(), *gate.add_members(uplinks)])

    async def set_members(self, members: frozenset[int]) -> None:
        """Exactly these interfaces are open. GateError if nft refuses; the gate stays as it was then."""
        if self._members is None:
            await _run([*gate.make_gate(), *gate.replace_members(members)])
        elif members != self._members:
            # What is gone as an interface is still a number in the set; replacing needs no knowledge of which.
            await _run(gate.replace_members(members))
        self._members = members

    async def check(self) -> None:
        """Make the gate again if a foreign flush took it away."""
        if self._members is None or await _exists():
            return
        self.restored += 1
        _log.warning("the gate was removed by somebody else, put back")
        members, self._members = self._members, None
        await self.set_members(members)


async def _run(commands: list[Command]) -> None:
    await asyncio.to_thread(_run_now, commands)


def _run_now(commands: list[Command]) -> None:
    """A pipe, not the loop's socket pair: nft opens /dev/stdin by name, which a socket refuses."""
    given = json.dumps({"nftables": commands})
    done = subprocess.run(["nft", "-j", "-f", "-"], input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise GateError(done.stderr.strip() or f"nft ended with {done.returncode}")


async def _exists() -> bool:
    """Whether both tables hold their set and rules."""
    return all([await asyncio.to_thread(_has_table, family) for family in gate.FAMILIES])


def _has_table(family: str) -> bool:
    done = subprocess.run(["nft", "list", "table", family, gate.TABLE], capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.count("drop") == len(gate.HOOKS)


def remove() -> None:
    """No trace of the gate; GateError if nft refuses."""
    _run_now(gate.remove_gate())
