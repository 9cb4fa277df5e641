"""What a recorder remembers and what it tells the cluster.

Every name that this node was told is remembered, covered by a pattern or not, so that a pattern which appears later
finds names already known. Only covered names are published (unless ``learn_all``), each again when its time on the bus
has half gone, within a budget for the asking endpoint and for the pattern's parent name.

Pure: time comes in as seconds of a monotonic clock that survives a restart of the process.
Deliberately absent: NATS, files, and the question whether an answer is to be believed.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from schemas.policy import Config
from services.common.bucket import Buckets
from services.dnsrecorder.dnswire import Answer

MAX_REMEMBERED = 50_000
"""(name, address) pairs kept; beyond it those told longest ago are forgotten first, and counted."""
ENDPOINT_RATE = 200.0
ENDPOINT_BURST = 2_000.0
"""Publications a second, and at once, that one endpoint can cause."""
PARENT_RATE = 500.0
PARENT_BURST = 5_000.0
"""The same for all fresh names below one parent, from this node: a flood of subdomains under one wildcard."""
ROUNDING_SECONDS = 2.0
"""The kernel tells a name again by the same half, in whole seconds, and an answer may wait in its ring."""


class Known(msgspec.Struct):
    """One (name, address). Times in seconds; ``published_until``: how long the bus will hold it."""

    ttl_seconds: int
    expires: float
    published_until: float = 0.0


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
        if name in self.exact:
            return True
        parent = name.partition(".")[2]
        while parent:
            if parent in self.below:
                return True
            parent = parent.partition(".")[2]
        return False

    def _side(self, pattern: str) -> set[str]:
        return self.below if pattern.startswith("*.") else self.exact


class Recorder:
    """One node's memory of answers."""

    def __init__(self) -> None:
        self.config = Config()
        self.patterns = Patterns()
        self.counters: Counter[str] = Counter()
        self._known: OrderedDict[str, dict[str, Known]] = OrderedDict()
        self._pairs = 0
        self._by_endpoint = Buckets(rate=ENDPOINT_RATE, burst=ENDPOINT_BURST)
        self._by_parent = Buckets(rate=PARENT_RATE, burst=PARENT_BURST)

    def note(self, answer: Answer, endpoint: str, now: float) -> Publication | None:
        """Remember an answer; what to publish of it, if anything. ``endpoint``: whose budget it is charged to."""
        if not answer.addresses:
            return None
        self._remember(answer, now)
        if not self.is_sharing:
            self.counters["not_shared"] += 1
            return None
        if not self._is_wanted(answer.name):
            self.counters["uncovered"] += 1
            return None
        publication = self._make_publication(answer.name, now)
        if publication is None:
            self.counters["known"] += 1
            return None
        if not self._within_budget(answer.name, endpoint, now):
            self._withdraw(publication)
            return None
        return publication

    def is_refusal(self, answer: Answer, now: float) -> bool:
        """Whether an answer without addresses is DNS' no to a covered name: not if the other family has some.

        For answers that the kernel handed over; where it reads them itself it knows for each endpoint.
        """
        if answer.is_cut or not self.patterns.covers(answer.name):
            return False
        pairs = self._known.get(answer.name, {})
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
        pairs = self._known.pop(name, {})
        self._pairs -= len(pairs)
        return tuple(sorted(pairs))

    def forget_all(self) -> None:
        """Nothing is known any more."""
        self._known.clear()
        self._pairs = 0

    def republish(self, now: float) -> list[Publication]:
        """The bus has forgotten everything: publish again what is covered and still valid."""
        for pairs in self._known.values():
            for known in pairs.values():
                known.published_until = 0.0
        return self._publish_known(self._is_wanted, now)

    def dump(self) -> bytes:
        """The memory as bytes, for a file."""
        # As a plain dict: the encoder would not see an OrderedDict's own order, in which names are forgotten.
        return msgspec.msgpack.encode(dict(self._known.items()))

    def load(self, content: bytes, now: float) -> None:
        """Take up a dumped memory, without what has expired; ValueError if it is no memory."""
        try:
            known = msgspec.msgpack.decode(content, type=dict[str, dict[str, Known]])
        except msgspec.DecodeError as error:
            raise ValueError(f"not a recorder's memory: {error}") from error
        for name, pairs in known.items():
            live = {address: pair for address, pair in pairs.items() if pair.expires > now}
            if live:
                self._pairs += len(live) - len(self._known.get(name, ()))
                self._known[name] = live
        self._trim()

    def __len__(self) -> int:
        return self._pairs

    # -- memory

    def _remember(self, answer: Answer, now: float) -> None:
        pairs = self._known.setdefault(answer.name, {})
        self._known.move_to_end(answer.name)
        before = len(pairs)
        for record in answer.records:
            expires = now + self._keep_seconds(record.ttl_seconds)
            old = pairs.get(record.address)
            until = old.published_until if old else 0.0
            if old is None or expires > old.expires:
                pairs[record.address] = Known(record.ttl_seconds, expires, until)
        self._pairs += len(pairs) - before
        self._trim()

    def _trim(self) -> None:
        while self._pairs > MAX_REMEMBERED and len(self._known) > 1:
            _, pairs = self._known.popitem(last=False)
            self._pairs -= len(pairs)
            self.counters["forgotten"] += len(pairs)

    def _keep_seconds(self, ttl_seconds: int) -> int:
        clamped = min(max(ttl_seconds, self.config.ttl_min_seconds), self.config.ttl_max_seconds)
        return clamped + self.config.grace_seconds

    # -- publishing

    def _is_wanted(self, name: str) -> bool:
        return self.config.learn_all or self.patterns.covers(name)

    def _publish_known(self, covers: Callable[[str], bool], now: float) -> list[Publication]:
        if not self.is_sharing:
            return []
        made = (self._make_publication(name, now) for name in list(self._known) if covers(name))
        return [publication for publication in made if publication is not None]

    def _make_publication(self, name: str, now: float) -> Publication | None:
        """What of the name is not on the bus for at least half of its time, and still valid; marks it as published."""
        pairs = self._known.get(name, {})
        due = {address: known for address, known in pairs.items() if known.expires > now and _is_due(known, now)}
        if not due:
            return None
        shortest = min(due.values(), key=lambda known: known.expires)
        addresses = tuple(sorted(due))[: self.config.addresses_per_name]
        if len(due) > len(addresses):
            self.counters["over_addresses_per_name"] += 1
        for known in due.values():
            known.published_until = shortest.expires
        keep_seconds = max(1, math.ceil(shortest.expires - now))
        ttl_seconds = max(0, min(shortest.ttl_seconds, keep_seconds - self.config.grace_seconds))
        return Publication(name, addresses, ttl_seconds, keep_seconds)

    def _within_budget(self, name: str, endpoint: str, now: float) -> bool:
        if not self._by_endpoint.take(endpoint, now):
            self.counters["over_endpoint_budget"] += 1
            return False
        if not self._by_parent.take(name.partition(".")[2], now):
            self.counters["over_parent_budget"] += 1
            return False
        return True

    def _withdraw(self, publication: Publication) -> None:
        for address in publication.addresses:
            self._known[publication.name][address].published_until = 0.0


def _is_due(known: Known, now: float) -> bool:
    remaining, published = known.expires - now, known.published_until - now
    return published < remaining / 2 + ROUNDING_SECONDS
