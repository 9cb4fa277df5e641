"""Verdicts from the ring to NATS: bounded at every step, never in anybody's way.

Records are read in batches, told, queued and published on plain subjects. A denial whose name may be on its way (the
recorder publishes what an endpoint was told) waits at most ``NAME_SECONDS`` for it. What a full queue drops is counted.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from schemas import wire
from schemas.resolution import Observed
from schemas.terms import NodeName
from schemas.verdict import VerdictEvent
from services.common.bpf import RingBuffer
from services.common.log import get_logger
from services.nodeagent.events import VerdictRecord, decode_verdict
from services.nodeagent.verdicts import Storyteller

NAME_SECONDS = 0.010
QUEUE = 20_000
WAITING = 2_000
BATCH = 512

_log = get_logger("verdicts")


class VerdictBus:
    """Feeds on one ring; ``run`` publishes. ``trace``: traceparent of the span that applied the present revision."""

    def __init__(self, node: NodeName, storyteller: Storyteller) -> None:
        self._node = node
        self._storyteller = storyteller
        self._queue: deque[VerdictEvent] = deque(maxlen=QUEUE)
        self._ready = asyncio.Event()
        self._waiting: deque[tuple[float, VerdictRecord, int]] = deque()
        self._clock_offset = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self.trace = ""
        self.counters: Counter[str] = Counter()

    # -- the ring

    def attach(self, ring: RingBuffer) -> None:
        """Read this ring whenever it has records."""
        asyncio.get_running_loop().add_reader(ring.fileno(), self._read, ring)

    def detach(self, ring: RingBuffer) -> None:
        """Stop reading it; its records stay."""
        asyncio.get_running_loop().remove_reader(ring.fileno())

    def _read(self, ring: RingBuffer) -> None:
        now = asyncio.get_running_loop().time()
        for data in ring.consume(BATCH):
            try:
                record = decode_verdict(data)
            except ValueError as error:
                self.counters["verdicts_malformed"] += 1
                _log.error("verdict event not understood", problem=str(error))
                continue
            self.take(record, now)

    def take(self, record: VerdictRecord, now: float) -> None:
        """One record: told at once, or when its name has come or its time is over."""
        unix_nanos = record.boottime_nanos + self._clock_offset
        self.counters["verdicts"] += 1
        self.counters["verdicts_suppressed"] += record.suppressed
        if len(self._waiting) < WAITING and self._storyteller.lacks_name(record):
            self._waiting.append((now + NAME_SECONDS, record, unix_nanos))
            asyncio.get_running_loop().call_later(NAME_SECONDS, self._tell_due)
        else:
            self._tell(record, unix_nanos)

    def _tell_due(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._waiting and self._waiting[0][0] <= now + 0.001:
            _, record, unix_nanos = self._waiting.popleft()
            self._tell(record, unix_nanos)

    def _tell(self, record: VerdictRecord, unix_nanos: int) -> None:
        event = self._storyteller.tell(record, unix_nanos=unix_nanos)
        if event is None:
            self.counters["verdicts_of_unknown_endpoints"] += 1
            return
        if len(self._queue) == QUEUE:
            self.counters["verdicts_dropped"] += 1
        self._queue.append(event)
        self._ready.set()

    # -- NATS

    async def run(self, connection: Client) -> None:
        """Publish for ever. While NATS is away the newest ``QUEUE`` are kept."""
        await connection.subscribe(wire.subject_observed(self._node), cb=self._on_observed)
        while True:
            await self._ready.wait()
            self._ready.clear()
            while self._queue:
                if not connection.is_connected:
                    await asyncio.sleep(0.1)
                    continue
                await self._publish(connection, self._queue.popleft())

    async def _publish(self, connection: Client, event: VerdictEvent) -> None:
        subject = wire.subject_verdict(event.node, event.namespace, event.pod, event.verdict)
        try:
            headers = wire.headers_for(event, trace=self.trace)
            await connection.publish(subject, wire.encode(event), headers=headers)
        except (nats.errors.Error, OSError) as error:
            self.counters["verdicts_dropped"] += 1
            _log.debug("verdict not published", problem=str(error) or type(error).__name__)

    async def _on_observed(self, message: Msg) -> None:
        try:
            observed = wire.decode(message.subject, message.data)
        except wire.WireError as error:
            self.counters["undecodable_observed"] += 1
            _log.debug("observation refused", problem=str(error))
            return
        if isinstance(observed, Observed):
            self._storyteller.note_observed(observed)
