"""Verdicts from the ring to NATS: bounded at every step, never in anybody's way.

Records are read in batches. Denials are aggregated before anything is made of them; of allowed flows a share is told.
What is to be told is decoded, told, handed to the sinks, queued and published: on plain subjects, denials and audited
flows for the stream YETT_VERDICT too. A denial whose name may be on its way (the recorder publishes what an endpoint
was told) waits at most ``NAME_SECONDS`` for it.

Whatever is left out is counted, each cause under its own name. Publishing is not acknowledged: what is on its way when
the server dies is lost.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from schemas import wire
from schemas.resolution import Observed
from schemas.terms import NodeName, Verdict
from schemas.verdict import NameRefused, VerdictEvent
from services.common.bpf import RingBuffer
from services.common.log import get_logger
from services.nodeagent.aggregate import Aggregator, Told
from services.nodeagent.events import RECORD_BYTES, VerdictRecord, decode_verdict, is_allow
from services.nodeagent.refusals import Refusals, Refused, find_refusal
from services.nodeagent.verdicts import Storyteller

NAME_SECONDS = 0.010
QUEUE = 20_000
BUSY = QUEUE // 2
"""Beyond it only one allowed flow in ``BUSY_ONE_IN`` is told: NATS, or this process, does not keep up."""
BUSY_ONE_IN = 16
MILLION = 1_000_000
"""Shares are added up in millionths, so that a tenth of a thousand is a hundred."""
WAITING = 2_000
BATCH = 512
LOOK_SECONDS = 0.002
"""Between two looks at a ring that is being written: a wake for each record costs as much as what is made of it."""
TICK_SECONDS = 0.1
"""How often windows that are over are looked for."""
_TURN = 256
"""Messages published before others have their turn."""

Sink = Callable[[VerdictEvent], None]
"""Takes every event that is told; must not wait."""

RefusedSink = Callable[[NameRefused], None]
"""The same for names that DNS refused."""

_log = get_logger("verdicts")


@dataclass(frozen=True, slots=True)
class Shares:
    """What is told. ``denial_seconds``: length of a window of like denials; ``allow_ratio``: of allowed flows, 0..1."""

    denial_seconds: float = 5.0
    allow_ratio: float = 1.0


class VerdictBus:
    """Feeds on one ring; ``run`` publishes."""

    def __init__(self, node: NodeName, storyteller: Storyteller, shares: Shares | None = None) -> None:
        self._node = node
        self._storyteller = storyteller
        self._shares = shares or Shares()
        self._aggregator = Aggregator(self._shares.denial_seconds)
        self._queue: deque[VerdictEvent | NameRefused] = deque(maxlen=QUEUE)
        self._ready = asyncio.Event()
        self._waiting: deque[tuple[float, VerdictRecord, Told]] = deque()
        self._clock_offset = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._allow_millionths = round(self._shares.allow_ratio * MILLION)
        self._allowed = 0
        self._ring: RingBuffer | None = None
        self._look_again: asyncio.TimerHandle | None = None
        self._refusals = Refusals()
        self.sinks: list[Sink] = []
        self.refused_sinks: list[RefusedSink] = []
        self.counters: Counter[str] = Counter()

    # -- the ring

    def attach(self, ring: RingBuffer) -> None:
        """Read this ring whenever it has records."""
        self._ring = ring
        self._listen(ring)

    def detach(self, ring: RingBuffer) -> None:
        """Stop reading it; its records stay."""
        self._ring = None
        if self._look_again is not None:
            self._look_again.cancel()
            self._look_again = None
        asyncio.get_running_loop().remove_reader(ring.fileno())

    def _listen(self, ring: RingBuffer) -> None:
        asyncio.get_running_loop().add_reader(ring.fileno(), self._wake, ring)

    def _wake(self, ring: RingBuffer) -> None:
        """The first record is read at once; while others follow, the ring is looked at and no longer listened to."""
        asyncio.get_running_loop().remove_reader(ring.fileno())
        self._look(ring)

    def _look(self, ring: RingBuffer) -> None:
        self._look_again = None
        if records := self._read(ring):
            seconds = LOOK_SECONDS if records < BATCH else 0.0
            self._look_again = asyncio.get_running_loop().call_later(seconds, self._look, ring)
        else:
            self._listen(ring)

    @property
    def waiting_bytes(self) -> int:
        """How far the reader is behind the kernel."""
        return self._ring.count_waiting_bytes() if self._ring else 0

    @property
    def queued(self) -> int:
        """Events that wait for NATS."""
        return len(self._queue)

    def _read(self, ring: RingBuffer) -> int:
        """How many records there were."""
        now = asyncio.get_running_loop().time()
        records = ring.consume(BATCH)
        self.counters["verdicts"] += len(records)
        for record in records:
            self.take(record, now)
        return len(records)

    def take(self, record: bytes, now: float) -> None:
        """One record of the ring, at ``now`` seconds of the loop's clock."""
        if len(record) < RECORD_BYTES:
            self.counters["verdicts_malformed"] += 1
        elif is_allow(record):
            if self._is_share():
                self._take(Told(record), now)
        else:
            told = self._aggregator.take(record, now)
            if told is None:
                self.counters["verdicts_aggregated"] += 1
            else:
                self._take(told, now)

    def _is_share(self) -> bool:
        """Whether this allowed flow is one of those told."""
        busy = len(self._queue) >= BUSY
        self._allowed += self._allow_millionths // BUSY_ONE_IN if busy else self._allow_millionths
        if self._allowed >= MILLION:
            self._allowed -= MILLION
            return True
        self.counters["verdicts_left_out_busy" if busy else "verdicts_sampled_out"] += 1
        return False

    def _take(self, told: Told, now: float) -> None:
        """Told at once, or when its name has come or its time is over."""
        record = decode_verdict(told.record)
        if len(self._waiting) < WAITING and self._storyteller.lacks_name(record):
            self._waiting.append((now + NAME_SECONDS, record, told))
            asyncio.get_running_loop().call_later(NAME_SECONDS, self._tell_due)
        else:
            self._tell(record, told)

    def _tell_due(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._waiting and self._waiting[0][0] <= now + 0.001:
            _, record, told = self._waiting.popleft()
            self._tell(record, told)

    def _tell(self, record: VerdictRecord, told: Told) -> None:
        suppressed = told.suppressed or record.suppressed
        if suppressed:
            self.counters["verdicts_suppressed"] += suppressed
        event = self._storyteller.tell(
            record,
            unix_nanos=record.boottime_nanos + self._clock_offset,
            count=told.count,
            varies=told.varies,
            suppressed=suppressed,
        )
        if event is None:
            self.counters["verdicts_of_unknown_endpoints"] += told.count
            return
        self._put(event)
        for sink in self.sinks:
            sink(event)

    def _put(self, event: VerdictEvent | NameRefused) -> None:
        if len(self._queue) == QUEUE:
            self.counters["verdicts_dropped"] += self._queue[0].count
        self._queue.append(event)
        self._ready.set()

    def _tell_refused(self, refused: Refused) -> None:
        """The gate is open and DNS said no."""
        event = self._storyteller.tell_refused(refused, unix_nanos=time.time_ns())
        if event is None:
            return
        self.counters["names_refused_by_dns"] += event.count
        self._put(event)
        for sink in self.refused_sinks:
            sink(event)

    def flush(self, *, everything: bool = False) -> None:
        """Tell the counts of windows that are over; of all, at the end."""
        now = asyncio.get_running_loop().time()
        for told in self._aggregator.rest() if everything else self._aggregator.due(now):
            self._tell(decode_verdict(told.record), told)
        for refused in self._refusals.rest(now) if everything else self._refusals.due(now):
            self._tell_refused(refused)

    async def tick(self) -> None:
        """Tell counts as their windows end, for ever, with or without NATS."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.flush()

    # -- NATS

    async def run(self, connection: Client) -> None:
        """Publish for ever. While NATS is away the newest ``QUEUE`` are kept."""

        async def on_observed(message: Msg) -> None:
            self._on_observed(message)

        await connection.subscribe(wire.subject_observed(self._node), cb=on_observed)
        while True:
            await self._ready.wait()
            self._ready.clear()
            while self._queue:
                if not connection.is_connected:
                    await asyncio.sleep(0.1)
                    continue
                for _ in range(min(_TURN, len(self._queue))):
                    await self._publish(connection, self._queue.popleft())
                await asyncio.sleep(0)

    async def drain(self, connection: Client) -> None:
        """At the end: what is counted and queued is published, if there is a server."""
        self.flush(everything=True)
        while self._queue and connection.is_connected:
            await self._publish(connection, self._queue.popleft())

    async def _publish(self, connection: Client, event: VerdictEvent | NameRefused) -> None:
        try:
            if isinstance(event, NameRefused):
                subject = wire.subject_name_refused(event.node, event.namespace, event.pod)
                headers = wire.headers_for(event, trace=event.learned_trace)
                await connection.publish(subject, wire.encode(event), headers=headers)
                return
            where = (event.node, event.namespace, event.pod, event.verdict)
            body = wire.encode(event)
            headers = _HEADERS | {wire.HEADER_TRACE: event.applied_trace} if event.applied_trace else _HEADERS
            await connection.publish(wire.subject_verdict(*where), body, headers=headers)
            if event.verdict is not Verdict.ALLOW:
                await connection.publish(wire.subject_denied(*where), body, headers=headers)
            self.counters["verdicts_published"] += 1
        except (nats.errors.Error, OSError) as error:
            self.counters["verdicts_dropped"] += event.count
            _log.debug("verdict not published", problem=str(error) or type(error).__name__)

    def _on_observed(self, message: Msg) -> None:
        try:
            observed = wire.decode(message.subject, message.data)
        except wire.WireError as error:
            self.counters["undecodable_observed"] += 1
            _log.debug("observation refused", problem=str(error))
            return
        if isinstance(observed, Observed) and not observed.forgotten:
            trace = (message.headers or {}).get(wire.HEADER_TRACE, "")
            self._storyteller.note_observed(observed, trace)
            self._take_refusal(observed, trace)

    def _take_refusal(self, observed: Observed, trace: str) -> None:
        now = asyncio.get_running_loop().time()
        if find_refusal(observed) is None or self._storyteller.covers(observed.endpoint_id, observed.name):
            self._refusals.take(observed, now, trace)
        for refused in self._refusals.due(now):
            self._tell_refused(refused)


_HEADERS = {wire.HEADER_SCHEMA: f"{VerdictEvent.__name__}/{wire.SCHEMA_VERSION}"}
