"""The controller: objects in, rows out, for as long as this process leads; else it stands by with everything read.

Tasks: one reads the objects, one leads or stands by (and alone owns the state of the world), one speaks, and two
subscriptions listen. They share the inventory, the board and the queue of events, all on one loop; nobody awaits with
half a change in hand.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from opentelemetry.util.types import AttributeValue

from schemas import wire
from schemas.status import AgentStatus, ControllerStatus
from schemas.terms import NodeName
from services.common import streams, telemetry
from services.common.batches import Batches
from services.common.cancellation import heeding_cancellation
from services.common.jetstream import JetStream, JetStreamError
from services.common.log import get_logger
from services.common.metrics import Page
from services.common.settings import ControllerSettings, default_controller_name
from services.common.trust import read_signer
from services.common.window import Window, WindowError
from services.controller.board import Board
from services.controller.election import Election
from services.controller.heap import freeze_heap, loading
from services.controller.inventory import Inventory, State
from services.controller.leader import Term, TermEndedError, read_mark, read_stream_rows, take_term, watch_marks
from services.controller.ledger import Ledger, RowChange
from services.controller.manifests import ManifestEvent
from services.controller.metrics import put_controller
from services.controller.policy.diff import diff
from services.controller.policy.parse import identify
from services.controller.policy_status import Published, Told, tell
from services.controller.publisher import Publisher
from services.controller.usagestore import Known, UsageStore

ANNOUNCE_SECONDS = 1.0
SILENCE_SECONDS = 4.0
"""A leader that has not spoken for this long is deposed."""
ASK_SECONDS = 0.5
"""How often a standby asks whether somebody leads, and how long it waits for the answer."""
EPOCH_LISTEN_SECONDS = 1.2
"""Before a new epoch is made: time for an agent to say which one it holds. Agents speak once a second."""
RETRY_SECONDS = 0.5

TermOver = (TermEndedError, WindowError, JetStreamError, nats.errors.Error, ConnectionError)
"""What ends a term, and not the process."""

OBJECTS_NAMED = 20
"""Changed objects that a span lists."""

STATUS_HEADERS = wire.headers_for(ControllerStatus(holder=""))

Watch = Callable[[], AsyncIterator[list[ManifestEvent]]]
"""Objects from a folder or a cluster: first everything there is, at once; then what changes."""


class Reporter(Protocol):
    """Tells the policies' owners what is true of them."""

    async def run(self, changed: asyncio.Event, read: Callable[[], list[Told]]) -> None:
        """While leading: look whenever something has ``changed``. Until cancelled."""


class NodeReporter(Protocol):
    """Tells the owners of nodes on which another enforcer is first."""

    async def run(self, read: Callable[[], Mapping[NodeName, tuple[str, ...]]]) -> None:
        """While leading. Until cancelled."""


class Admitter(Protocol):
    """Lets pods onto nodes."""

    async def run(self, read: Callable[[], Mapping[NodeName, int]]) -> None:
        """While leading. ``read``: nodes whose agents enforce, and when each agent started. Until cancelled."""


Reporters = tuple[Reporter, NodeReporter, Admitter | None]

_log = get_logger("controller")


@dataclass(frozen=True, slots=True)
class Batch:
    """Events that came at once, and the trace they began."""

    events: list[ManifestEvent]
    trace: str


class Controller:
    """One controller process. ``watch`` yields the objects; ``make_state`` a fresh world for an epoch's parity."""

    def __init__(
        self,
        settings: ControllerSettings,
        connection: Client,
        watch: Watch,
        make_state: Callable[[int], State],
        election: Election | None = None,
        reporters: Reporters | None = None,
    ) -> None:
        """``election``: who may try to lead; without one, whoever hears no leader on the bus. ``reporters``: tell the
        owners of policies and of nodes what is true of them, and let pods onto nodes."""
        self._settings = settings
        self._connection = connection
        self._watch = watch
        self._make_state = make_state
        self._election = election
        self._reporters = reporters
        self._state: State | None = None
        self._published = Published()
        self._report = asyncio.Event()
        self._jetstream = JetStream(connection)
        self._signer = read_signer(settings.signing_key)
        self._holder = settings.controller_name or default_controller_name()
        self._tracer = telemetry.get_tracer("controller")
        self._inventory = Inventory()
        self._board = Board(self._holder, os.getpid())
        self._usage = UsageStore(
            connection,
            Known(self._inventory.find_uid, self._inventory.find_labels),
            self._board.counters,
            keep_seconds=settings.usage_max_age_seconds,
        )
        self._batches: list[Batch] = []
        self._read_once = asyncio.Event()
        self._changed = asyncio.Event()
        self._speak = asyncio.Event()
        self._is_leading = False
        self._known_epoch = ""
        self._leader_heard = float("-inf")

    async def run(self) -> None:
        """Until cancelled. StreamError if the server cannot hold our streams; FileNotFoundError without a folder."""
        await self._connection.subscribe("yett.status.*", cb=self._on_status)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read_objects())
            group.create_task(self._announce())
            group.create_task(self._lead_or_stand_by())
            if self._election is not None:
                group.create_task(self._election.follow())

    # -- objects

    async def _read_objects(self) -> None:
        async for events in self._watch():
            attributes: dict[str, AttributeValue] = {"yett.events": len(events), "yett.objects": _name_objects(events)}
            with self._tracer.start_as_current_span("objects changed", attributes=attributes):
                self._inventory.take(events)
                self._batches.append(Batch(events, telemetry.traceparent()))
            self._read_once.set()
            self._changed.set()
        raise RuntimeError("the watch on the objects ended")

    # -- leading

    async def _lead_or_stand_by(self) -> None:
        await self._read_once.wait()
        while True:
            try:
                # A task of its own a term: a failed TaskGroup of 3.11 leaves its parent with a cancellation too many.
                await asyncio.create_task(self._take_turn())
            except* TermOver as group:
                for error in group.exceptions:
                    _log.warning("term over", reason=str(error) or type(error).__name__)
            await asyncio.sleep(RETRY_SECONDS * (0.5 + random.random()))

    async def _take_turn(self) -> None:
        if self._election is None:
            await self._stand_by()
            await self._lead()
            return
        try:
            await self._stand_for(self._election)
            await self._lead()
        finally:
            await self._election.resign()

    async def _stand_for(self, election: Election) -> None:
        """Return when the election is won."""
        winning = asyncio.create_task(election.win(lambda leader: _log.info("standing by", leader=leader)))
        try:
            while not winning.done():
                self._batches.clear()
                await asyncio.wait({winning}, timeout=ASK_SECONDS)
            winning.result()
        finally:
            winning.cancel()

    async def _stand_by(self) -> None:
        """Return when nobody leads, or whoever did has been silent for too long."""
        said = ""
        while leader := await self._find_leader():
            if leader != said:
                _log.info("standing by", leader=leader)
                said = leader
            # The inventory knows what they said; who leads has its own.
            self._batches.clear()
            await asyncio.sleep(ASK_SECONDS)

    async def _find_leader(self) -> str:
        """Who answers as the leader, or spoke as one of late; empty if nobody."""
        try:
            with heeding_cancellation():
                reply = await self._connection.request(wire.SUBJECT_STATUS_CONTROLLER_GET, timeout=ASK_SECONDS)
        except nats.errors.NoRespondersError:
            return ""
        except nats.errors.Error as error:
            is_silent = self._now() - self._leader_heard > SILENCE_SECONDS
            return "" if is_silent else f"? ({str(error) or type(error).__name__})"
        self._leader_heard = self._now()
        return _read_holder(reply)

    async def _lead(self) -> None:
        """One term, to its end: raises what ended it, in a group where two tasks ran."""
        for config in self._streams():
            await streams.ensure_stream(self._jetstream, config)
        async with self._answering(), self._usage.listening():
            await self._learn_epoch()
            term = await take_term(self._jetstream, self._holder, known_epoch=self._known_epoch)
            _log.info("leading", term=term.number, epoch=term.epoch, fence=term.fence)
            self._known_epoch = term.epoch
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(watch_marks(self._connection, term))
                    group.create_task(self._publish_term(term))
                    if self._election is not None:
                        group.create_task(self._election.hold())
                    if self._reporters is not None:
                        group.create_task(self._reporters[0].run(self._report, self._tell_policies))
                        group.create_task(self._reporters[1].run(self._board.foreign))
                        if self._reporters[2] is not None:
                            group.create_task(self._reporters[2].run(self._board.enforcing))
            finally:
                self._is_leading = False
                self._state = None

    def _streams(self) -> list[streams.Config]:
        settings = self._settings
        replicas = settings.stream_replicas
        return [
            streams.policy_stream(replicas=replicas),
            streams.resolution_stream(max_bytes=settings.resolution_max_bytes, replicas=replicas),
            streams.verdict_stream(
                max_bytes=settings.verdict_max_bytes,
                max_age_seconds=settings.verdict_max_age_seconds,
                replicas=replicas,
            ),
            streams.usage_stream(
                max_bytes=settings.usage_max_bytes,
                max_age_seconds=settings.usage_max_age_seconds,
                replicas=replicas,
            ),
        ]

    def _open_window(self) -> Window | Batches:
        return Batches(self._connection) if self._settings.stream_replicas > 1 else Window(self._connection)

    async def _learn_epoch(self) -> None:
        """Where the stream is new and we remember no epoch, ask the agents' statuses for the one they hold."""
        mark, _ = await read_mark(self._jetstream)
        if mark is None and not self._known_epoch and not self._board.last_agent_epoch:
            await asyncio.sleep(EPOCH_LISTEN_SECONDS)
        self._known_epoch = self._known_epoch or self._board.last_agent_epoch

    async def _publish_term(self, term: Term) -> None:
        snapshot = await read_stream_rows(self._connection, term)
        for subject in snapshot.unknown:
            _log.warning("left alone, a subject in no table", subject=subject)
        with loading():
            state = self._make_state(term.parity)
            self._inventory.fill(state, snapshot.remembered)
            ledger = Ledger(
                snapshot,
                epoch=term.epoch,
                least_number=0 if snapshot.revision else term.fence - 1,
                term=term.number,
                signer=self._signer,
            )
            changes: list[RowChange] = list(diff(ledger.rows, state.rows()))
            state.changes()
        freeze_heap()
        batches, self._batches = self._batches, []
        present = self._inventory.policies()
        async with self._open_window() as window:
            publisher = Publisher(window, term, ledger)
            self._board.begin_term(term.epoch, term.number, ledger.number)
            self._is_leading = True
            while True:
                started = self._now()
                await self._publish(publisher, ledger, state, changes, batches)
                if self._state is None:
                    self._published.begin(present, ledger.number)
                    self._state = state
                else:
                    self._published.follow([event for batch in batches for event in batch.events], ledger.number)
                self._report.set()
                await asyncio.sleep(started + self._settings.revision_interval_millis / 1000 - self._now())
                batches = await self._next_batches()
                changes = self._compile(state, batches)

    def _compile(self, state: State, batches: list[Batch]) -> list[RowChange]:
        """The rows that these batches change; what it took is in the first one's trace, as the revision will be."""
        context = telemetry.extract(batches[0].trace)
        with self._tracer.start_as_current_span("parse objects", context):
            for batch in batches:
                self._inventory.follow(state, batch.events)
        with self._tracer.start_as_current_span("compile policies", context) as span:
            changes = list(state.changes())
            span.set_attribute("yett.rows", len(changes))
        return changes

    def _tell_policies(self) -> list[Told]:
        """What is true of every policy that has been published in this term; nothing before the first publication."""
        if self._state is None:
            return []
        standings = self._state.standings(self._published.objects)
        return tell(self._published, standings, self._board.acknowledged(self._now()))

    async def _next_batches(self) -> list[Batch]:
        while not self._batches:
            self._changed.clear()
            await self._changed.wait()
        batches, self._batches = self._batches, []
        return batches

    async def _publish(
        self, publisher: Publisher, ledger: Ledger, state: State, changes: list[RowChange], batches: list[Batch]
    ) -> None:
        """One revision, as a span: child of the first change it stands for, linked with the others."""
        traces = [batch.trace for batch in batches]
        with self._tracer.start_as_current_span(
            "publish revision",
            context=telemetry.extract(traces[0]) if traces else None,
            links=telemetry.links(traces[1:]),
        ) as span:
            started = time.perf_counter()
            revision = await publisher.publish(changes, trace=telemetry.traceparent(span))
            if revision is not None:
                span.set_attribute("yett.revision", revision.number)
                millis = round((time.perf_counter() - started) * 1000, 3)
                _log.info("published", revision=revision.number, rows=len(changes), millis=millis, trace=revision.trace)
        board = self._board
        board.revision = ledger.number
        board.note_nodes(ledger.nodes)
        board.problems = (*self._inventory.problems, *state.problems())
        board.counters |= {"rows": publisher.rows_published, "revisions": publisher.revisions_published}
        self._speak.set()

    # -- speaking and listening

    @asynccontextmanager
    async def _answering(self) -> AsyncIterator[None]:
        """Answer who asks for the leader's status: from before our mark, so that of two starts one yields."""
        subscription = await self._connection.subscribe(wire.SUBJECT_STATUS_CONTROLLER_GET, cb=self._on_ask)
        try:
            yield
        finally:
            if not self._connection.is_closed:
                await subscription.unsubscribe()

    async def _on_ask(self, message: Msg) -> None:
        await message.respond(self._board.encode(self._now()))

    def put_metrics(self, page: Page) -> None:
        """This controller's page for Prometheus."""
        put_controller(
            page, self._board.status(self._now(), shown=len(self._board.problems)), is_leading=self._is_leading
        )
        page.put_common(self._connection)

    async def _announce(self) -> None:
        """The status at once when something changed, else once a second; only while leading."""
        while True:
            self._speak.clear()
            if self._is_leading and self._connection.is_connected:
                body = self._board.encode(self._now())
                await self._connection.publish(wire.SUBJECT_STATUS_CONTROLLER, body, headers=STATUS_HEADERS)
            try:
                async with asyncio.timeout(ANNOUNCE_SECONDS):
                    await self._speak.wait()
            except TimeoutError:
                continue

    async def _on_status(self, message: Msg) -> None:
        try:
            status = wire.decode(message.subject, message.data)
        except wire.WireError as error:
            self._count_undecodable(error)
            return
        if isinstance(status, AgentStatus) and self._board.note_agent(status, self._now()):
            self._speak.set()
            self._report.set()
        elif isinstance(status, ControllerStatus) and status.holder != self._holder:
            self._leader_heard = self._now()

    def _count_undecodable(self, error: wire.WireError) -> None:
        name = f"undecodable_{error.kind}"
        if name not in self._board.counters:
            _log.warning("a message that does not decode; others of its kind are only counted", problem=str(error))
        self._board.counters[name] = self._board.counters.get(name, 0) + 1

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _name_objects(events: list[ManifestEvent]) -> list[str]:
    """``Kind namespace/name`` of the first few."""
    keys = [event.gone or identify(event.obj) for event in events[:OBJECTS_NAMED] if event.gone or event.obj]
    return [f"{key[0]} {key[1]}/{key[2]}".replace(" /", " ") for key in keys if key]


def _read_holder(reply: Msg) -> str:
    try:
        status = wire.decode(wire.SUBJECT_STATUS_CONTROLLER, reply.data)
    except wire.WireError:
        return "? (unreadable)"
    return status.holder if isinstance(status, ControllerStatus) else ""
