"""One node's enforcement: a proven state and the interfaces of today, carried into the kernel in safe steps.

The order of a change, each step safe to die after: numbers to disk; tables with the rulesets of before and after; names
that new patterns already have; the plan (writes, flip, epoch, deletes, epoch); the rulesets of after alone; numbers
freed. Anything that fails leaves the last good state, says so, and is tried again with the next change.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.policy import EndpointRow
from schemas.status import FOREIGN_ENFORCER, EndpointStatus, Problem
from schemas.terms import NodeName, RulesetHash
from services.common.log import get_logger
from services.nodeagent.binding import Binding, Bound, bind_links, remember_bindings
from services.nodeagent.datapath import Datapath, DatapathError
from services.nodeagent.links import Snapshot
from services.nodeagent.memory import MemoryFile, keep_present, recall, take_over
from services.nodeagent.numbers import Capacities, NumbersExhausted
from services.nodeagent.policystate import PolicyState
from services.nodeagent.switch import SWITCHED_OFF
from services.nodeagent.tables import EndpointEntry, Tables
from services.nodeagent.usage import Owner, Watched
from services.nodeagent.verdicts import PodName
from services.nodeagent.wanted import Limits, Wanted

_log = get_logger("enforcer")

Prepared = Callable[[Tables, PolicyState], Awaitable[None]]
"""Called when the tables of a change are known and nothing is written yet."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where this agent keeps things. ``layout`` names the pin folder, ``former`` another one that is in force."""

    node: NodeName
    layout: str
    state_dir: Path
    former: str = ""


class Enforcer:
    """Owns ``Wanted`` and uses ``Datapath``. One caller at a time."""

    def __init__(self, place: Place, datapath: Datapath, capacities: Capacities, limits: Limits | None = None) -> None:
        self._place = place
        self._datapath = datapath
        self._capacities = capacities
        self._limits = limits
        self._file = MemoryFile(place.state_dir)
        found = self._file.read()
        if place.former:
            found = take_over(found, layout=place.layout, former=place.former, capacities=capacities) or found
        self._memory = recall(found, datapath, layout=place.layout, capacities=capacities)
        self._resumed = keep_present(self._memory.rulesets, datapath.present_rulesets())
        self._wanted = self._make_wanted()
        self._is_whole = False
        self._enforced_at: dict[int, float] = {}
        self.state = PolicyState()
        """The state in force."""
        self.snapshot = Snapshot()
        self.bindings: dict[int, Binding] = {}
        self.failure: Problem | None = None
        self.counters: Counter[str] = Counter()

    def _make_wanted(self) -> Wanted:
        """Tables from nothing, over the rulesets that the kernel may refer to."""
        wanted = Wanted(self._place.node, self._memory.spaces, self._limits)
        wanted.resume({RulesetHash(name): one for name, one in self._resumed.items()}, self._memory.peersets)
        return wanted

    @property
    def tables(self) -> Tables:
        """The tables in force."""
        return self._wanted.tables

    @property
    def is_enforcing(self) -> bool:
        """Whether a state has been applied since the start."""
        return self._is_whole

    async def enforce(
        self,
        state: PolicyState,
        changed: Mapping[str, frozenset[Any]] | None,
        snapshot: Snapshot,
        prepared: Prepared,
    ) -> bool:
        """Bring the kernel to this state and these interfaces; whether it worked."""
        try:
            await self._enforce(state, changed if self._is_whole else None, snapshot, prepared)
        except (NumbersExhausted, DatapathError) as error:
            self._fail(error)
            return False
        self.failure = None
        return True

    async def _enforce(
        self,
        state: PolicyState,
        changed: Mapping[str, frozenset[Any]] | None,
        snapshot: Snapshot,
        prepared: Prepared,
    ) -> None:
        wanted, datapath = self._wanted, self._datapath
        bindings = self._bind(state, snapshot)
        wanted.prepare(state, changed, bindings, snapshot.gateways, own_resolvers=snapshot.resolvers)
        self._remember(state, bindings)
        await prepared(wanted.tables, state)
        self._apply_touched(is_whole=self._is_whole)
        self.state, self.snapshot, self.bindings = state, snapshot, bindings
        wanted.finish(state)
        self._apply_touched(is_whole=True)
        wanted.settle()
        self._is_whole = True
        self._remember(state, bindings)
        self._note_enforced(bindings)
        self.counters["entries_written"] = datapath.written

    def _apply_touched(self, *, is_whole: bool) -> None:
        touched = self._wanted.take_touched()
        self._datapath.apply(self._datapath.plan(self._wanted.tables, touched if is_whole else None))

    def _bind(self, state: PolicyState, snapshot: Snapshot) -> dict[int, Binding]:
        links = [one.link for one in snapshot.links]
        memory, rows = self._memory, state.endpoints.values()
        bound = Bound(memory.bindings, memory.guesses, memory.named_at)
        bindings = bind_links(links, rows, state.addresses, bound)
        bound = remember_bindings(bindings.values(), bound, frozenset(row.uid for row in rows))
        memory.bindings, memory.guesses = dict(bound.uids), sorted(bound.guesses)
        memory.named_at = {uid: sorted(addresses) for uid, addresses in bound.named.items()}
        return bindings

    def _remember(self, state: PolicyState, bindings: Mapping[int, Binding]) -> None:
        """Before the kernel: what these numbers mean, and the content of every ruleset it may refer to."""
        rulesets = {str(name): one for name, one in self._wanted.rulesets().items()}
        if rulesets != self._memory.rulesets:
            self._memory.peersets = {**self._memory.peersets, **dict(state.peersets)}
        self._memory.rulesets = rulesets
        self._file.write(self._memory)

    def _note_enforced(self, bindings: Mapping[int, Binding]) -> None:
        now = time.monotonic()
        for ifindex in self.tables.endpoints:
            self._enforced_at.setdefault(ifindex, now)
        for gone in self._enforced_at.keys() - bindings.keys():
            del self._enforced_at[gone]

    def _fail(self, error: NumbersExhausted | DatapathError) -> None:
        """The last good state stays; what is wanted is worked out from nothing at the next change."""
        if isinstance(error, NumbersExhausted):  # to who reads counters an array without a free index is a full map
            self._datapath.counters[f"refused_{error.map}"] += 1
        self.failure = Problem(
            object=f"map {error.map}", path="", message=f"{error}; the last good state stays in force"
        )
        self.counters["failed_changes"] += 1
        _log.error("change not enforced", problem=str(error))
        referred = self._datapath.referred_rulesets()
        self._resumed = {name: one for name, one in self._memory.rulesets.items() if name in referred}
        self._wanted = self._make_wanted()
        self._is_whole = False
        if self.state.revision is not None:
            self._retreat()

    def _retreat(self) -> None:
        """Take out again what the failed change had written, or a full map would stay full for ever."""
        try:
            snapshot = self.snapshot
            self._wanted.prepare(self.state, None, self.bindings, snapshot.gateways, own_resolvers=snapshot.resolvers)
            self._wanted.finish(self.state)
            self._datapath.apply(self._datapath.plan_retreat(self._wanted.tables))
            self._wanted.settle()
        except (NumbersExhausted, DatapathError) as error:
            _log.error("what a failed change had written stays in the maps", problem=str(error))

    def collect(self) -> None:
        """Clean up names whose time is long over, and domain rows that nothing refers to any more."""
        referred = self._datapath.collect()
        self._wanted.forget_rows(self._wanted.retired_rows() - referred)

    # -- what others need to know

    def pods(self) -> dict[int, PodName]:
        """Endpoint id -> whose it is."""
        return {
            entry.id: PodName(row.namespace, row.pod, entry.egress, row.owner, row.labels)
            for entry, row in self._bound()
        }

    def owners(self) -> dict[int, Owner]:
        """Endpoint id -> whose it is, with its uid."""
        return {entry.id: Owner(row.namespace, row.pod, row.uid) for entry, row in self._bound()}

    def _bound(self) -> Iterator[tuple[EndpointEntry, EndpointRow]]:
        """Every entry whose pod is known, with the pod's row."""
        rows = {row.uid: row for row in self.state.endpoints.values()}
        for ifindex, entry in self.tables.endpoints.items():
            row = rows.get(self.bindings[ifindex].uid) if ifindex in self.bindings else None
            if row is not None:
                yield entry, row

    def endpoint_ids(self) -> dict[str, int]:
        """Uid -> endpoint id, of every pod that has one, known by name or not."""
        return dict(self._memory.spaces.endpoint_ids.given)

    def watched(self) -> list[Watched]:
        """The rulesets in force, and where their rules are counted."""
        enforced = {handle for one in self.tables.endpoints.values() for handle in (one.egress, one.ingress)}
        shadows = {
            handle for one in self.tables.endpoints.values() for handle in (one.egress_shadow, one.ingress_shadow)
        }
        found = []
        for handle, entry in self.tables.rulesets.items():
            ruleset = self._wanted.find_ruleset(handle)
            if ruleset is not None:
                found.append(Watched(entry.counters, ruleset, is_shadow=handle in shadows - enforced))
        return found

    def rulesets_by_handle(self) -> dict[int, Any]:
        """Handle -> ruleset in force."""
        found = {handle: self._wanted.find_ruleset(handle) for handle in self.tables.rulesets}
        return {handle: one for handle, one in found.items() if one is not None}

    def patterns_by_row(self) -> dict[int, str]:
        """Domain row -> pattern, retired ones included."""
        return {number: pattern for pattern, number in self._memory.spaces.domain_rows.given.items()}

    def judged(self) -> dict[int, str]:
        """ifindex -> life of the interfaces with programs and endpoint in place: those that strict mode opens."""
        return {
            one.link.ifindex: one.link.life
            for one in self.snapshot.links
            if one.link.ifindex in self.tables.endpoints and not one.is_foreign
        }

    def own_resolvers(self) -> tuple[str, ...]:
        """The addresses of the node's own DNS cache that are trusted now."""
        return tuple(sorted(self.snapshot.resolvers & {address for address, _ in self.tables.resolvers}))

    def problems(self) -> tuple[Problem, ...]:
        """What a person must hear about."""
        off = () if self.state.config.enforce else (SWITCHED_OFF,)
        told = (*_tell_full_names(self._datapath.full), *_tell_foreign(self.snapshot), *_tell_disputed(self.snapshot))
        own = (*off, *told, *self._wanted.problems.values())
        return own if self.failure is None else (self.failure, *own)

    def endpoints(self) -> tuple[EndpointStatus, ...]:
        """Every pod interface as it is now."""
        rows = {row.uid: row for row in self.state.endpoints.values()}
        found = []
        for one in self.snapshot.links:
            link = one.link
            binding = self.bindings.get(link.ifindex)
            row = rows.get(binding.uid) if binding else None
            is_ready = row is not None and bool(link.addresses) and not one.is_bare
            since = self._enforced_at.get(link.ifindex)
            window = (max(since, one.attached) - one.appeared) * 1000 if since and one.appeared else -1.0
            found.append(
                EndpointStatus(
                    pod=f"{row.namespace}/{row.pod}" if row else "",
                    interface=link.name,
                    ifindex=link.ifindex,
                    state=_name_state(is_ready, binding, is_foreign=one.is_foreign),
                    addresses=link.addresses,
                    window_millis=round(window, 3),
                    foreign=one.foreign,
                )
            )
        return tuple(found)


def _tell_full_names(full: str) -> tuple[Problem, ...]:
    """No change fails for want of room among names; whoever is told a new one is not let through by it."""
    if not full:
        return ()
    message = f"{full}: names at further addresses open nothing; YETT_MAP_RESOLUTIONS gives it room"
    return (Problem(object="map resolutions", path="", message=message),)


def _tell_foreign(snapshot: Snapshot) -> tuple[Problem, ...]:
    """One problem for all interfaces on which others are first: what those accept never comes to us."""
    found = {one.link.name: one.foreign for one in snapshot.links if one.foreign}
    if not found:
        return ()
    programs = "; ".join(sorted(set(found.values())))
    message = f"{programs}: runs before ours and is left alone; yett migrate says what to turn off"
    return (Problem(object=f"{FOREIGN_ENFORCER} on {', '.join(sorted(found))}", path="", message=message),)


def _tell_disputed(snapshot: Snapshot) -> Iterator[Problem]:
    """One problem an interface: whose it is was not taken from an answer that may be a former pod's."""
    for link in (one.link for one in snapshot.links if one.link.disputed):
        named = ", ".join(link.disputed)
        message = f"its CNI plugin's answer names {named}, to which no host route leads: not believed"
        yield Problem(object=f"interface {link.name}", path="", message=message)


def _name_state(is_ready: bool, binding: Binding | None, *, is_foreign: bool) -> str:
    if not is_ready:
        return "waiting"
    if binding is not None and binding.claimed_twice:
        return "claimed-twice"
    return "foreign" if is_foreign else "enforced"
