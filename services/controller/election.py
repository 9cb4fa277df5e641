"""Who may try to lead. Whoever wins still has to write its mark: elections decide who tries, the fence who is heard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

SayLeader = Callable[[str], None]
"""Told who leads, whenever that is another than before."""


class Election(Protocol):
    """One for the life of a process; all methods are one task's, one after the other, but for ``follow``."""

    async def follow(self) -> None:
        """See what happens, leading or not; until cancelled."""

    async def win(self, say_leader: SayLeader) -> None:
        """Return when this process may try to lead."""

    async def hold(self) -> None:
        """Stay the winner; TermEndedError when another is."""

    async def resign(self) -> None:
        """Let another win at once, if this process had won."""
