"""Terms of leadership: who may write rows, and how a deposed one is kept from it.

A leader's first act is its mark on ``yett.policy.leader``. The mark's sequence is the fence: every row of the term
carries it as the expected last sequence of that subject, so the server refuses all rows of a term once a later mark is
written, however deep they are in a pipeline. The mark itself is written against the mark that was seen, so of two that
start at once one fails. After its mark a leader reads the stream to its end: nobody else can write to it any more.

Liveness is not safety: who seems silent is deposed, and two that both believe they lead do no harm.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from nats.aio.client import Client

from schemas import wire
from schemas.policy import Leader
from services.common.follow import Follower
from services.common.jetstream import JetStream
from services.common.messages import CaughtUp, Message, Position, Reset
from services.common.window import Window
from services.controller.ledger import Snapshot, read_snapshot

EPOCH_BYTES = 16


class TermEndedError(Exception):
    """This term is over, or could not begin; the reason is for people."""


@dataclass(frozen=True, slots=True)
class Term:
    """One leader's time. ``fence``: sequence of its mark. ``created``: the stream it holds for."""

    epoch: str
    number: int
    holder: str
    parity: int
    fence: int
    created: str

    @property
    def headers(self) -> Mapping[str, str]:
        """What every row of this term carries."""
        return {wire.HEADER_FENCE_SEQUENCE: str(self.fence), wire.HEADER_FENCE_SUBJECT: wire.SUBJECT_LEADER}


def make_epoch(known: str) -> str:
    """A random epoch whose parity differs from that of the epoch known before, if any: numbers then never meet."""
    epoch = secrets.token_hex(EPOCH_BYTES)
    if known and parity_of(epoch) == parity_of(known):
        epoch = epoch[:-1] + format(int(epoch[-1], 16) ^ 1, "x")
    return epoch


def parity_of(epoch: str) -> int:
    """The top bit of an epoch's identity numbers: the lowest bit of its last digit, so that the epoch alone tells."""
    return int(epoch[-1], 16) & 1


async def read_mark(jetstream: JetStream) -> tuple[Leader | None, int]:
    """The last leader's mark and its sequence; (None, 0) on a new stream. TermEndedError if it is unreadable."""
    message = await jetstream.read_last(wire.STREAM_POLICY, wire.SUBJECT_LEADER)
    if message is None:
        return None, 0
    if message.is_delete:
        return None, message.sequence
    try:
        mark = wire.decode(wire.SUBJECT_LEADER, message.body)
    except wire.WireError as error:
        raise TermEndedError(f"the last leader's mark is unreadable: {error}") from error
    return (mark if isinstance(mark, Leader) else None), message.sequence


async def take_term(jetstream: JetStream, holder: str, *, known_epoch: str = "") -> Term:
    """Write our mark. Raises WindowError (FencedError: another was faster), JetStreamError, TermEndedError.

    ``known_epoch``: the epoch that agents may still hold, for the parity of a new one.
    """
    created = (await jetstream.read_stream(wire.STREAM_POLICY)).created
    mark, sequence = await read_mark(jetstream)
    epoch = mark.epoch if mark else make_epoch(known_epoch)
    ours = Leader(epoch=epoch, term=mark.term + 1 if mark else 1, holder=holder, parity=parity_of(epoch))
    headers = wire.headers_for(ours) | {wire.HEADER_FENCE_SEQUENCE: str(sequence)}
    async with Window(jetstream.connection) as window:
        await window.publish(wire.SUBJECT_LEADER, wire.encode(ours), headers)
        await window.drain()
        return Term(epoch, ours.term, holder, ours.parity, window.last_sequence, created)


async def read_stream_rows(connection: Client, term: Term) -> Snapshot:
    """Everything the stream holds at the beginning of a term; TermEndedError if it changes meanwhile."""
    messages: list[Message] = []
    start = Position(term.created, 1)
    async with Follower(connection, wire.STREAM_POLICY, [wire.POLICY_PREFIX + ">"], start=start) as follower:
        async for item in follower:
            if isinstance(item, Reset):
                raise TermEndedError(f"the stream changed while it was read: {item.reason}")
            if isinstance(item, CaughtUp):
                break
            messages += item
    return read_snapshot(messages)


async def watch_marks(connection: Client, term: Term) -> None:
    """Never returns: raises TermEndedError when another leader writes its mark or the stream is another one, and
    JetStreamError when there is no stream any more."""
    start, subjects = Position(term.created, term.fence + 1), [wire.SUBJECT_LEADER]
    async with Follower(connection, wire.STREAM_POLICY, subjects, start=start, must_exist=True) as follower:
        async for item in follower:
            if isinstance(item, Reset):
                raise TermEndedError(item.reason)
            if isinstance(item, list):
                raise TermEndedError("another leader has written its mark")
