"""Strict mode: runs ``nft`` to put up the gate and to keep it. What the gate is says ``gate``.

It is not removed when the agent ends: pods that start meanwhile stay shut. Who is let through says the device group of
each interface (``links``), so that opening one needs no ``nft``.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Sequence

from services.common.log import get_logger
from services.nodeagent import gate
from services.nodeagent.bootstrap import Opening
from services.nodeagent.gate import Command

_log = get_logger("strict")


class GateError(RuntimeError):
    """``nft`` refused, or the gate would shut what it must not; the message says which."""


class Gate:
    """The gate of one network namespace. ``openings``: what passes it though nothing is judged."""

    def __init__(self, openings: Sequence[Opening] = ()) -> None:
        self._openings = tuple(openings)
        self._texts: list[str] = []
        """The tables as nft tells them when they were just made; none before that."""
        self.restored = 0
        """Times somebody else had removed the gate."""

    async def put_up(self) -> None:
        """Make the gate, or take over the one an earlier agent left. GateError if nft refuses."""
        await asyncio.to_thread(_run, gate.make_gate(self._openings))
        self._texts = await asyncio.to_thread(list_tables)

    async def check(self) -> None:
        """Make the gate again if somebody flushed or changed it."""
        if not self._texts:
            return
        found = await asyncio.to_thread(list_tables)
        if found == self._texts and is_whole(found):
            return
        self.restored += 1
        _log.warning("the gate was removed or changed by somebody else, put back")
        await self.put_up()


def _run(commands: list[Command]) -> None:
    """A pipe, not the loop's socket pair: nft opens /dev/stdin by name, which a socket refuses."""
    given = json.dumps({"nftables": commands})
    done = subprocess.run(["nft", "-j", "-f", "-"], input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise GateError(done.stderr.strip() or f"nft ended with {done.returncode}")


def list_tables() -> list[str]:
    """The text of each family's table; empty where there is none."""
    return [_list_table(family) or "" for family in gate.FAMILIES]


def is_whole(texts: Sequence[str]) -> bool:
    """Whether each table drops at every hook, whatever it was when it was listed first."""
    return all(text.count("drop") == len(gate.HOOKS) for text in texts)


def _list_table(family: str) -> str | None:
    done = subprocess.run(["nft", "list", "table", family, gate.TABLE], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def remove() -> None:
    """No trace of the gate; GateError if nft refuses. Where there is no nft there is no gate."""
    if shutil.which("nft") is not None and any(_list_table(family) is not None for family in gate.FAMILIES):
        _run(gate.remove_gate())
