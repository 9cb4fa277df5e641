"""The DNS recorder of one node: from the learner's ring to the cluster's bus.

One task reads the ring and owns the memory, one sends, one follows the patterns in force, one speaks of how it goes.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import nats.errors
from nats.aio.client import Client
from opentelemetry.trace import Span, SpanKind
from opentelemetry.util.types import AttributeValue

from schemas import wire
from schemas.policy import Config, DomainRow
from schemas.resolution import Observed, Resolution
from schemas.status import RecorderStatus
from schemas.terms import NodeName, Reason
from services.common import nats as bus
from services.common.cache import RECORDER_MEMORY, RECORDER_STREAMS
from services.common.follow import Follower
from services.common.forgetting import RECORDER_FILE, Asked, Forgetting
from services.common.log import get_logger
from services.common.messages import Message, Reset
from services.common.metrics import Page, serve_metrics
from services.common.settings import RecorderSettings
from services.common.telemetry import get_tracer, inject
from services.dnsrecorder.capture import HANDOVERS, Capture
from services.dnsrecorder.dnswire import Answer, AnswerError, parse_answer, parse_refusal
from services.dnsrecorder.event import ResolutionEvent, decode_event
from services.dnsrecorder.handover import Handed, Handovers
from services.dnsrecorder.metrics import put_recorder
from services.dnsrecorder.outbox import Letter, Outbox
from services.dnsrecorder.record import Publication, Recorder

STATUS_SECONDS = 1.0
SAVE_SECONDS = 30.0
DRAIN_SECONDS = 2.0
FILTERS = ("yett.policy.domain.>", wire.SUBJECT_CONFIG)

_log = get_logger("recorder")
_tracer = get_tracer("dnsrecorder")


def boottime_seconds() -> float:
    """CLOCK_BOOTTIME: does not jump, goes on through a suspension, the kernel's own clock for expiry."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class App:
    """One node's recorder."""

    def __init__(self, settings: RecorderSettings, connection: Client) -> None:
        self._node = NodeName(settings.node)
        self._connection = connection
        self._capture = Capture(Path(settings.pin_root))
        self._handover_capture = Capture(Path(settings.pin_root), HANDOVERS)
        self._handovers = Handovers()
        self._recorder = Recorder()
        self._outbox = Outbox(connection, limit=settings.buffer)
        self._counters: Counter[str] = Counter()
        self._said: set[str] = set()
        self._memory = BootFile(Path(settings.state_dir) / RECORDER_MEMORY)
        self._streams = BootFile(Path(settings.state_dir) / RECORDER_STREAMS)
        self._forgetting = Forgetting(connection, Path(settings.state_dir) / RECORDER_FILE, self._forget)

    async def run(self) -> None:
        """Until cancelled; then what is known is sent and saved."""
        self._load()
        sending = asyncio.create_task(self._outbox.run())
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_share_failure(sending))
                group.create_task(self._read_ring())
                group.create_task(self._read_handovers())
                group.create_task(self._follow_patterns())
                group.create_task(self._forgetting.run())
                group.create_task(self._speak())
                group.create_task(self._save())
        finally:
            # The sender outlives the others, so that what they put last still goes out.
            await self._outbox.flush(DRAIN_SECONDS)
            sending.cancel()
            self._memory.write(self._recorder.dump())
            self._streams.write(self._handovers.dump())

    def _load(self) -> None:
        """What the last one knew. Of streams only what one said that came to its end: a killed one read on after."""
        self._memory.load_into(lambda content: self._recorder.load(content, boottime_seconds()))
        self._streams.load_into(self._handovers.load)
        self._streams.remove()

    # -- from the ring

    async def _read_ring(self) -> None:
        async for batch in self._capture.batches():
            for record in batch:
                await self._take(record)
            await asyncio.sleep(0)

    async def _take(self, record: bytes) -> None:
        try:
            event = decode_event(record)
        except ValueError as error:
            self._refuse("event_malformed", error)
            return
        self._counters["suppressed"] += event.suppressed
        if event.reason:
            self._counters[_reason_name(event.reason)] += 1
        if event.is_refusal:
            await self._take_refusal(event)
            return
        self._counters["events"] += 1
        if event.reason == Reason.LEARN_HANDED_OVER:
            await self._take_handed(Handed(event.message, event, event.boottime_nanos, event.boottime_nanos))
            return
        self._counters["learned"] += event.learned
        try:
            answer = parse_answer(event.message, self._recorder.config.search_suffixes)
        except AnswerError as error:
            self._refuse(error.reason.name.lower(), error)
            return
        self._compare(event, answer)
        with self._start_span(event, answer):
            await self._observe(event, answer)
            if event.is_from_outside:
                self._counters["from_outside"] += 1  # it serves the asker alone
            elif event.learned or event.reason not in _NOT_BELIEVED:
                self._publish(self._recorder.note(answer, str(event.endpoint), boottime_seconds()), event)

    async def _take_refusal(self, event: ResolutionEvent) -> None:
        try:
            answer = parse_refusal(event.message, self._recorder.config.search_suffixes)
        except AnswerError as error:
            self._refuse(error.reason.name.lower(), error)
            return
        await self._tell_refusal(event, answer, Reason(event.reason))

    async def _tell_refusal(self, event: ResolutionEvent, answer: Answer, reason: Reason) -> None:
        """To the agent, which knows the pod's rules and tells everybody else."""
        with self._start_span(event, answer, reason):
            await self._observe(event, answer, reason=reason)

    def _start_span(
        self, event: ResolutionEvent, answer: Answer, reason: int | None = None
    ) -> AbstractContextManager[Span]:
        """An answer's, from when the kernel released it. ``reason``: other than the kernel gave."""
        reason = event.reason if reason is None else reason
        attributes: dict[str, AttributeValue] = {
            "dns.question.name": answer.name,
            "dns.answers": answer.addresses,
            "server.address": event.resolver,
            "k8s.node.name": self._node,
            "yett.endpoint": event.endpoint,
            "yett.learned": event.learned,
            "yett.reason": _reason_name(reason) if reason else "learned",
        }
        return _tracer.start_as_current_span("dns answer", attributes=attributes, start_time=_unix_nanos(event))

    def _compare(self, event: ResolutionEvent, answer: Answer) -> None:
        if event.is_complete and not event.counts(len(answer.records)):
            self._counters["mismatch"] += 1
            _log.warning("kernel and parser disagree", name=answer.name, kernel=event.answers, ours=len(answer.records))

    # -- what the kernel could not read, in pieces or whole

    async def _read_handovers(self) -> None:
        async for batch in self._handover_capture.batches():
            # All of a batch at once, so that whoever is told to end knows how far the streams were read.
            for handed in [handed for record in batch for handed in self._take_piece(record)]:
                await self._take_handed(handed)
            await asyncio.sleep(0)

    def _take_piece(self, record: bytes) -> list[Handed]:
        try:
            event = decode_event(record)
        except ValueError as error:
            self._refuse("event_malformed", error)
            return []
        self._counters["suppressed"] += event.suppressed
        return self._handovers.take(event, boottime_seconds())

    async def _take_handed(self, handed: Handed) -> None:
        try:
            answer = parse_answer(handed.message, self._recorder.config.search_suffixes)
        except AnswerError as error:
            self._refuse(error.reason.name.lower(), error)
            return
        event = handed.last
        if answer.rcode or not answer.records:
            if self._recorder.is_refusal(answer, boottime_seconds()):
                reason = Reason.LEARN_RCODE if answer.rcode else Reason.LEARN_NO_ADDRESS
                self._counters[_reason_name(reason)] += 1
                await self._tell_refusal(event, answer, reason)
            return
        is_believed = not event.is_from_outside
        publication: Publication | None = None
        with self._start_span(event, answer):
            await self._observe(event, answer, handed_over=is_believed)
            self._counters["handover_learned" if is_believed else "from_outside"] += 1
            if is_believed:
                publication = self._recorder.note(answer, str(event.endpoint), boottime_seconds())
                self._publish(publication, event)
        self._counters["learned"] += len(answer.addresses) if publication else event.learned
        self._time_handover(handed)

    def _time_handover(self, handed: Handed) -> None:
        """How late: from the release of an answer's last piece until it was sent on."""
        micros = (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - handed.done_nanos) // 1_000
        self._counters["handover_delay_micros_total"] += micros
        self._counters["handover_delay_micros_max"] = max(self._counters["handover_delay_micros_max"], micros)

    # -- what is to be forgotten

    async def _forget(self, asked: Asked) -> None:
        """Out of the memory with it; the agent is told which addresses the name had here."""
        if asked.is_done:
            return
        if asked.forget.node == self._node:
            self._recorder.forget_all()
        elif asked.forget.name:
            addresses = self._recorder.forget(asked.forget.name)
            await self._tell_agent(Observed(endpoint_id=0, name=asked.forget.name, addresses=addresses, forgotten=True))
        self._memory.write(self._recorder.dump())

    # -- to the agent of this node

    async def _observe(
        self, event: ResolutionEvent, answer: Answer, *, handed_over: bool = False, reason: int | None = None
    ) -> None:
        observed = Observed(
            endpoint_id=event.endpoint,
            name=answer.name,
            addresses=answer.addresses,
            ttl_seconds=answer.ttl_seconds,
            rcode=answer.rcode,
            handed_over=handed_over,
            reason=event.reason if reason is None else reason,
            resolver=event.resolver,
            suppressed=event.suppressed if event.is_refusal else 0,
        )
        await self._tell_agent(observed)

    async def _tell_agent(self, observed: Observed) -> None:
        if not self._connection.is_connected:
            self._counters["observed_dropped"] += 1
            return
        try:
            await self._connection.publish(
                wire.subject_observed(self._node), wire.encode(observed), headers=inject(wire.headers_for(observed))
            )
        except (nats.errors.Error, OSError):
            self._counters["observed_dropped"] += 1

    # -- to the bus

    def _publish(self, publication: Publication | None, event: ResolutionEvent | None = None) -> None:
        if publication is None:
            return
        resolution = Resolution(
            name=publication.name,
            addresses=publication.addresses,
            ttl_seconds=publication.ttl_seconds,
            node=self._node,
            resolver=event.resolver if event else "",
            learned_unix_nanos=_unix_nanos(event) if event else 0,
        )
        attributes = {"dns.question.name": publication.name, "k8s.node.name": self._node}
        with _tracer.start_as_current_span("publish resolution", kind=SpanKind.PRODUCER, attributes=attributes) as span:
            headers = inject(wire.headers_for(resolution), span)
        headers[wire.HEADER_TTL] = f"{publication.keep_seconds}s"
        self._outbox.put(
            Letter(wire.subject_resolution(self._node, publication.name), wire.encode(resolution), headers)
        )

    # -- from the bus

    async def _follow_patterns(self) -> None:
        async with Follower(self._connection, wire.STREAM_POLICY, FILTERS) as follower:
            async for item in follower:
                if isinstance(item, list):
                    for message in item:
                        self._apply(message)
                elif isinstance(item, Reset):
                    _log.warning("the policy stream begins again", reason=item.reason)
                    self._recorder.patterns.clear()
                    self._publish_all(self._recorder.republish(boottime_seconds()))

    def _apply(self, message: Message) -> None:
        now = boottime_seconds()
        if message.is_delete:
            if message.subject.startswith("yett.policy.domain."):
                self._recorder.remove_pattern(wire.decode_pattern(message.subject.rpartition(".")[2]))
            return
        try:
            row = wire.decode(message.subject, message.body)
        except wire.WireError as error:
            self._refuse(f"undecodable_{error.kind}", error)
            return
        if isinstance(row, DomainRow):
            self._publish_all(self._recorder.add_pattern(row.pattern, now))
        elif isinstance(row, Config):
            self._handovers.idle_seconds = row.timeouts.tcp
            self._publish_all(self._recorder.set_config(row, now))

    def _publish_all(self, publications: list[Publication]) -> None:
        for publication in publications:
            self._publish(publication)

    # -- what a person sees

    def _make_status(self) -> RecorderStatus:
        return RecorderStatus(
            node=self._node,
            counters=self._count(),
            buffered=len(self._outbox),
            forgotten=self._forgetting.sequence,
            pid=os.getpid(),
        )

    def put_metrics(self, page: Page) -> None:
        """This recorder's page for Prometheus."""
        put_recorder(page, self._make_status())
        page.put_common(self._connection)

    async def _speak(self) -> None:
        while True:
            status = self._make_status()
            if self._connection.is_connected:
                try:
                    await self._connection.publish(
                        wire.subject_status_recorder(self._node), wire.encode(status), headers=wire.headers_for(status)
                    )
                except (nats.errors.Error, OSError) as error:
                    _log.debug("status not sent", problem=str(error))
            await asyncio.sleep(STATUS_SECONDS)

    async def _save(self) -> None:
        while True:
            await asyncio.sleep(SAVE_SECONDS)
            self._recorder.drop_expired(boottime_seconds())
            self._memory.write(self._recorder.dump())

    def _count(self) -> dict[str, int]:
        return {
            **self._counters,
            **self._recorder.counters,
            **self._handovers.counters,
            "handover_waiting": len(self._handovers),
            "remembered": len(self._recorder),
            "published": self._outbox.published,
            "dropped": self._outbox.dropped,
            "ring_waiting_bytes": self._capture.count_waiting_bytes(),
            "ring_moves": self._capture.moves,
            "handover_ring_waiting_bytes": self._handover_capture.count_waiting_bytes(),
        }

    def _refuse(self, kind: str, error: Exception) -> None:
        """Count a message that cannot be used; say so once a kind."""
        self._counters[kind] += 1
        if kind not in self._said:
            self._said.add(kind)
            _log.warning("refused, and counted from now on", kind=kind, problem=str(error))


_NOT_BELIEVED = frozenset(
    {Reason.LEARN_UNTRUSTED, Reason.LEARN_UNASKED, Reason.LEARN_QUOTA, Reason.LEARN_REFUSED_ADDRESS}
)
"""Reported for people, never published, unless the kernel learned a part of the answer."""


async def _share_failure(task: asyncio.Task[None]) -> None:
    """End with the task's error, without ending the task when cancelled."""
    await asyncio.shield(task)


class BootFile:
    """Bytes on disk, valid for one boot of the machine (times in them are of CLOCK_BOOTTIME)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip().encode()

    def load_into(self, load: Callable[[bytes], None]) -> None:
        """A file that is absent, of an earlier boot, or that ``load`` refuses by ValueError is left aside."""
        try:
            boot, _, content = self._path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return
        if boot != self._boot:
            _log.info("of an earlier boot, left aside", file=str(self._path))
            return
        try:
            load(content)
        except ValueError as error:
            _log.warning("cannot be read, left aside", file=str(self._path), problem=str(error))

    def write(self, content: bytes) -> None:
        """Written beside, then renamed: a crash leaves the old one."""
        beside = self._path.with_name(f"{self._path.name}.new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(self._boot + b"\n" + content)
            beside.replace(self._path)
        except OSError as error:
            _log.warning("not saved", file=str(self._path), problem=str(error))

    def remove(self) -> None:
        """Nothing is in it any more."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("not removed", file=str(self._path), problem=str(error))


def _reason_name(reason: int) -> str:
    try:
        return Reason(reason).name.lower()
    except ValueError:
        return f"reason_{reason}"


def _unix_nanos(event: ResolutionEvent) -> int:
    return time.time_ns() - (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - event.boottime_nanos)


async def main(settings: RecorderSettings) -> None:
    """Connect and run until cancelled."""
    connection = await bus.connect(settings, f"yett-dnsrecorder-{settings.node}")
    try:
        app = App(settings, connection)
        end_metrics = serve_metrics(settings, app.put_metrics)
        try:
            await app.run()
        finally:
            await asyncio.to_thread(end_metrics)
    finally:
        await bus.close(connection)
