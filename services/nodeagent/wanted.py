"""A proven policy state and what is local -> the wanted content of every map.

Rules of this module:

* Only *local* rulesets count: those that an endpoint of this node names. Selectors, CIDRs, ports and patterns of others
  are never looked at.
* Work follows what changed: a pod elsewhere costs its own rows, whatever the size of the cluster.
* A change of rulesets goes in two steps. ``prepare``: tables that hold the rulesets of before and after, endpoints
  already at the new ones. ``finish``: the new rulesets alone. ``settle`` when the kernel has dropped the rest.
* A pattern that no rule uses any more keeps its domain row until ``forget_rows``: learned addresses still refer to it.

Deliberately absent: bytes, order of writes, I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from schemas import wire
from schemas.policy import (
    CidrPeer,
    Config,
    EndpointRow,
    FrontendRow,
    NodePeer,
    PeersetRow,
    PodPeer,
    PortRange,
    Resolver,
    Ruleset,
)
from schemas.selectors import parse_address, parse_network
from schemas.status import Problem
from schemas.terms import ANY_PROTOCOL, AddressKind, Direction, FrontendKind, IdentityId, NodeName, RulesetHash
from services.nodeagent.binding import Binding
from services.nodeagent.classes import ClassTable, TrackedDict, digest_texts
from services.nodeagent.fronts import FrontKey, Fronts
from services.nodeagent.guard import build_guard
from services.nodeagent.identities import IdentityIndex
from services.nodeagent.numbers import Spaces
from services.nodeagent.patterns import find_covering
from services.nodeagent.policystate import PolicyState
from services.nodeagent.portranges import cut_ranges
from services.nodeagent.prefixes import close_prefixes
from services.nodeagent.rules import Parts, RulesetRefused, take_apart
from services.nodeagent.switch import apply_switch
from services.nodeagent.tables import (
    CLASS_CIDR,
    CLASS_DOMAIN,
    CLASS_IDENTITY,
    RESOLVER_NODE_LOCAL,
    RESOLVER_OUTSIDE,
    RESOLVER_TRUSTED,
    CidrEntry,
    ConfigEntry,
    EndpointEntry,
    RulesetEntry,
    Tables,
)

K = TypeVar("K")
V = TypeVar("V")

FIRST_EXTRA_ADDRESS = 2
"""``endpoint_addresses`` values below this one stand for the two addresses in the endpoint itself."""
_UNKNOWN_POD = "pods"
"""Marks a prefix of the cluster's own pods among a node's contents; no CIDR peer has this text."""
_ON_EVERY_ADDRESS = frozenset({FrontendKind.NODE_PORT, FrontendKind.HOST_PORT})


@dataclass(slots=True)
class _InForce:
    handle: int
    ruleset: Ruleset
    parts: Parts


@dataclass(frozen=True, slots=True)
class Limits:
    """What every endpoint may learn and report; from the agent's settings."""

    names_per_endpoint: int = 4096
    events_per_second: int = 1000
    allow_events: bool = True


def _make_tables() -> Tables:
    """Tables whose dicts remember what was touched."""
    tracked: dict[str, TrackedDict[object, object]] = {
        one.name: TrackedDict() for one in fields(Tables) if one.name != "config"
    }
    return Tables(**tracked)  # type: ignore[arg-type]  # one dict type for all fields


@dataclass(slots=True)
class _Local:
    """What the last step was given."""

    config: Config = field(default_factory=Config)
    bindings: Mapping[int, Binding] = field(default_factory=dict)
    own_addresses: frozenset[str] = frozenset()
    extra_addresses: frozenset[str] = frozenset()
    resolvers: tuple[Resolver, ...] = ()
    """Those of ``config``, then the node's own."""


class Wanted:
    """The tables of one node, kept up to date."""

    def __init__(self, node: NodeName, spaces: Spaces, limits: Limits | None = None) -> None:
        self.node = node
        self.spaces = spaces
        self.tables = _make_tables()
        self.problems: dict[str, Problem] = {}
        """What a person must hear about, by object."""
        self._limits = limits or Limits()
        self._local = _Local()
        self._in_force: dict[RulesetHash, _InForce] = {}
        self._retired: set[str] = set(spaces.domain_rows.given)
        peers, ports = _tracked(self.tables.peers), _tracked(self.tables.ports)
        self._identity_table: ClassTable[int, str] = ClassTable(
            spaces.identity_classes, peers, flag=CLASS_IDENTITY, make_key=_key_of_members
        )
        self._cidr_table: ClassTable[str, str] = ClassTable(
            spaces.cidr_classes, peers, flag=CLASS_CIDR, make_key=_key_of_members
        )
        self._domain_table: ClassTable[str, str] = ClassTable(
            spaces.domain_rows, peers, flag=CLASS_DOMAIN, make_key=lambda node, _: node
        )
        self._port_table: ClassTable[range, PortRange] = ClassTable(
            spaces.port_classes, ports, flag=0, make_key=_key_of_ports
        )
        self._identities = IdentityIndex(self._identity_table, _tracked(self.tables.classes))
        self._fronts = Fronts(spaces.sets, _tracked(self.tables.frontends), _tracked(self.tables.mixed))
        self._segments: dict[range, int] = {}
        self._classified_pod_cidrs: tuple[str, ...] = ()
        self._is_resumed = False
        self._guarded: frozenset[str] | None = None
        self._gateway_fronts: dict[FrontKey, FrontendRow] = {}
        self._gateway_basis: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())

    # -- the steps

    def prepare(
        self,
        state: PolicyState,
        changed: Mapping[str, frozenset[Any]] | None,
        bindings: Mapping[int, Binding],
        extra_addresses: frozenset[str] = frozenset(),
        *,
        own_resolvers: frozenset[str] = frozenset(),
    ) -> None:
        """Facts of today, rulesets of before and after, endpoints at those of after.

        ``changed``: keys of rows that are new, changed or gone, by table of ``PolicyState``; None: everything may be.
        ``extra_addresses``: the node's own beyond its Node object's (gateways). ``own_resolvers``: those of its own DNS
        cache.
        NumbersExhausted leaves this object unusable: make a new one.
        """
        if state.config.enforce != self._local.config.enforce:
            changed = None
        state = apply_switch(state)
        self._local.bindings = bindings
        trusted = dict(self.tables.resolvers)
        identities, fronts = self._set_facts(state, changed)
        self._set_config(state, extra_addresses)
        self._set_resolvers(state, own_resolvers)
        fronts |= self._set_gateway_fronts(state, fronts)
        self._set_rulesets(state, set(self._in_force) | self._find_local(state))
        # Resolvers and pod ranges are part of a set's verdict.
        is_everything = changed is None or "config" in changed or trusted != self.tables.resolvers
        self._judge_sets(None if is_everything else fronts | self._fronts.using(identities))
        self._set_endpoints(state)

    def resume(self, rulesets: Mapping[RulesetHash, Ruleset], peersets: Mapping[str, PeersetRow]) -> None:
        """Before the first ``prepare`` of a restarted agent: the rulesets that the kernel still refers to."""
        for name, ruleset in rulesets.items():
            self._enforce(name, ruleset, peersets)
        self._is_resumed = True

    def rulesets(self) -> dict[RulesetHash, Ruleset]:
        """The rulesets in force, for ``resume``."""
        return {name: one.ruleset for name, one in self._in_force.items()}

    def finish(self, state: PolicyState) -> None:
        """The rulesets of after alone."""
        self._set_rulesets(state, self._find_local(apply_switch(state)))
        self._judge_sets(set())

    def settle(self) -> None:
        """What these tables do not hold is gone from the kernel: its numbers are free."""
        for table in (self._identity_table, self._cidr_table, self._domain_table, self._port_table):
            table.settle()
        self._fronts.settle()
        self.spaces.handles.keep_only(self._in_force)
        self.spaces.counters.keep_only(self._in_force)
        self.spaces.endpoint_ids.keep_only(one.uid for one in self._local.bindings.values() if one.uid)

    def take_touched(self) -> dict[str, set[object]]:
        """Keys of every table that changed since the last call (``config`` is always to be compared)."""
        tracked = ((one.name, getattr(self.tables, one.name)) for one in fields(Tables))
        return {
            name: table.take_touched() for name, table in tracked if isinstance(table, TrackedDict) and table.touched
        }

    # -- facts

    def _set_facts(
        self, state: PolicyState, changed: Mapping[str, frozenset[Any]] | None
    ) -> tuple[set[int], set[FrontKey]]:
        """Namespaces before identities before addresses, so that each is evaluated once. Identities and frontends that
        were touched."""
        if changed is None:
            changed = self._list_all(state)
        namespaces = changed.get("namespaces", frozenset())
        for name in namespaces:
            row = state.namespaces.get(name)
            self._identities.set_namespace(name, row.labels if row else None)
        identities: set[int] = set(changed.get("identities", ()))
        for number in identities:
            self._identities.set_identity(number, state.identities.get(IdentityId(number)))
        for address in changed.get("addresses", ()):
            self._set_address(state, address)
        fronts: set[FrontKey] = set(changed.get("frontends", ()))
        for key in fronts:
            self._fronts.set_frontend(key, state.frontends.get(key))
        return identities.union(*(self._identities.of_namespace(name) for name in namespaces)), fronts

    def _list_all(self, state: PolicyState) -> dict[str, frozenset[Any]]:
        return {
            "namespaces": self._identities.namespaces().union(state.namespaces),
            "identities": self._identities.numbers().union(state.identities),
            "addresses": frozenset(self.tables.ipcache).union(state.addresses),
            "frontends": frozenset(self.tables.frontends).union(state.frontends),
        }

    def _set_address(self, state: PolicyState, address: str) -> None:
        row = state.addresses.get(address)
        cache = _tracked(self.tables.ipcache)
        own = _tracked(self.tables.own_addresses)
        if row is None:
            cache.drop(address)
        else:
            cache[address] = row.identity
        if row is not None and row.kind is AddressKind.NODE and row.node == self.node:
            own[address] = 1
        elif address not in self._local.extra_addresses:
            own.drop(address)

    def _set_gateway_fronts(self, state: PolicyState, touched: set[FrontKey]) -> set[FrontKey]:
        """A port of the node answers on every address of it: on the pods' gateways, too, it is judged as what stands
        behind it, before the own node's pass. The frontends that changed."""
        gateways = self._local.extra_addresses
        own = frozenset(one for one in self.tables.own_addresses if one not in gateways or one in state.addresses)
        if not touched and (own, gateways) == self._gateway_basis:
            return set()
        self._gateway_basis = own, gateways
        wanted = {
            (gateway, protocol, port): row
            for (address, protocol, port), row in state.frontends.items()
            if row.kind in _ON_EVERY_ADDRESS and address in own
            for gateway in gateways
            if (":" in gateway) == (":" in address) and (gateway, protocol, port) not in state.frontends
        }
        known = self._gateway_fronts
        changed = {key for key, row in wanted.items() if key in touched or known.get(key) != row}
        for key in changed | (known.keys() - wanted.keys()):
            self._fronts.set_frontend(key, wanted.get(key) or state.frontends.get(key))
        self._gateway_fronts = wanted
        return changed

    # -- configuration

    def _set_config(self, state: PolicyState, extra_addresses: frozenset[str]) -> None:
        config = state.config
        own = _tracked(self.tables.own_addresses)
        for address in self._local.extra_addresses - extra_addresses:
            row = state.addresses.get(address)
            if row is None or row.kind is not AddressKind.NODE or row.node != self.node:
                own.drop(address)
        for address in extra_addresses:
            own[address] = 1
        self._local.extra_addresses = extra_addresses
        is_new = config != self._local.config or self._guarded is None
        self._local.config = config
        self._set_guard(config, is_new)
        self.tables.config = ConfigEntry(
            ttl_min_seconds=config.ttl_min_seconds,
            ttl_max_seconds=config.ttl_max_seconds,
            grace_seconds=config.grace_seconds,
            names_per_endpoint=self._limits.names_per_endpoint,
            events_per_second=self._limits.events_per_second,
            revision=state.number & 0xFFFFFFFF,
            allow_events=self._limits.allow_events,
            search_suffixes=config.search_suffixes,
            timeouts=config.timeouts,
        )

    def _set_guard(self, config: Config, is_new: bool) -> None:
        ranges = [parse_network(one) for one in config.service_cidrs]
        outside = frozenset(
            address for address in self._fronts.addresses() if not any(parse_address(address) in one for one in ranges)
        )
        if is_new or outside != self._guarded:
            self._guarded = outside
            _tracked(self.tables.guard).become(build_guard(config, sorted(outside)))

    def _set_resolvers(self, state: PolicyState, own_resolvers: frozenset[str]) -> None:
        """An address that a Service exposes to the outside is a tenant's to claim: never trusted (CVE-2020-8554).

        Where the cluster's own resolver has its address on the node's cache as well, an answer may come from either, as
        long as no rule leads to the cache: it is trusted as the settings say.
        """
        config = state.config
        named = {(one.address, one.port) for one in config.resolvers}
        found = [Resolver(address=address) for address in sorted(own_resolvers)]
        own = [one for one in found if (one.address, one.port) not in named]
        self._local.resolvers = (*config.resolvers, *own)
        wanted: dict[tuple[str, int], int] = {}
        self.problems = {name: one for name, one in self.problems.items() if one.path != "resolvers"}
        for resolver in self._local.resolvers:
            claims = (state.frontends.get((resolver.address, protocol, resolver.port)) for protocol in (6, 17))
            claimant = next((row for row in claims if row is not None and row.kind.is_claim), None)
            if claimant is not None:
                message = f"{resolver.address} is claimed by Service {claimant.service}: not trusted"
                self.problems[f"resolver {resolver.address}"] = Problem(
                    object="Config", path="resolvers", message=message, severity="warning"
                )
                continue
            flags = RESOLVER_TRUSTED
            is_own = resolver in own or resolver.address in self.tables.own_addresses
            if is_own or parse_address(resolver.address).is_link_local:
                flags |= RESOLVER_NODE_LOCAL
            wanted[(resolver.address, resolver.port)] = flags | RESOLVER_OUTSIDE * _serves_asker(config, resolver)
        _tracked(self.tables.resolvers).become(wanted)

    # -- rulesets

    def _find_local(self, state: PolicyState) -> set[RulesetHash]:
        """The rulesets that this node's pods name, those without an interface yet included: they may send at once."""
        named: set[RulesetHash] = set()
        for row in state.endpoints.values():
            named.update((row.egress, row.ingress, row.egress_shadow, row.ingress_shadow))
        return named - {RulesetHash("")}

    def _set_rulesets(self, state: PolicyState, wanted: set[RulesetHash]) -> None:
        added = [one for one in sorted(wanted) if one not in self._in_force]
        removed = [one for one in self._in_force if one not in wanted]
        for name in removed:
            self._drop_ruleset(name)
        for name in added:
            self._add_ruleset(state, name)
        if added or removed or self._is_resumed:
            self._is_resumed = False
            self._reclassify()
        elif self._local.config.pod_cidrs != self._classified_pod_cidrs:
            self._classify_prefixes({peer for one in self._in_force.values() for peer in one.parts.cidrs})
        self._classified_pod_cidrs = self._local.config.pod_cidrs

    def _add_ruleset(self, state: PolicyState, name: RulesetHash) -> None:
        ruleset = state.rulesets.get(name)
        try:
            if ruleset is None:
                raise RulesetRefused("is named by an endpoint and not in the state")
            self._enforce(name, ruleset, state.peersets)
            self.problems.pop(f"ruleset {name}", None)
        except RulesetRefused as error:
            self.problems[f"ruleset {name}"] = Problem(object=f"Ruleset {name}", path="", message=str(error))

    def _enforce(self, name: RulesetHash, ruleset: Ruleset, peersets: Mapping[str, PeersetRow]) -> None:
        parts = take_apart(ruleset, peersets)
        handle = self.spaces.handles.take(name)
        self._in_force[name] = _InForce(handle, ruleset, parts)
        self._identity_table.add_ruleset(handle, {_text(peer): mask for peer, mask in parts.identities.items()})
        self._cidr_table.add_ruleset(handle, {_cidr_text(peer): mask for peer, mask in parts.cidrs.items()})
        self._domain_table.add_ruleset(handle, parts.domains)
        self._port_table.add_ruleset(handle, parts.ports)
        if everywhere := _mask_of_any_protocol(parts.ports):
            self.tables.ports[(handle, 0)] = everywhere
        self.tables.rulesets[handle] = self._make_entry(name, ruleset, parts)

    def _make_entry(self, name: RulesetHash, ruleset: Ruleset, parts: Parts) -> RulesetEntry:
        counts = (len(ruleset.admin), len(ruleset.network_policy), len(ruleset.baseline))
        return RulesetEntry(
            hash=name,
            any=parts.any,
            deny=parts.deny,
            passes=parts.passes,
            default=ruleset.default,
            isolated=ruleset.isolated,
            dns_implicit=ruleset.dns_implicit,
            has_cidrs=bool(parts.cidrs),
            has_identities=bool(parts.identities),
            has_domains=bool(parts.domains),
            counters=self.spaces.counters.take(name, sum(counts)),
            admin_rules=counts[0],
            network_policy_rules=counts[1],
            baseline_rules=counts[2],
        )

    def _drop_ruleset(self, name: RulesetHash) -> None:
        handle = self._in_force.pop(name).handle
        for table in (self._identity_table, self._cidr_table, self._domain_table, self._port_table):
            table.drop_ruleset(handle)
        _tracked(self.tables.ports).drop((handle, 0))
        _tracked(self.tables.rulesets).drop(handle)

    # -- classes: only when the set of local rulesets changed

    def _reclassify(self) -> None:
        parts = [one.parts for one in self._in_force.values()]
        self._identities.set_selectors({_text(peer): peer for one in parts for peer in one.identities})
        self._classify_prefixes({peer for one in parts for peer in one.cidrs})
        self._classify_ports({content for one in parts for content in one.ports})
        self._classify_domains({pattern for one in parts for pattern in one.domains})

    def _classify_prefixes(self, peers: set[CidrPeer]) -> None:
        contents: dict[str, tuple[str, tuple[str, ...]]] = {_cidr_text(one): (one.cidr, one.excepts) for one in peers}
        contents.update({_UNKNOWN_POD + one: (one, ()) for one in self._local.config.pod_cidrs})
        cidrs = _tracked(self.tables.cidrs)
        nodes = close_prefixes(contents)
        for node in [node for node in cidrs if node not in nodes]:
            self._cidr_table.forget(node)
            del cidrs[node]
        for node, covering in nodes.items():
            members = frozenset(one for one in covering if not one.startswith(_UNKNOWN_POD))
            if not members:
                self._cidr_table.forget(node)
            klass = self._cidr_table.assign(node, members) if members else 0
            cidrs[node] = CidrEntry(klass, unknown_pod=len(members) < len(covering))

    def _classify_ports(self, contents: set[PortRange]) -> None:
        everywhere = {one for one in contents if one.protocol == ANY_PROTOCOL}
        indices = _tracked(self.tables.port_classes)
        segments = dict(cut_ranges(contents))
        classes = {
            segment: self._port_table.assign(segment, members | everywhere) for segment, members in segments.items()
        }
        for segment in [one for one in self._segments if one not in segments]:
            self._port_table.forget(segment)
        kept = {segment for segment, klass in classes.items() if self._segments.get(segment) == klass}
        stale = [segment for segment in self._segments if segment not in kept]
        for segment, klass in classes.items():
            if segment not in kept:
                indices.fill(segment, klass)
        for index in {index for segment in stale for index in segment}.difference(*segments):
            indices.drop(index)
        self._segments = classes

    def _classify_domains(self, patterns: set[str]) -> None:
        """Retired nodes are classified too: what was learned under them serves the patterns that cover them."""
        domains = _tracked(self.tables.domains)
        for node in set(domains) - patterns:
            self._retired.add(node)
            del domains[node]
        self._retired -= patterns
        for node in sorted(patterns | self._retired):
            klass = self._domain_table.assign(node, find_covering(node, patterns))
            if node in patterns:
                domains[node] = klass & ~CLASS_DOMAIN

    def retired_rows(self) -> frozenset[int]:
        """Domain rows that no pattern of today leads to, and that learned addresses may still refer to."""
        return frozenset(self.spaces.domain_rows.find(node) for node in self._retired)

    def forget_rows(self, unreferenced: Set[int]) -> None:
        """No learned address refers to these retired rows any more."""
        for node in [one for one in self._retired if self.spaces.domain_rows.find(one) in unreferenced]:
            self._retired.discard(node)
            self._domain_table.forget(node)

    def find_pattern(self, row: int) -> str:
        """The pattern that a domain row stands for, retired ones included; empty if there is none."""
        return next((node for node, number in self.spaces.domain_rows.given.items() if number == row), "")

    def find_ruleset(self, handle: int) -> Ruleset | None:
        """The ruleset in force under a handle."""
        name = self.tables.rulesets[handle].hash if handle in self.tables.rulesets else ""
        found = self._in_force.get(RulesetHash(name))
        return found.ruleset if found else None

    # -- sets of backends, endpoints

    def _judge_sets(self, changed: set[FrontKey] | None) -> None:
        egress = (one.handle for one in self._in_force.values() if one.ruleset.direction is Direction.EGRESS)
        self._fronts.judge_sets(self.tables, frozenset(egress), changed)

    def _set_endpoints(self, state: PolicyState) -> None:
        rows = {row.uid: row for row in state.endpoints.values()}
        endpoints: dict[int, EndpointEntry] = {}
        extra: dict[tuple[int, str], int] = {}
        for binding in self._local.bindings.values():
            row = rows.get(binding.uid)
            if row is None:
                continue
            entry, more = self._make_endpoint(binding, row)
            endpoints[entry.ifindex] = entry
            extra.update({(entry.id, address): FIRST_EXTRA_ADDRESS + place for place, address in enumerate(more)})
        _tracked(self.tables.endpoint_addresses).become(extra)
        _tracked(self.tables.endpoints).become(endpoints)

    def _make_endpoint(self, binding: Binding, row: EndpointRow) -> tuple[EndpointEntry, list[str]]:
        link = binding.link
        four = [one for one in link.addresses if ":" not in one]
        six = [one for one in link.addresses if ":" in one]
        more = four[1:] + six[1:]
        entry = EndpointEntry(
            ifindex=link.ifindex,
            id=self.spaces.endpoint_ids.take(binding.uid),
            egress=self._handle(row.egress),
            ingress=self._handle(row.ingress),
            egress_shadow=self._handle(row.egress_shadow),
            ingress_shadow=self._handle(row.ingress_shadow),
            identity=row.identity,
            address4=next(iter(four), ""),
            address6=next(iter(six), ""),
            gateway6=next((one for one in link.gateways if ":" in one), ""),
            claimed_twice=binding.claimed_twice,
            more_addresses=bool(more),
            scoped_names=any(_serves_asker(self._local.config, one) for one in self._local.resolvers),
        )
        return entry, more

    def _handle(self, name: RulesetHash) -> int:
        found = self._in_force.get(name)
        return found.handle if found else 0


def _tracked(table: dict[K, V]) -> TrackedDict[K, V]:
    assert isinstance(table, TrackedDict)
    return table


def _text(peer: PodPeer | NodePeer) -> str:
    return wire.encode(peer).decode()


def _cidr_text(peer: CidrPeer) -> str:
    return peer.cidr + "!" + ",".join(peer.excepts)


def _key_of_members(_: object, members: frozenset[str]) -> str:
    return digest_texts(list(members))


def _key_of_ports(_: object, members: frozenset[PortRange]) -> str:
    """ "Every protocol" is in every class, so it is no part of what tells classes apart."""
    specific = (one for one in members if one.protocol != ANY_PROTOCOL)
    return ",".join(sorted(f"{one.protocol}/{one.first}-{one.last}" for one in specific))


def _mask_of_any_protocol(ports: Mapping[PortRange, int]) -> int:
    mask = 0
    for content, rules in ports.items():
        mask |= rules if content.protocol == ANY_PROTOCOL else 0
    return mask


def _serves_asker(config: Config, resolver: Resolver) -> bool:
    """Whether what a resolver says serves the pod that asked and no other."""
    return resolver.outside or config.share == "off"
