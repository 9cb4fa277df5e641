"""Strict mode's gate, kept. What it is says ``gate``.

It is not removed when the agent ends: pods that start meanwhile stay shut. Who is let through says the device group of
each interface (``links``), so that opening one needs no ``nft``.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.nodeagent import gate
from services.nodeagent.bootstrap import Opening
from services.nodeagent.nft import Kept


class GateError(RuntimeError):
    """The gate would shut what it must not; the message says which."""


class Gate(Kept):
    """The gate of one network namespace. ``openings``: what passes it though nothing is judged."""

    def __init__(self, openings: Sequence[Opening] = ()) -> None:
        super().__init__(gate.TABLE, gate.make_gate(openings))
