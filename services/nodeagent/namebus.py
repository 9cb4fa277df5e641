"""Subscriptions for the names that local rules use: live by plain subscription, history by a short-lived consumer.

Overlapping consumer filters are refused by the server and thousands take it seconds, so the patterns are reduced to a
prefix-free set of at most ``MAX_FILTERS``; beyond that a common ancestor is followed and the rest is left out locally.
Live names do not wait for the stream: a subscriber hears them as they are published.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from schemas import wire
from schemas.resolution import Resolution
from services.common.cancellation import heed_cancellation
from services.common.follow import Follower
from services.common.jetstream import JetStream, JetStreamError
from services.common.log import get_logger
from services.common.messages import CaughtUp, Message
from services.nodeagent.patterns import coarsen_patterns

MAX_FILTERS = 256
HISTORY_SECONDS = 5.0
"""A history that takes longer is left: the recorders publish what is in use again."""


@dataclass(frozen=True, slots=True)
class HeardName:
    """A resolution as it came. ``age_seconds``: since the server stored it; ``trace``: its sender's traceparent."""

    subject: str
    resolution: Resolution
    age_seconds: float = 0.0
    trace: str = ""
    sequence: int = 0
    """In the stream; 0 for what is heard live."""


@dataclass(frozen=True, slots=True)
class _Told:
    """A message as it came."""

    subject: str
    body: bytes
    trace: str


Hear = Callable[[HeardName], Awaitable[None]]

_log = get_logger("namebus")


def make_filters(patterns: Iterable[str]) -> list[str]:
    """Subjects, none covering another, that carry every name the patterns cover."""
    coarse = coarsen_patterns(patterns, MAX_FILTERS)
    return [wire.RESOLUTION_PREFIX + ">" if one == "*" else wire.filter_resolution(one) for one in coarse]


class NameBus:
    """One node's ears on YETT_RESOLUTION."""

    def __init__(self, connection: Client, hear: Hear) -> None:
        self._connection = connection
        self._hear = hear
        self._patterns: frozenset[str] = frozenset()
        self._subscriptions: dict[str, Subscription] = {}
        self.counters: Counter[str] = Counter()
        self._said: set[str] = set()

    async def set_patterns(self, patterns: Iterable[str]) -> None:
        """Follow these patterns; returns once the history of the new ones has been heard, or cannot be had."""
        wanted = frozenset(patterns)
        new = wanted - self._patterns
        filters = set(make_filters(wanted)) if wanted else set()
        for subject in filters - self._subscriptions.keys():
            self._subscriptions[subject] = await self._connection.subscribe(subject, cb=self._on_live)
        for subject in self._subscriptions.keys() - filters:
            await self._drop(subject)
        self._patterns = wanted
        if new:
            await self.read_history(new)

    async def read_history(self, patterns: Iterable[str]) -> bool:
        """Hear what the stream holds for these patterns; gives up after ``HISTORY_SECONDS`` and says so."""
        if not self._connection.is_connected:
            return False
        try:
            async with asyncio.timeout(HISTORY_SECONDS):
                await self._read_history(make_filters(patterns))
        except (TimeoutError, JetStreamError, nats.errors.Error) as error:
            _log.warning("history of names not read", problem=str(error) or type(error).__name__)
            return False
        return True

    async def read_all_again(self) -> bool:
        """What was missed, and what was heard once and is to be judged anew; whether all of it was."""
        return not self._patterns or await self.read_history(self._patterns)

    async def _read_history(self, filters: list[str]) -> None:
        ahead = await self._measure_clock()
        async with Follower(self._connection, wire.STREAM_RESOLUTION, filters) as follower:
            async for item in follower:
                if isinstance(item, CaughtUp):
                    return
                if isinstance(item, list):
                    for message in item:
                        await self._on_stored(message, ahead)

    async def _measure_clock(self) -> float:
        """Seconds that the server's clock is ahead of ours (up to the round trip)."""
        answer = await JetStream(self._connection).call(f"STREAM.INFO.{wire.STREAM_RESOLUTION}")
        heed_cancellation()
        text = str(answer.get("ts", ""))
        if not text:
            return 0.0
        return datetime.fromisoformat(text[:26].rstrip("Z") + "+00:00").timestamp() - time.time()

    async def _on_stored(self, message: Message, ahead: float) -> None:
        if not message.is_delete:
            age_seconds = time.time() + ahead - message.unix_nanos / 1e9
            heard = _Told(message.subject, message.body, message.trace)
            await self._decode(heard, age_seconds=age_seconds, sequence=message.sequence)

    async def _on_live(self, message: Msg) -> None:
        trace = (message.headers or {}).get(wire.HEADER_TRACE, "")
        await self._decode(_Told(message.subject, message.data, trace))

    async def _decode(self, told: _Told, *, age_seconds: float = 0.0, sequence: int = 0) -> None:
        try:
            resolution = wire.decode(told.subject, told.body)
        except wire.WireError as error:
            self._refuse(error)
            return
        if isinstance(resolution, Resolution):
            try:
                await self._hear(HeardName(told.subject, resolution, age_seconds, told.trace, sequence))
            except wire.WireError as error:
                self._refuse(error)

    async def _drop(self, subject: str) -> None:
        subscription = self._subscriptions.pop(subject)
        try:
            await subscription.unsubscribe()
        except nats.errors.Error as error:
            _log.debug("not unsubscribed", subject=subject, problem=str(error))

    def _refuse(self, error: wire.WireError) -> None:
        self.counters[f"undecodable_{error.kind}"] += 1
        if error.kind not in self._said:
            self._said.add(error.kind)
            _log.warning("refused, and counted from now on", kind=error.kind, problem=str(error))
