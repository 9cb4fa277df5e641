"""What a recorder remembers and what it tells the cluster.

Every name that this node was told is remembered, covered by a pattern or not, so that a pattern which appears later
finds names already known. Only covered names are published (unless ``learn_all``), each again when its time on the bus
has half gone, within a budget and a share for the asking endpoint and a budget for the pattern's parent name.

Pure: time comes in as seconds of a monotonic clock that survives a restart of the process.
Deliberately absent: NATS, files, and the question whether an answer is to be believed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from schemas.policy import Config
from services.common.bucket import Buckets
from services.common.shares import Shares
from services.dnsrecorder.dnswire import Answer
from services.dnsrecorder.memory import Known, Memory, Pairs

ENDPOINT_RATE = 200.0
ENDPOINT_BURST = 2_000.0
"""Publications a second, and at once, that one endpoint can cause."""
ENDPOINT_PAIRS = 4_096
"""Pairs of address and pattern that one endpoint's names may have on the bus at a time: as many as it may learn here.
Other nodes write them into the half of their names' map that all share."""
PARENT_RATE = 500.0
PARENT_BURST = 5_000.0
"""The same for all fresh names below one parent, from this node: a flood of subdomains under one wildcard."""
ROUNDING_SECONDS = 2.0
"""The kernel tells a name again by the same half, in whole seconds, and an answer may wait in its ring."""


@dataclass(frozen=True, slots=True)
class Publication:
    """Tell the cluster: these addresses of ``name``, ``ttl_seconds`` as answered less what has passed since."""

    name: str
    addresses: tuple[str, ...]
    ttl_seconds: int
    keep_seconds: int
    """How long the bus shall hold it: TTL within the clamp, and grace."""


@dataclass(slots=True)
class Patterns:
    """The domain patterns in force."""

    exact: set[str] = field(default_factory=set)
    below: set[str] = field(default_factory=set)
    """``x`` for every pattern ``*.x``."""

    def add(self, pattern: str) -> None:
        """``x`` or ``*.x``; adding twice is adding once."""
        self._side(pattern).add(pattern.removeprefix("*."))

    def remove(self, pattern: str) -> None:
        """Unknown patterns are fine."""
        self._side(pattern).discard(pattern.removeprefix("*."))

    def clear(self) -> None:
        self.exact.clear()
        self.below.clear()

    def covers(self, name: str) -> bool:
        """Whether some pattern covers the name; ``*.x`` covers one or more labels under x, and not x."""
        return bool(self.find(name))

    def find(self, name: str) -> str:
        """The most specific pattern that covers the name; empty if there is none."""
        if name in self.exact:
            return name
        parent = name.partition(".")[2]
        while parent:
            if parent in self.below:
                return f"*.{parent}"
            parent = parent.partition(".")[2]
        return ""

    def _side(self, pattern: str) -> set[str]:
        return self.below if pattern.startswith("*.") else self.exact


class Recorder:
    """One node's memory of answers."""

    def __init__(self) -> None:
        self.config = Config()
        self.patterns = Patterns()
        self.memory = Memory()
        self.counters = self.memory.counters
        self._by_endpoint = Buckets(rate=ENDPOINT_RATE, burst=ENDPOINT_BURST)
        self._by_parent = Buckets(rate=PARENT_RATE, burst=PARENT_BURST)
        self._on_bus: Shares[tuple[str, str]] = Shares(ENDPOINT_PAIRS)
        """(address, pattern) by endpoint."""

    def note(self, answer: Answer, endpoint: str, now: float) -> Publication | None:
        """Remember an answer; what to publish of it, if anything. ``endpoint``: whose budget it is charged to."""
        if not answer.addresses:
            return None
        self._remember(answer, endpoint, now)
        if not self.is_sharing:
            self.counters["not_shared"] += 1
            return None
        if not self._is_wanted(answer.name):
            self.counters["uncovered"] += 1
            return None
        due = self._find_due(answer.name, now)
        if not due:
            self.counters["known"] += 1
            return None
        if not self._by_endpoint.take(endpoint, now):
            self.counters["over_endpoint_budget"] += 1
            return None
        paid = self._charge(answer.name, due, [endpoint], now)
        if paid and not self._by_parent.take(answer.name.partition(".")[2], now):
            self.counters["over_parent_budget"] += 1
            return None
        return self._make_publication(answer.name, due, paid, now)

    def is_refusal(self, answer: Answer, now: float) -> bool:
        """Whether an answer without addresses is DNS' no to a covered name: not if the other family has some.

        For answers that the kernel handed over; where it reads them itself it knows for each endpoint.
        """
        if answer.is_cut or not self.patterns.covers(answer.name):
            return False
        pairs = self.memory.find(answer.name)
        return not any((":" in address) != answer.is_ipv6 and one.expires > now for address, one in pairs.items())

    def add_pattern(self, pattern: str, now: float) -> list[Publication]:
        """A pattern is in force: publish what is known already of the names that it covers."""
        self.patterns.add(pattern)
        only = Patterns()
        only.add(pattern)
        return self._publish_known(only.covers, now)

    def remove_pattern(self, pattern: str) -> None:
        """A pattern is not in force any more."""
        self.patterns.remove(pattern)

    def set_config(self, config: Config, now: float) -> list[Publication]:
        """New settings; ``learn_all`` switched on publishes all that is known."""
        begins = config.learn_all and not self.config.learn_all
        was_sharing = self.is_sharing
        self.config = config
        if self.is_sharing and not was_sharing:
            return self.republish(now)
        return self._publish_known(lambda name: True, now) if begins else []

    @property
    def is_sharing(self) -> bool:
        """Whether other nodes are told anything."""
        return self.config.share in ("cluster", "zone")

    def forget(self, name: str) -> tuple[str, ...]:
        """A name is nobody's any more; the addresses that were known for it."""
        return tuple(sorted(self.memory.forget(name)))

    def forget_all(self) -> None:
        """Nothing is known any more."""
        self.memory.clear()

    def drop_expired(self, now: float) -> None:
        """What is over takes no memory; call it now and then."""
        self.memory.drop_expired(now)
        self._on_bus.drop_expired(now)

    def republish(self, now: float) -> list[Publication]:
        """The bus has forgotten everything: publish again what is covered and still valid."""
        for name in self.memory:
            for known in self.memory.find(name).values():
                known.published_until = 0.0
        return self._publish_known(self._is_wanted, now)

    def dump(self) -> bytes:
        """The memory as bytes, for a file."""
        return self.memory.dump()

    def load(self, content: bytes, now: float) -> None:
        """Take up a dumped memory, without what has expired; ValueError if it is no memory."""
        self.memory.load(content, now)

    def __len__(self) -> int:
        return len(self.memory)

    def _remember(self, answer: Answer, endpoint: str, now: float) -> None:
        told = (
            (one.address, Known(one.ttl_seconds, now + self._keep_seconds(one.ttl_seconds))) for one in answer.records
        )
        self.memory.note(answer.name, told, endpoint, now)

    def _keep_seconds(self, ttl_seconds: int) -> int:
        clamped = min(max(ttl_seconds, self.config.ttl_min_seconds), self.config.ttl_max_seconds)
        return clamped + self.config.grace_seconds

    # -- publishing

    def _is_wanted(self, name: str) -> bool:
        return self.config.learn_all or self.patterns.covers(name)

    def _publish_known(self, covers: Callable[[str], bool], now: float) -> list[Publication]:
        if not self.is_sharing:
            return []
        made = []
        for name in self.memory:
            if covers(name):
                due = self._find_due(name, now)
                paid = self._charge(name, due, self.memory.askers(name), now)
                made.append(self._make_publication(name, due, paid, now))
        return [publication for publication in made if publication is not None]

    def _find_due(self, name: str, now: float) -> Pairs:
        """What of the name is not on the bus for at least half of its time, and still valid."""
        pairs = self.memory.find(name)
        return {address: known for address, known in pairs.items() if known.expires > now and _is_due(known, now)}

    def _list_travelling(self, due: Pairs) -> list[str]:
        return sorted(due)[: self.config.addresses_per_name]

    def _charge(self, name: str, due: Pairs, askers: Collection[str], now: float) -> tuple[str, ...]:
        """Of what is due the addresses that travel, each charged to one of the askers that has room for it."""
        pattern = self.patterns.find(name) or name
        until = min((known.expires for known in due.values()), default=now)
        travelling = self._list_travelling(due)
        paid = tuple(
            address
            for address in travelling
            if any(self._on_bus.take(one, (address, pattern), until=until, now=now) for one in askers)
        )
        self.counters["over_endpoint_pairs"] += len(travelling) - len(paid)
        return paid

    def _make_publication(self, name: str, due: Pairs, paid: tuple[str, ...], now: float) -> Publication | None:
        """Of what is due what was paid for. It counts as published, and what is over the limit of a name too."""
        if not paid:
            return None
        shortest = min(due.values(), key=lambda known: known.expires)
        unpaid = set(self._list_travelling(due)) - set(paid)
        if len(due) > len(paid) + len(unpaid):
            self.counters["over_addresses_per_name"] += 1
        for address, known in due.items():
            if address not in unpaid:
                known.published_until = shortest.expires
        keep_seconds = max(1, math.ceil(shortest.expires - now))
        ttl_seconds = max(0, min(shortest.ttl_seconds, keep_seconds - self.config.grace_seconds))
        return Publication(name, paid, ttl_seconds, keep_seconds)


def _is_due(known: Known, now: float) -> bool:
    remaining, published = known.expires - now, known.published_until - now
    return published < remaining / 2 + ROUNDING_SECONDS
