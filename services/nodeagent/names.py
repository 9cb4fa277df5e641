"""Names that other nodes resolved: which of them this node's kernel should know, under which domain row, until when.

Rules of this module:

* What comes from the bus is judged as if the sender lied: the rebinding guard, the TTL clamp, a limit of addresses a
  name and a budget a node are applied here again.
* Who said it is the node in the *subject*, which the server's permissions bind, never the one in the body.
* What this node's own recorder finished is charged to the endpoints that asked, within a quota each.
* Age is the server's, expiry is of the local clock. What is known already for as long is no news.
* What was to be forgotten is void if the stream had it before. A pair of address and domain row goes only where no
  other name and no other node vouches for it.

Pure. Deliberately absent: subscriptions (``namebus``), the map's slots (``datapath``).
"""

from __future__ import annotations

import ipaddress
import itertools
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from schemas import wire
from schemas.policy import Config
from schemas.resolution import Observed, Resolution
from schemas.selectors import parse_network
from schemas.status import LearnedName
from schemas.terms import NodeName
from services.common.bucket import Buckets
from services.common.shares import Shares
from services.nodeagent.patterns import find_node
from services.nodeagent.tables import ConfigEntry

NODE_RATE = 2_000.0
NODE_BURST = 50_000.0
"""Resolutions a second, and at once, that one node may teach this one."""
MAX_KNOWN = 200_000
"""(name, address) pairs remembered; beyond it those heard of longest ago are forgotten (the kernel keeps its own)."""
MAX_HANDED_OVER = 1_024
"""Addresses taken of one answer that this node's own recorder finished, whatever the limit for names from elsewhere."""


NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""RFC 6052."""
COMPATIBLE = ipaddress.IPv6Network("::/96")
"""RFC 4291 2.5.5.1."""


NO_NODE = NodeName("")
MAX_LISTED = 100
"""Names that a status lists."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """Write to ``resolutions``: this address has the name of this domain row until ``expires`` (boottime seconds)."""

    address: str
    row: int
    expires: int
    name: str
    node: str


Key = tuple[str, str, int]
"""(name, address, domain row)."""


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """(address, domain row) that the kernel is to hold no longer: of what answers here taught, of what others told."""

    learned: frozenset[tuple[str, int]]
    shared: frozenset[tuple[str, int]]


class Guard:
    """Longest match over the prefixes of ``Tables.guard``."""

    def __init__(self, prefixes: Mapping[str, bool]) -> None:
        self._lengths: dict[tuple[int, int], dict[int, bool]] = {}
        for text, refused in prefixes.items():
            network = parse_network(text)
            at_length = self._lengths.setdefault((network.version, network.prefixlen), {})
            at_length[int(network.network_address)] = refused
        self._order = sorted(self._lengths, reverse=True)

    def refuses(self, address: str) -> bool:
        """Whether no name may have this address; every v4-mapped form is refused."""
        parsed = ipaddress.ip_address(address)
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
            return True
        value, bits = int(parsed), parsed.max_prefixlen
        for version, length in self._order:
            if version == parsed.version:
                found = self._lengths[version, length].get(value >> (bits - length) << (bits - length))
                if found is not None:
                    return found
        return False


class BusNames:
    """What one node has heard on the bus."""

    def __init__(self, node: NodeName = NO_NODE) -> None:
        """``node``: this one, whose own names are always of use."""
        self._node = node
        self.counters: Counter[str] = Counter()
        self._config = Config()
        self._rows: Mapping[str, int] = {}
        self._guard = Guard({})
        self._owned: Mapping[str, int] = {}
        self._known: OrderedDict[Key, int] = OrderedDict()
        self._tellers: dict[Key, str] = {}
        self._void: dict[str, int] = {}
        """Name, or ``node/`` and a node -> what the stream had of it before this sequence is void."""
        self._addresses: Counter[str] = Counter()
        self._budgets = Buckets(rate=NODE_RATE, burst=NODE_BURST)
        self._handed_over: Shares[tuple[str, int]] = Shares(ConfigEntry().names_per_endpoint)
        """(address, domain row) by the endpoint that asked for a name whose answer was handed over."""

    def set_tables(
        self, config: Config, rows: Mapping[str, int], guard: Mapping[str, bool], owned: Mapping[str, int]
    ) -> None:
        """``rows``: pattern -> domain row; ``owned``: addresses of pods and nodes (both are looked up live)."""
        self._config = config
        self._rows = rows
        self._guard = Guard(guard)
        self._owned = owned

    def set_quota(self, names_per_endpoint: int) -> None:
        """How many pairs of address and domain row answers that were handed over may give one endpoint at a time."""
        self._handed_over.limit = names_per_endpoint

    @property
    def criteria(self) -> tuple[object, ...]:
        """The settings that ``hear`` goes by: what was refused under other ones may be of use."""
        config = self._config
        zone = config.zones.get(self._node) if config.share == "zone" else None
        return (
            config.share,
            frozenset(node for node, one in config.zones.items() if zone is not None and one == zone),
            config.addresses_per_name,
            (config.ttl_min_seconds, config.ttl_max_seconds, config.grace_seconds),
            (config.service_cidrs, config.never_learn_cidrs, config.learn_anyway_cidrs),
        )

    def hear(
        self, subject: str, resolution: Resolution, *, age_seconds: float, now: float, sequence: int = 0
    ) -> list[Lesson]:
        """What a resolution teaches. ``age_seconds``: since the server stored it; ``now``: boottime seconds.

        ``sequence``: in the stream, 0 for what is heard live.
        """
        node = read_node(subject)
        if subject != wire.subject_resolution(resolution.node, resolution.name) or node != resolution.node:
            return self._refuse("forged")
        if not self._is_shared(node):
            return self._refuse("not_shared")
        if 0 < sequence < max(self._void.get(resolution.name, 0), self._void.get(f"node/{node}", 0)):
            return self._refuse("forgotten")
        row = self._rows.get(find_node(resolution.name, self._rows.keys()), 0)
        if not row:
            return self._refuse("uncovered")
        if not self._budgets.take(node, now):
            return self._refuse("over_node_budget")
        expires = int(now - max(0.0, age_seconds)) + self._keep_seconds(resolution.ttl_seconds)
        if expires <= now:
            return self._refuse("expired")
        made = (self._learn(resolution, address, row, expires, node) for address in resolution.addresses)
        return [lesson for lesson in made if lesson is not None]

    def hear_own(self, observed: Observed, node: str, *, now: float) -> list[Lesson]:
        """What an answer teaches that the kernel handed over to this node's own recorder; nothing of any other.

        Each pair is charged to every endpoint that asked, until it expires. Beyond its quota an endpoint teaches
        nothing new, not even what another has, which would live on unpaid.
        """
        if not observed.handed_over or observed.rcode:
            return []
        row = self._rows.get(find_node(observed.name, self._rows.keys()), 0)
        if not row:
            return self._refuse("uncovered")
        expires = int(now) + self._keep_seconds(observed.ttl_seconds)
        allowed = [address for address in observed.addresses[:MAX_HANDED_OVER] if self._may_have(address)]
        endpoint, share = str(observed.endpoint_id), self._handed_over
        taught = [one for one in allowed if share.take(endpoint, (one, row), until=expires, now=now)]
        self.counters["refused_address"] += min(len(observed.addresses), MAX_HANDED_OVER) - len(allowed)
        self.counters["over_addresses_per_name"] += max(0, len(observed.addresses) - MAX_HANDED_OVER)
        self.counters["over_endpoint_quota"] += len(allowed) - len(taught)
        self.counters["handed_over"] += len(taught)
        return [Lesson(address, row, expires, observed.name, node) for address in taught]

    def list_learned(self, now: float) -> tuple[LearnedName, ...]:
        """Those heard of last, at most ``MAX_LISTED``, with the seconds they have left."""
        newest = itertools.islice(reversed(self._known.items()), MAX_LISTED)
        return tuple(
            LearnedName(name=name, address=address, seconds=int(expires - now))
            for (name, address, _), expires in newest
            if expires > now
        )

    def forget(self) -> None:
        """The kernel may have lost what was taught: everything is news again."""
        self._known.clear()
        self._tellers.clear()
        self._addresses.clear()
        self._handed_over.clear()

    def forget_name(self, name: str, addresses: Iterable[str], sequence: int) -> Withdrawn:
        """A name is nobody's any more. ``addresses``: those that others know of it."""
        self._void[name] = max(sequence, self._void.get(name, 0))
        row = self._rows.get(find_node(name, self._rows.keys()), 0)
        held = [key for key in self._known if key[0] == name]
        pairs = {(address, one) for _, address, one in held} | ({(one, row) for one in addresses} if row else set())
        for key in held:
            self._drop(key)
        shared = frozenset(pairs - self._vouched())
        self._handed_over.release(shared)
        return Withdrawn(frozenset(pairs), shared)

    def void_node(self, node: str, sequence: int) -> list[Key]:
        """What a node published is void; what stands by its word here. Hear the stream again, then ``drop_told``."""
        self._void[f"node/{node}"] = max(sequence, self._void.get(f"node/{node}", 0))
        told = [key for key, teller in self._tellers.items() if teller == node]
        for key in told:
            self._drop(key)
        return told

    def drop_told(self, told: Iterable[Key]) -> Withdrawn:
        """What nobody else has vouched for since ``void_node``."""
        pairs = {(address, row) for _, address, row in told}
        return Withdrawn(frozenset(), frozenset(pairs - self._vouched()))

    def _vouched(self) -> set[tuple[str, int]]:
        return {(address, row) for _, address, row in self._known}

    def _is_shared(self, node: str) -> bool:
        """Whether this node uses what that one says. A node whose zone is not known is in nobody's."""
        share, zones = self._config.share, self._config.zones
        if share == "cluster" or node == self._node:
            return True
        return share == "zone" and zones.get(NodeName(node), "?") == zones.get(self._node)

    def _drop(self, key: Key) -> None:
        del self._known[key]
        self._tellers.pop(key, None)
        self._addresses[key[0]] -= 1

    def _learn(self, resolution: Resolution, address: str, row: int, expires: int, node: str) -> Lesson | None:
        if not self._may_have(address):
            self.counters["refused_address"] += 1
            return None
        key = (resolution.name, address, row)
        before = self._known.get(key, 0)
        if before >= expires:
            self.counters["known"] += 1
            return None
        if not before and self._addresses[resolution.name] >= self._config.addresses_per_name:
            self.counters["over_addresses_per_name"] += 1
            return None
        self._remember(key, expires, is_new=not before)
        self._tellers[key] = node
        self.counters["learned"] += 1
        return Lesson(address, row, expires, resolution.name, node)

    def _remember(self, key: tuple[str, str, int], expires: int, *, is_new: bool) -> None:
        self._known[key] = expires
        self._known.move_to_end(key)
        self._addresses[key[0]] += is_new
        if len(self._known) > MAX_KNOWN:
            self._drop(next(iter(self._known)))

    def drop_expired(self, now: float) -> None:
        """Make room for a name's new addresses once the old ones are over; call it now and then."""
        for key in [key for key, expires in self._known.items() if expires <= now]:
            self._drop(key)
        self._addresses = +self._addresses
        self._handed_over.drop_expired(now)

    def _may_have(self, address: str) -> bool:
        try:
            return not self._guard.refuses(address) and self._owned.keys().isdisjoint((address, find_embedded(address)))
        except ValueError:
            return False

    def _keep_seconds(self, ttl_seconds: int) -> int:
        config = self._config
        return min(max(ttl_seconds, config.ttl_min_seconds), config.ttl_max_seconds) + config.grace_seconds

    def _refuse(self, kind: str) -> list[Lesson]:
        self.counters[kind] += 1
        return []


def find_embedded(address: str) -> str:
    """The IPv4 address inside an IPv6 one, where a translator would send its packets; empty if there is none."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv4Address):
        return ""
    if parsed in NAT64 or parsed in COMPATIBLE:
        return str(ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF))
    return str(parsed.sixtofour or "")


def read_node(subject: str) -> str:
    """The node that published on a resolution subject; WireError if it is none."""
    tokens = subject.removeprefix(wire.RESOLUTION_PREFIX).split(".")
    return wire.decode_name(tokens[0])
