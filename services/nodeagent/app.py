"""The agent of one node: programs and maps first, then interfaces, then the bus; it enforces before it can speak.

One task owns the maps, one the interfaces, one follows the bus, one speaks. What they hand each other is the newest
state, the newest interfaces: never a backlog.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from opentelemetry.trace import Span, SpanKind
from opentelemetry.util.types import AttributeValue

from schemas import wire
from schemas.resolution import Observed
from schemas.status import FORGED_PACKETS, AgentStatus, EndpointStatus, LearnedName, Problem
from schemas.terms import NodeName, RevisionNumber
from services.common import nats as bus
from services.common.cache import PROGRAMS
from services.common.exporting import Emitter
from services.common.follow import Follower
from services.common.forgetting import AGENT_FILE, Asked, Forgetting
from services.common.log import get_logger
from services.common.messages import Item, Position, Reset
from services.common.metrics import Page, make_histogram, serve_metrics
from services.common.settings import NodeagentSettings, SettingsError
from services.common.telemetry import extract, get_tracer, links, traceparent
from services.common.trust import read_verifier
from services.nodeagent import carry, gate, loader, metrics, nft, replica, sourcecheck, strict
from services.nodeagent import links as interfaces
from services.nodeagent.bootstrap import VARIABLE, parse_bootstrap
from services.nodeagent.datapath import Datapath, boottime_seconds
from services.nodeagent.enforcer import Enforcer, Place
from services.nodeagent.expired import Terms
from services.nodeagent.flowlog import FlowLog
from services.nodeagent.links import Links, Snapshot
from services.nodeagent.lock import Lock
from services.nodeagent.memory import MemoryFile, take_over
from services.nodeagent.metrics import VerdictCounts
from services.nodeagent.namebus import HeardName, NameBus
from services.nodeagent.names import BusNames
from services.nodeagent.nftwatch import NftWatch
from services.nodeagent.occupancy import Fill, Occupancy
from services.nodeagent.policystate import PolicyState
from services.nodeagent.reached import Reached
from services.nodeagent.replica import Applied, Replica, SavedRowsError
from services.nodeagent.sizes import make_capacities, make_sizes
from services.nodeagent.statefile import StateFile
from services.nodeagent.tables import Tables
from services.nodeagent.usagebus import UsageBus
from services.nodeagent.verdictbus import Shares, VerdictBus
from services.nodeagent.verdicts import Storyteller
from services.nodeagent.verdictspans import VerdictSpans
from services.nodeagent.wanted import Limits

STATUS_SECONDS = 1.0
COLLECT_SECONDS = 10.0
SAVE_SECONDS = 1.0
TABLES_SECONDS = 5.0
"""How often our nftables are looked at without a notification."""
RETRY_SECONDS = 5.0
"""After a change that could not be enforced."""
DOUBT_TICK_SECONDS = 1.0
"""How often a doubt is looked at on a quiet stream, where no message would bring it up."""
_RECORDERS_RING = "resolution_events"
HISTORY_SECONDS = 0.3
"""How long a flip waits for names that a new pattern already has; they go on arriving after it."""

_log = get_logger("nodeagent")
_tracer = get_tracer("nodeagent")


async def wait_event(event: asyncio.Event, seconds: float) -> None:
    """Until the event is set, or the time is over; unlike ``wait_for`` it never swallows a cancellation."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


class Mailbox:
    """The newest state and interfaces that are not enforced yet; changes add up until they are taken."""

    def __init__(self) -> None:
        self._wake = asyncio.Event()
        self._state: PolicyState | None = None
        self._keys: dict[str, frozenset[Any]] | None = {}
        self._snapshot: Snapshot | None = None

    def put_state(self, state: PolicyState, keys: Mapping[str, frozenset[Any]] | None) -> None:
        """``keys``: what differs from the state put before; None: everything may."""
        self._state = state
        if keys is None or self._keys is None:
            self._keys = None
        else:
            self._keys = {
                name: self._keys.get(name, frozenset()) | keys.get(name, frozenset())
                for name in self._keys.keys() | keys.keys()
            }
        self._wake.set()

    def put_snapshot(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._wake.set()

    async def take(self) -> tuple[PolicyState | None, dict[str, frozenset[Any]] | None, Snapshot | None]:
        """Wait for something new, and take it all."""
        await self._wake.wait()
        self._wake.clear()
        taken = (self._state, self._keys, self._snapshot)
        self._state, self._keys, self._snapshot = None, {}, None
        return taken


def _make_gate(settings: NodeagentSettings) -> strict.Gate | None:
    """Strict mode's; SettingsError for openings that it cannot have, or that nothing would keep to themselves."""
    openings = parse_bootstrap(settings.bootstrap)
    if settings.mode == "strict":
        return strict.Gate(openings)
    if openings:
        raise SettingsError(VARIABLE, "openings in a gate that is not there: it takes YETT_MODE=strict")
    return None


class App:
    """One node's agent."""

    def __init__(self, settings: NodeagentSettings, emitter: Emitter | None = None) -> None:
        self._settings = settings
        self._node = NodeName(settings.node)
        self._started = time.time_ns()
        verifier = read_verifier(settings.policy_keys)
        self._replica = Replica(self._node, verifier.find_fault)
        self._signatures = "required" if verifier.is_on else "off"
        self._state_file = StateFile(Path(settings.state_dir))
        self._links = Links(
            settings.interfaces,
            settings.uplinks,
            is_strict=settings.mode == "strict",
            results=settings.cni_results,
            resolvers=settings.resolver_interfaces,
            is_deferring=bool(settings.bootstrap),
        )
        self._gate = _make_gate(settings)
        is_checked = settings.resolver_sources == "checked"
        self._source_check = nft.Kept(sourcecheck.TABLE, needs=("inet",)) if is_checked else None
        self._tables_due = asyncio.Event()
        """Our nftables are to be looked at."""
        self._mailbox = Mailbox()
        self._names = BusNames(self._node)
        self._forgetting: Forgetting | None = None
        self._storyteller = Storyteller(self._node)
        shares = Shares(settings.denial_seconds, settings.allow_ratio)
        self._verdicts = VerdictBus(self._node, self._storyteller, shares)
        self._flow_log = FlowLog(settings) if settings.flow_log else None
        if self._flow_log:
            self._verdicts.sinks.append(self._flow_log)
            self._verdicts.refused_sinks.append(self._flow_log)
        self._verdict_counts = VerdictCounts()
        self._verdicts.sinks.append(self._verdict_counts)
        self._verdicts.refused_sinks.append(self._verdict_counts.count_refused)
        self._programming = make_histogram(metrics.PROGRAMMING, metrics.PROGRAMMING_BUCKETS)
        self._heard_number, self._heard_at = 0, 0.0
        self._spans = VerdictSpans(emitter, settings.span_allow_ratio) if emitter else None
        if self._spans:
            self._verdicts.sinks.append(self._spans)
        self._position: Position | None = None
        self._status_due = asyncio.Event()
        self._save_due = asyncio.Event()
        self._trace = ""
        self._connection: Client | None = None
        self._patterns: frozenset[str] = frozenset()
        self._criteria_due = asyncio.Event()
        """The settings by which names are judged may be other ones."""
        self._patterns_due = asyncio.Event()
        self._patterns_heard = asyncio.Event()
        self._counters: Counter[str] = Counter()
        self._descriptions = carry.Descriptions(Path(settings.state_dir))
        self._carrier: carry.Carrier | None = None
        self._swapped = asyncio.Event()
        """No programs of another layout are in force."""
        self._fill = Fill({}, {}, {})
        self._endpoints: tuple[EndpointStatus, ...] = ()
        """As the last round left them: whoever asks while the gate is still shut hears of the round before."""
        self._is_ready = False
        """Programs are attached and a state is in force. Latched: lag is a metric."""

    async def run(self) -> None:
        """Until cancelled; programs and maps stay, and go on enforcing."""
        settings = self._settings
        lock = Lock(Path(settings.pin_root))
        kept = Path(settings.programs or Path(settings.state_dir) / PROGRAMS)
        loaded = await asyncio.to_thread(loader.load, Path(settings.pin_root), make_sizes(settings), kept)
        _log.info("programs loaded", layout=loaded.layout, seconds=loaded.seconds, compiled=loaded.is_compiled)
        self._loaded = loaded
        former = self._find_former(loaded)
        terms = Terms(settings.names_expired_seconds, settings.names_in_use_seconds)
        self._datapath = Datapath(loaded.maps, terms)
        self._datapath.open()
        place = Place(self._node, loaded.layout, Path(settings.state_dir), former.name if former else "")
        limits = Limits(allow_events=settings.allow_ratio > 0)
        self._enforcer = Enforcer(place, self._datapath, make_capacities(settings), limits)
        self._usage = self._open_usage(loaded)
        self._occupancy = Occupancy(loaded.maps)
        await self._put_up_tables()
        is_empty = former is None and not self._datapath.present_revision()
        await self._links.open(dict(loaded.programs), is_held=former is not None, is_empty=is_empty)
        ring = self._datapath.open_verdicts()
        self._verdicts.attach(ring)
        end_metrics = serve_metrics(settings, self._put_metrics, [self._programming], lambda: self._is_ready)
        self._resume()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._links.run(self._on_links))
                group.create_task(self._own_maps())
                group.create_task(self._collect())
                group.create_task(self._measure())
                group.create_task(self._save())
                group.create_task(self._verdicts.tick())
                group.create_task(self._count_usage())
                if self._flow_log:
                    group.create_task(self._flow_log.run())
                group.create_task(self._watch_tables())
                group.create_task(self._live_on_bus())
                group.create_task(self._tidy_pins(loaded))
        finally:
            await asyncio.to_thread(end_metrics)
            if self._flow_log:
                self._flow_log.close()
            self._verdicts.detach(ring)
            ring.close()
            self._usage.close()
            self._occupancy.close()
            self._write_state()
            await self._links.close()
            self._datapath.close()
            lock.release()

    def _find_former(self, loaded: loader.Loaded) -> Path | None:
        """The folder of another layout that is in force; what can be carried over from it is in the new maps then.

        The recorder follows the ring pinned last: until the swap that is the old programs'.
        """
        former = carry.find_former(Path(self._settings.pin_root), loaded.folder)
        self._descriptions.write(loaded.layout, loaded.descriptions)
        if former is None:
            self._swapped.set()
            return None
        _log.info("another layout is in force; its programs stay until the new maps are filled", former=former.name)
        memory = MemoryFile(Path(self._settings.state_dir)).read()
        capacities = make_capacities(self._settings)
        if take_over(memory, layout=loaded.layout, former=former.name, capacities=capacities) is None:
            _log.warning("no memory that fits both layouts: names are not carried over")
        else:
            before = self._descriptions.read(former.name)
            self._carrier = carry.plan_carrier(former, loaded.maps, now=loaded.descriptions, before=before)
            _log.info("carried over", **self._carrier.copy_before())
        os.utime(loaded.maps[_RECORDERS_RING], (0, 0))
        return former

    def _open_usage(self, loaded: loader.Loaded) -> UsageBus:
        usage = UsageBus(self._node, Path(self._settings.state_dir), self._open_reached(loaded.maps), loaded.layout)
        usage.resume(self._enforcer)
        if self._swapped.is_set():
            usage.begin()
        return usage

    def _open_reached(self, maps: Mapping[str, Path]) -> Reached:
        return Reached(maps, self._datapath.endpoint_slots)

    def _begin_usage(self) -> None:
        """What was counted under the layout before, where its numbers are ours too."""
        carrier = self._carrier
        is_same = carrier is not None and {"reached", "rule_counters"} <= carrier.same
        former = {name: carrier.former / name for name in ("reached", "rule_counters", "flows")} if carrier else {}
        self._usage.begin(self._open_reached(former) if is_same else None)

    async def _count_usage(self) -> None:
        await self._swapped.wait()
        await self._usage.tick(self._settings.usage_seconds)

    async def _swap(self) -> None:
        """The new maps hold what is in force: its programs go on, and what the old ones learned meanwhile is added."""
        await self._links.release()
        if self._carrier is not None:
            await asyncio.to_thread(self._carrier.copy_after)
        self._begin_usage()
        os.utime(self._loaded.maps[_RECORDERS_RING])
        self._counters["layouts_swapped"] += 1
        _log.info("layout swapped", layout=self._loaded.layout)
        self._swapped.set()

    def _resume(self) -> None:
        """Start from the copy on disk, unless the kernel is ahead of it already."""
        data = self._state_file.read()
        if not data:
            return
        try:
            self._position = Position(*self._replica.load(data))
        except SavedRowsError as error:
            _log.warning("saved state left aside", problem=str(error))
            return
        state = self._replica.state
        if self._datapath.present_revision() > state.number & 0xFFFFFFFF:
            _log.info("the kernel is ahead of the saved state; waiting for the bus", saved=state.number)
            return
        _log.info("resuming", revision=state.number)
        self._mailbox.put_state(state, None)

    # -- interfaces

    async def _on_links(self, snapshot: Snapshot) -> None:
        for one in snapshot.links:
            if one.appeared and one.link.name:
                window = (one.attached - one.appeared) * 1000
                self._counters["attach_millis_max"] = max(self._counters["attach_millis_max"], int(window + 0.999))
        self._counters["filters_put_back"] = self._links.reattached
        self._counters["interfaces_reborn"] = self._links.reborn
        self._mailbox.put_snapshot(snapshot)

    # -- the maps

    async def _own_maps(self) -> None:
        """Interfaces first: a revision is not said to be enforced before it is known where."""
        state, snapshot = PolicyState(), Snapshot()
        await self._links.looked.wait()
        while True:
            new_state, keys, new_snapshot = await self._mailbox.take()
            state, snapshot = new_state or state, new_snapshot or snapshot
            if state.revision is None:
                self._enforcer.snapshot = snapshot
                self._endpoints = self._enforcer.endpoints()
                self._status_due.set()
                continue
            await self._enforce(state, keys if new_state else {}, snapshot, is_new=new_state is not None)

    async def _enforce(
        self, state: PolicyState, keys: Mapping[str, frozenset[Any]] | None, snapshot: Snapshot, *, is_new: bool
    ) -> None:
        began = time.monotonic()
        with self._start_span(state, is_new=is_new) as span:
            done = await self._enforcer.enforce(state, keys, snapshot, self._prepared)
            span.set_attribute("yett.enforced", done)
            trace = traceparent(span)
        if done:
            self._check_sources()
            if not self._swapped.is_set():
                await self._swap()
            self._usage.follow(self._enforcer, self._storyteller)
            self._note_enforced(state, trace if is_new else self._trace)
            if is_new and state.number == self._heard_number:
                self._programming.observe(time.monotonic() - self._heard_at)
            if is_new:
                _log.info(
                    "enforced",
                    revision=state.number,
                    endpoints=len(self._enforcer.tables.endpoints),
                    millis=round((time.monotonic() - began) * 1000, 1),
                )
        else:
            self._usage.read()
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._mailbox.put_state, state, None)
        # An interface is not said to be enforced while the gate is still shut before it.
        await self._links.set_judged(self._enforcer.judged())
        self._endpoints = self._enforcer.endpoints()
        self._status_due.set()
        self._is_ready = self._is_ready or done

    def _start_span(self, state: PolicyState, *, is_new: bool) -> AbstractContextManager[Span]:
        """A revision's application is part of its change's trace; a new interface only refers to it."""
        attributes: dict[str, AttributeValue] = {"yett.revision": state.number, "k8s.node.name": self._node}
        if is_new:
            context = extract(state.trace)
            return _tracer.start_as_current_span("apply revision", context, SpanKind.CONSUMER, attributes=attributes)
        return _tracer.start_as_current_span("apply interfaces", attributes=attributes, links=links([state.trace]))

    async def _prepared(self, tables: Tables, state: PolicyState) -> None:
        """Names that new patterns already have are written before the flip that uses them."""
        self._names.set_tables(state.config, tables.domains, tables.guard, tables.ipcache)
        self._names.set_quota(tables.config.names_per_endpoint)
        patterns = frozenset(tables.domains)
        if patterns != self._patterns:
            self._patterns = patterns
            self._patterns_heard.clear()
            self._patterns_due.set()
        self._criteria_due.set()
        if self._connection is not None and self._connection.is_connected:
            await wait_event(self._patterns_heard, HISTORY_SECONDS)

    def _note_enforced(self, state: PolicyState, trace: str) -> None:
        self._trace = trace
        self._storyteller.note_applied(state.number, trace)
        self._storyteller.set_state(
            pods=self._enforcer.pods(),
            rulesets=self._enforcer.rulesets_by_handle(),
            patterns=self._enforcer.patterns_by_row(),
            owners=state.addresses,
        )
        self._save_due.set()

    async def _collect(self) -> None:
        await self._swapped.wait()  # names and credits are the carrier's until then
        while True:
            await asyncio.sleep(COLLECT_SECONDS)
            self._names.drop_expired(boottime_seconds())
            if self._enforcer.is_enforcing:
                self._enforcer.collect()

    async def _measure(self) -> None:
        """How full things are, for who scrapes."""
        while self._settings.metrics_port:
            rulesets = dict(self._enforcer.tables.rulesets)
            limit = Limits().names_per_endpoint
            self._fill = await asyncio.to_thread(self._occupancy.read, self._datapath.regions(), rulesets, limit)
            await asyncio.sleep(COLLECT_SECONDS)

    async def _save(self) -> None:
        """The state on disk, at most once a second."""
        while True:
            await self._save_due.wait()
            self._save_due.clear()
            data = self._state_bytes()
            if data:
                await asyncio.to_thread(self._try_write, data)
            await asyncio.sleep(SAVE_SECONDS)

    def _state_bytes(self) -> bytes:
        return self._replica.save(self._position.created if self._position else "")

    def _write_state(self) -> None:
        data = self._state_bytes()
        if data:
            self._try_write(data)

    def _try_write(self, data: bytes) -> None:
        try:
            self._state_file.write(data)
        except OSError as error:
            self._counters["state_not_saved"] += 1
            _log.error("state not saved", problem=str(error))

    # -- nftables

    async def _put_up_tables(self) -> None:
        """Before anything is attached: only the way out is open, and what an earlier agent had judged stays so.

        Which sources are to be dropped is not known yet; what an earlier agent dropped stays dropped.
        """
        if self._source_check is None:
            await asyncio.to_thread(nft.remove, sourcecheck.TABLE)
        if self._gate is None:
            await asyncio.to_thread(nft.remove, gate.TABLE)
            return
        settings = self._settings
        taken = await asyncio.to_thread(interfaces.open_uplinks, settings.interfaces, settings.uplinks)
        if taken:
            raise strict.GateError(f"{', '.join(taken)}: an uplink that is a veth in a device group of somebody else's")
        await self._gate.put_up()

    def _check_sources(self) -> None:
        """The resolvers may be other ones; who keeps the tables writes them."""
        enforcer = self._enforcer
        found = sourcecheck.find_addresses(
            enforcer.tables.resolvers, enforcer.state.frontends, enforcer.snapshot.resolvers
        )
        if self._source_check is not None and self._source_check.want(sourcecheck.make_check(found)):
            self._tables_due.set()

    def _list_kept(self) -> list[nft.Kept]:
        return [one for one in (self._gate, self._source_check) if one is not None]

    async def _watch_tables(self) -> None:
        """A table that somebody took away is back as soon as the kernel tells of it; looked at now and then anyway."""
        with contextlib.ExitStack() as stack:
            try:
                stack.callback(NftWatch(self._tables_due).close)
            except OSError as error:  # no nftables in this kernel: in strict mode there would be no agent either
                _log.warning("nobody tells of nftables", problem=str(error))
            while kept := self._list_kept():
                await wait_event(self._tables_due, TABLES_SECONDS)
                self._tables_due.clear()
                for one in kept:
                    await one.check()

    # -- the bus

    async def _live_on_bus(self) -> None:
        connection = await bus.connect(self._settings, f"yett-nodeagent-{self._node}")
        self._connection = connection
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow(connection))
                group.create_task(self._speak(connection))
                group.create_task(self._verdicts.run(connection))
                group.create_task(self._follow_names(connection))
                group.create_task(self._usage.run(connection, self._settings.usage_seconds))
        finally:
            await self._verdicts.drain(connection)
            await bus.close(connection)

    async def _follow(self, connection: Client) -> None:
        filters = replica.filters(self._node)
        following = Follower(
            connection, wire.STREAM_POLICY, filters, start=self._position, tick_seconds=DOUBT_TICK_SECONDS
        )
        async with following as follower:
            async for item in follower:
                self._feed(item)
                self._position = Position(follower.position.created, follower.position.sequence)
                now = time.monotonic()
                if self._replica.wants_replay(now):
                    self._replica.note_replay()
                    follower.restart(self._replica.doubt)

    def _feed(self, item: Item) -> None:
        if isinstance(item, Reset):
            self._replica.reset(item.reason)
        elif isinstance(item, list):
            for message in item:
                applied = self._replica.feed(message, time.monotonic())
                if applied is not None:
                    self._take_applied(applied)

    def _take_applied(self, applied: Applied) -> None:
        self._heard_number, self._heard_at = applied.state.number, time.monotonic()
        self._mailbox.put_state(applied.state, applied.keys if self._enforcer.is_enforcing else None)

    async def _hear(self, heard: HeardName) -> None:
        now = boottime_seconds()
        lessons = self._names.hear(
            heard.subject, heard.resolution, age_seconds=heard.age_seconds, now=now, sequence=heard.sequence
        )
        if not lessons:
            return
        attributes = {"dns.question.name": heard.resolution.name, "k8s.node.name": self._node}
        context = extract(heard.trace)
        with _tracer.start_as_current_span("learn name", context, SpanKind.CONSUMER, attributes=attributes) as span:
            trace = traceparent(span)
            for lesson in lessons:
                self._datapath.learn(lesson.address, lesson.row, lesson.expires)
                self._storyteller.note_lesson(lesson, trace)

    async def _hear_own(self, message: Msg) -> None:
        try:
            observed = wire.decode(message.subject, message.data)
        except wire.WireError:  # counted where all observations are read
            return
        if not isinstance(observed, Observed):
            return
        if observed.forgotten:
            await self._swapped.wait()
            self._datapath.unlearn(self._names.forget_name(observed.name, observed.addresses, 0))
            return
        for lesson in self._names.hear_own(observed, self._node, now=boottime_seconds()):
            self._datapath.learn(lesson.address, lesson.row, lesson.expires)
            self._storyteller.note_lesson(lesson, (message.headers or {}).get(wire.HEADER_TRACE, ""))

    async def _follow_names(self, connection: Client) -> None:
        """Subscriptions follow the patterns; after a reconnection what was published meanwhile is read."""
        name_bus = NameBus(connection, self._hear)
        forgetting = self._forgetting = self._make_forgetting(connection, name_bus)
        await connection.subscribe(wire.subject_observed(self._node), cb=self._hear_own)
        async with asyncio.TaskGroup() as group:
            group.create_task(forgetting.run())
            group.create_task(self._follow_patterns(connection, name_bus, forgetting))
            group.create_task(self._hear_again(connection, name_bus))

    def _make_forgetting(self, connection: Client, name_bus: NameBus) -> Forgetting:
        async def carry_out(asked: Asked) -> None:
            await self._forget(asked, name_bus)

        return Forgetting(connection, Path(self._settings.state_dir) / AGENT_FILE, carry_out)

    async def _forget(self, asked: Asked, name_bus: NameBus) -> None:
        """Out of the kernel with it; what others vouch for is read from the stream again before it is missed.

        Not before a swap of layouts is over: what the old programs learned comes beside what is there.
        """
        await self._swapped.wait()
        forget = asked.forget
        if forget.name:
            withdrawn = self._names.forget_name(forget.name, forget.addresses, asked.sequence)
        else:
            told = self._names.void_node(forget.node, asked.sequence)
            if told:
                await name_bus.read_all_again()
            withdrawn = self._names.drop_told(told)
        if asked.is_done:
            return
        self._datapath.unlearn(withdrawn)
        if forget.node == self._node:
            self._datapath.unlearn_own()
        await asyncio.to_thread(self._datapath.tell_again)
        self._status_due.set()

    async def _follow_patterns(self, connection: Client, name_bus: NameBus, forgetting: Forgetting) -> None:
        await wait_event(forgetting.caught_up, HISTORY_SECONDS)
        while True:
            patterns = self._patterns
            await name_bus.set_patterns(patterns)
            if patterns == self._patterns:
                self._patterns_heard.set()
                await wait_event(self._patterns_due, STATUS_SECONDS)
                self._patterns_due.clear()

    async def _hear_again(self, connection: Client, name_bus: NameBus) -> None:
        """What was said while the connection was away, or was refused by other criteria: its tellers say it once."""
        heard: tuple[object, ...] | None = None
        while True:
            wanted = (connection.stats["reconnects"], *self._names.criteria)
            if not self._patterns or heard is None:
                heard = wanted if self._patterns else None  # the first patterns' own reading is by these
            if wanted != heard and self._patterns and connection.is_connected and await name_bus.read_all_again():
                heard = wanted
            else:
                await wait_event(self._criteria_due, STATUS_SECONDS)
                self._criteria_due.clear()

    async def _speak(self, connection: Client) -> None:
        """At every change and every second."""
        while True:
            status = self._make_status()
            try:
                headers = wire.headers_for(status, trace=status.trace)
                await connection.publish(wire.subject_status(self._node), wire.encode(status), headers=headers)
            except (nats.errors.Error, OSError) as error:
                _log.debug("status not sent", problem=str(error) or type(error).__name__)
            await wait_event(self._status_due, STATUS_SECONDS)
            self._status_due.clear()

    def _make_status(self) -> AgentStatus:
        state = self._enforcer.state
        return AgentStatus(
            node=self._node,
            epoch=state.epoch,
            revision=RevisionNumber(state.number),
            torn=not self._replica.is_proven,
            mode=self._settings.mode,
            signatures=self._signatures,
            default=state.config.node_defaults.get(self._node, state.config.default),
            enforcing=state.config.enforce,
            resolvers=self._enforcer.own_resolvers(),
            endpoints=self._endpoints,
            names=self._datapath.count_names(),
            learned=(*self._names.list_learned(boottime_seconds()), *self._list_own_names()),
            problems=self._problems(),
            forgotten=self._forgetting.sequence if self._forgetting else 0,
            counters=self._count(),
            trace=self._trace,
            build=self._loaded.layout,
            started_unix_nanos=self._started,
            pid=os.getpid(),
        )

    def _list_own_names(self) -> Iterator[LearnedName]:
        """What this node's pods were told, as far as it still admits."""
        now = boottime_seconds()
        for one in self._datapath.taught:
            name = self._storyteller.name_taught(one.endpoint, one.address, one.row)
            if name and one.expires > now:
                yield LearnedName(name=name, address=one.address, seconds=one.expires - now, is_own=True)

    def _problems(self) -> tuple[Problem, ...]:
        found = (*self._enforcer.problems(), *self._replica.problems)
        for kept in self._list_kept():
            if kept.problem:
                severity = "error" if kept is self._gate else "warning"
                told = Problem(object=f"nftables {kept.table}", path="", message=kept.problem, severity=severity)
                found = (told, *found)
        if self._links.taken_groups:
            names = ", ".join(sorted(self._links.taken_groups))
            message = "in a device group of somebody else's, which strict mode needs: shut"
            found = (Problem(object=f"interfaces {names}", path="", message=message), *found)
        return found

    def _count(self) -> dict[str, int]:
        parts: list[Mapping[str, int]] = [
            self._counters,
            self._enforcer.counters,
            self._datapath.counters,
            self._datapath.read_reasons(),
            self._verdicts.counters,
            self._flow_log.counters if self._flow_log else {},
            self._usage.left_out,
            {f"names_{name}": count for name, count in self._names.counters.items()},
            {"revisions_refused": self._replica.revisions_refused} if self._replica.revisions_refused else {},
            {f"undecodable_{name}": count for name, count in self._replica.undecodable.items()},
        ]
        if self._gate is not None:
            parts.append({"gate_put_back": self._gate.restored})
        if self._source_check is not None:
            check = self._source_check
            parts.append({FORGED_PACKETS: check.packets, "source_check_put_back": check.restored})
        return {name: count for part in parts for name, count in part.items()}

    def _put_metrics(self, page: Page) -> None:
        numbers = metrics.Numbers(
            heard=self._heard_number or self._enforcer.state.number,
            ring_bytes=self._verdicts.waiting_bytes,
            queued=self._verdicts.queued,
            verdicts=self._verdict_counts.counted,
            refused=self._verdict_counts.refused,
            names=self._names.counters,
            maps={**self._datapath.read_occupancy(), **self._fill.maps},
            quotas=self._fill.quotas,
            lost=self._fill.lost,
        )
        metrics.put_agent(page, self._make_status(), numbers)
        page.put_common(self._connection)

    # -- pins

    async def _tidy_pins(self, loaded: loader.Loaded) -> None:
        """Once every interface runs the new programs, older builds' and layouts' pins go."""
        await self._links.looked.wait()
        await self._swapped.wait()
        for path in loaded.stale:
            path.unlink(missing_ok=True)
        for folder in Path(self._settings.pin_root).iterdir():
            if folder.is_dir() and folder != loaded.folder:
                await asyncio.to_thread(shutil.rmtree, folder)
                self._descriptions.remove(folder.name)
                _log.info("pins of another layout removed", folder=folder.name)
