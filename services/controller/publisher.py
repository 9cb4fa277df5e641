"""Brings the stream to the rows that are wanted, fenced, in an order of which every prefix is safe to follow.

A revision follows its rows down the same connection and behind the same fence, so it is stored after them or not at
all; it does not wait for their acknowledgements, because followers believe its digest and not its arrival. Any refusal
or silence ends the term; nothing is retried, because what the stream holds is then no longer known.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from schemas.policy import Revision
from services.common.batches import Batches
from services.common.window import Window
from services.controller.leader import Term
from services.controller.ledger import Ledger, Outgoing, RowChange


class Publisher:
    """One per term; one task calls it."""

    def __init__(self, window: Window | Batches, term: Term, ledger: Ledger) -> None:
        self._window = window
        self._fence = dict(term.headers)
        self._ledger = ledger
        self.rows_published = 0
        self.revisions_published = 0

    async def publish(self, changes: Iterable[RowChange], *, trace: str = "") -> Revision | None:
        """Publish changes and, if they move the digest, a revision. Raises WindowError: the term is over.

        ``changes``: in an order of which every prefix is safe (``policy.diff``); those the stream has already are not
        said again. Returns the revision once the server has acknowledged it, or None where the last one still holds.
        """
        for outgoing in self._ledger.plan_rows(changes, trace=trace):
            await self._send(outgoing)
        planned = self._ledger.plan_revision(trace=trace, now_seconds=time.time())
        if planned is None:
            await self._window.drain()
            return None
        revision, outgoing = planned
        await self._send(outgoing)
        await self._window.drain()
        self.revisions_published += 1
        return revision

    async def _send(self, outgoing: Outgoing) -> None:
        await self._window.publish(outgoing.subject, outgoing.body, outgoing.headers | self._fence)
        self.rows_published += 1
