"""The programs in the kernel as an engine: the agent's own path fills the maps, BPF_PROG_TEST_RUN sends the packets.

Rules of this module:

* Maps are filled as an agent fills them: rows, replica, wanted tables, plan, datapath; one node after the other.
* One interface, loopback, stands for all: before a packet is sent, the endpoint it belongs to is written into its slot.
* Every crossing is a new flow. Where a flow of an earlier one covers it (no verdict is told then), flows are forgotten
  and it is sent again.
* Time passes by moving what was learned: an expiry is written as far from the kernel's clock as it is from ``at``. One
  nearer than ``EDGE_SECONDS`` is moved away from now, because the kernel's second cannot be chosen.
* What is pinned is removed at the end, and what a killed run left behind at the next start.

Deliberately absent: routes, what a verdict means for a probe.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from msgspec import structs

from schemas import wire
from schemas.policy import EndpointRow
from schemas.resolution import Resolution
from schemas.terms import Direction, NodeName, Reason, Tier, Verdict
from services.common import bpf
from services.common.cache import PROGRAMS, find_cache
from services.controller.policy.model import Finding, ObjectKey
from services.nodeagent import mapcodec
from services.nodeagent.binding import Binding, Link
from services.nodeagent.compiled import LoaderError
from services.nodeagent.datapath import Datapath, DatapathError, boottime_seconds
from services.nodeagent.events import decode_verdict
from services.nodeagent.loader import load
from services.nodeagent.names import BusNames, Lesson
from services.nodeagent.numbers import PORT_CLASSES, Capacities, NumbersExhausted, Spaces, make_spaces
from services.nodeagent.policystate import PolicyState
from services.nodeagent.tables import Tables
from services.nodeagent.verdicts import PodName, Storyteller
from services.nodeagent.wanted import Limits, Wanted
from services.scenario.frames import make_frame
from services.scenario.replay import ReplayError, follow, publish
from services.scenario.route import Crossing
from services.scenario.world import Cluster

BPFFS = Path("/sys/fs/bpf")
PIN_PREFIX = "yett-scenario-"
SLOTS = 4096
SIZES = {
    "ENDPOINT_SLOTS": SLOTS,
    "QUERY_SETS": 1,
    "FLOWS": 1024,
    "FRAGMENTS": 1024,
    "SEEN": 1024,
    "VERDICT_PAGES": 64,
    "RESOLUTION_PAGES": 64,
}
"""One packet at a time needs no room for many."""
LOOPBACK = 1
ELSEWHERE = SLOTS + 1
"""The interface that other packets came in by: neither this node (0) nor the pod's own."""
TEACHER = NodeName("elsewhere")
"""The node whose recorder told of the resolutions."""
EPOCH_SECONDS = 1_000_000
"""What ``at`` 0 is on the clock by which names are heard, so that times before it can be told too."""
EDGE_SECONDS = 30
TAG_FIRST, TAG_LAST = 2048, 60_999
_ACCEPTED, _DROPPED = -1, 2
_FLOW_MAPS = ("flows", "fragments")


class KernelUnavailable(RuntimeError):
    """The kernel engine cannot run, or not go on; the message says why."""


@contextlib.contextmanager
def open_kernel() -> Iterator[KernelEngine]:
    """Programs loaded for as long as they are needed. KernelUnavailable if they cannot be, or cannot go on."""
    if os.geteuid() != 0:
        raise KernelUnavailable("the kernel engine loads programs: it needs root")
    if not any(line.split()[1:3] == [str(BPFFS), "bpf"] for line in Path("/proc/mounts").read_text().splitlines()):
        raise KernelUnavailable(f"no bpffs at {BPFFS}: mount -t bpf bpf {BPFFS}")
    remove_stale()
    pins = _find_free_pins()
    try:
        engine = KernelEngine(pins)
        try:
            yield engine
        finally:
            engine.close()
    except (LoaderError, DatapathError, NumbersExhausted, ReplayError, bpf.BpfError) as error:
        raise KernelUnavailable(str(error)) from error
    finally:
        shutil.rmtree(pins, ignore_errors=True)


def _find_free_pins() -> Path:
    """A folder for each engine of this process: one may be open beside another."""
    own = f"{PIN_PREFIX}{os.getpid()}"
    names = itertools.chain([own], (f"{own}-{number}" for number in itertools.count(2)))
    return next(path for name in names if not (path := BPFFS / name).exists())


def remove_stale() -> None:
    """Pins of runs whose process is gone."""
    for path in BPFFS.glob(f"{PIN_PREFIX}*"):
        owner = path.name.removeprefix(PIN_PREFIX).partition("-")[0]
        if owner.isdecimal() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Node:
    """One node as its agent sees it now."""

    state: PolicyState
    wanted: Wanted
    endpoints: dict[ObjectKey, bytes]
    """Pod -> its endpoint entry, moved to loopback."""
    storyteller: Storyteller


class KernelEngine:
    """Loaded programs and their maps. ``close`` leaves the pins to ``open_kernel``."""

    def __init__(self, pins: Path) -> None:
        loaded = load(pins, SIZES, find_cache() / PROGRAMS)
        with contextlib.ExitStack() as undo:
            self._datapath = Datapath(loaded.maps, has_flows=False)
            undo.callback(self._datapath.close)
            self._datapath.open()
            self._flows = [undo.enter_context(bpf.BpfMap(loaded.maps[name])) for name in _FLOW_MAPS]
            self._endpoints = undo.enter_context(bpf.BpfMap(loaded.maps["endpoints"]))
            self._ring = undo.enter_context(self._datapath.open_verdicts())
            self._programs = {}
            for direction, name in ((Direction.EGRESS, "from_pod"), (Direction.INGRESS, "to_pod")):
                self._programs[direction] = bpf.open_object(loaded.programs[name])
                undo.callback(os.close, self._programs[direction])
            self._undo = undo.pop_all()
        self._tags = itertools.count()
        self._tables: Tables | None = None
        self._port_classes = make_spaces().port_classes
        self._slot = mapcodec.encode_index(LOOPBACK)

    def close(self) -> None:
        """Close every handle."""
        self._undo.close()

    def judge(self, cluster: Cluster, crossings: Sequence[Crossing]) -> list[Finding]:
        """One finding a crossing, in order."""
        findings: dict[int, Finding] = {}
        by_node: dict[NodeName, list[int]] = {}
        for index, crossing in enumerate(crossings):
            if crossing.is_local:
                findings[index] = Finding(Verdict.ALLOW, Tier.NONE, Reason.HAIRPIN)
            else:
                by_node.setdefault(crossing.pod.node, []).append(index)
        messages = publish(cluster.state.rows()) if by_node else []
        for name, indices in by_node.items():
            node = self._enter(follow(messages, name), name, [crossings[index] for index in indices])
            self._judge_on(node, cluster, {index: crossings[index] for index in indices}, findings)
        return [findings[index] for index in range(len(crossings))]

    # -- one node

    def _enter(self, state: PolicyState, name: NodeName, crossings: Sequence[Crossing]) -> _Node:
        """Fill the maps as this node's agent would, with an interface for every pod that is asked about."""
        limits = Limits(events_per_second=0xFFFFFFFF)
        # What policies say is asked, whether the cluster's switch is on or off: the oracle does not know of it.
        state = replace(state, config=structs.replace(state.config, enforce=True))
        wanted = Wanted(name, self._make_spaces(), limits)
        pods = {crossing.pod.key: crossing.pod for crossing in crossings}
        rows = {key: state.endpoints[key] for key in pods}
        links = {key: LOOPBACK + 1 + index for index, key in enumerate(pods)}
        bindings = {
            ifindex: Binding(Link(ifindex, f"pod{ifindex}", pods[key].addresses), rows[key].uid)
            for key, ifindex in links.items()
        }
        wanted.prepare(state, None, bindings)
        wanted.finish(state)
        touched = _find_touched(self._tables, wanted.tables) if self._tables is not None else None
        self._datapath.apply(self._datapath.plan(wanted.tables, touched))
        self._tables = wanted.tables
        entries = {key: wanted.tables.endpoints[ifindex] for key, ifindex in links.items()}
        storyteller = _make_storyteller(name, wanted, state, {entries[key].id: rows[key] for key in pods})
        moved = {key: mapcodec.encode_endpoint(replace(entry, ifindex=LOOPBACK)) for key, entry in entries.items()}
        return _Node(state, wanted, moved, storyteller)

    def _make_spaces(self) -> Spaces:
        """Numbers for one node. Classes of ports keep theirs: a wide range is 65,000 entries that need no rewriting."""
        spaces = make_spaces(Capacities(endpoint_ids=SLOTS))
        if len(self._port_classes.given) < PORT_CLASSES // 2:
            spaces.port_classes = self._port_classes
        else:
            self._port_classes = spaces.port_classes
        return spaces

    def _judge_on(
        self, node: _Node, cluster: Cluster, crossings: dict[int, Crossing], findings: dict[int, Finding]
    ) -> None:
        """Moment by moment; a moment matters only where names do."""
        lessons = _hear(node, cluster)
        by_moment: dict[float, list[int]] = {}
        for index, crossing in crossings.items():
            by_moment.setdefault(crossing.at if lessons else 0.0, []).append(index)
        for at, indices in by_moment.items():
            self._forget_flows()
            self._datapath.forget_names()
            self._teach(node, lessons, at)
            for index in indices:
                findings[index] = self._send(node, crossings[index])

    def _teach(self, node: _Node, lessons: Sequence[tuple[float, Lesson]], at: float) -> None:
        """What was heard by then, its expiry as far from now as it is from ``at``."""
        now = boottime_seconds()
        for heard, lesson in lessons:
            if heard > at:
                continue
            left = lesson.expires - (EPOCH_SECONDS + at)
            left += EDGE_SECONDS if left > 0 else -EDGE_SECONDS
            self._datapath.learn(lesson.address, lesson.row, max(1, int(now + left)))
            node.storyteller.note_lesson(lesson)

    # -- one packet

    def _send(self, node: _Node, crossing: Crossing) -> Finding:
        self._endpoints.put(self._slot, node.endpoints[crossing.pod.key])
        finding = self._send_once(node, crossing)
        if finding is None:
            self._forget_flows()
            finding = self._send_once(node, crossing)
        # Passed without a word twice: neighbour discovery and its like, which always pass.
        return finding or Finding(Verdict.ALLOW, Tier.NONE, Reason.ALWAYS)

    def _send_once(self, node: _Node, crossing: Crossing) -> Finding | None:
        """What was concluded; None if the packet passed and no verdict was told."""
        self._ring.consume(1 << 16)
        program = self._programs[crossing.direction]
        frame = make_frame(crossing.packet, TAG_FIRST + next(self._tags) % (TAG_LAST - TAG_FIRST))
        ran = bpf.run_program(program, frame, ingress_ifindex=_find_ingress(crossing), name=crossing.direction.name)
        records = self._ring.consume(16)
        if not records:
            if ran.action == _ACCEPTED:
                return None
            return Finding(Verdict.DENY, Tier.NONE, Reason.UNKNOWN)
        event = node.storyteller.tell(decode_verdict(records[-1]), unix_nanos=0)
        verdict = event.verdict if event is not None else Verdict.DENY
        passes = verdict is not Verdict.DENY
        if event is None or ran.action != (_ACCEPTED if passes else _DROPPED):
            raise KernelUnavailable(f"the programs answer {ran.action} and tell of {verdict.name}: they contradict")
        return Finding(verdict, event.tier, event.reason, event.policy, event.name)

    def _forget_flows(self) -> None:
        for one in self._flows:
            one.delete_many(one.keys())


def _find_touched(before: Tables, after: Tables) -> dict[str, set[object]]:
    """The keys of each table that differ."""
    touched: dict[str, set[object]] = {}
    for field in fields(Tables):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if isinstance(old, dict) and isinstance(new, dict):
            keys: set[object] = {key for key, value in new.items() if old.get(key) != value}
            touched[field.name] = keys.union(key for key in old if key not in new)
    return {name: keys for name, keys in touched.items() if keys}


def _find_ingress(crossing: Crossing) -> int:
    """The interface that a packet came in by, as the program sees it."""
    if crossing.direction is Direction.EGRESS:
        return LOOPBACK
    if crossing.packet.source in crossing.pod.addresses:
        return LOOPBACK
    return 0 if crossing.packet.from_own_node else ELSEWHERE


def _make_storyteller(name: NodeName, wanted: Wanted, state: PolicyState, rows: dict[int, EndpointRow]) -> Storyteller:
    storyteller = Storyteller(name)
    handles = {handle: wanted.find_ruleset(handle) for handle in wanted.tables.rulesets}
    storyteller.set_state(
        pods={number: PodName(row.namespace, row.pod) for number, row in rows.items()},
        rulesets={handle: ruleset for handle, ruleset in handles.items() if ruleset is not None},
        patterns={row: pattern for pattern, row in wanted.tables.domains.items()},
        owners=state.addresses,
    )
    return storyteller


def _hear(node: _Node, cluster: Cluster) -> list[tuple[float, Lesson]]:
    """(when, lesson) of every answer, as the agent would learn it when another node's recorder tells of it."""
    names, tables = BusNames(), node.wanted.tables
    names.set_tables(node.state.config, tables.domains, tables.guard, tables.ipcache)
    heard: list[tuple[float, Lesson]] = []
    for answer in sorted(cluster.answers, key=lambda each: each.at):
        if not wire.is_legal_name(answer.name):
            continue
        subject = wire.subject_resolution(TEACHER, answer.name)
        ttl = min(int(answer.ttl_seconds), 0x7FFFFFFF)
        told = Resolution(name=answer.name, addresses=answer.addresses, ttl_seconds=ttl, node=TEACHER)
        lessons = names.hear(subject, told, age_seconds=0.0, now=EPOCH_SECONDS + answer.at)
        heard += [(answer.at, lesson) for lesson in lessons]
    return heard
