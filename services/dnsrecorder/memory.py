"""Which addresses names had here, and who asked for them: bounded for one name, for all, and fair to who asks.

A name is remembered as long as some endpoint that asked for it has room. Beyond the bound the endpoint whose names
weigh most loses the one that it asked for longest ago, so a flood of fresh names pushes out its own: what a neighbour
asked for stays, also where the noisy one asked for it too.

Pure: time comes in. Deliberately absent: what is published of it.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

MAX_REMEMBERED = 100_000
"""(name, address) pairs and (endpoint, name) askings: 50,000 names of one address that one pod asked for."""
MAX_OF_ONE_NAME = 1_024
"""Addresses, as many as an agent takes of one long answer; beyond it those that end first go, and are counted."""
LOOK_SECONDS = 1.0
"""Pairs that are over leave a name that is asked for so often at most; all others when ``drop_expired`` is called."""
NOBODY = ""
"""Whose names are that a file of an older recorder does not say."""


class Known(msgspec.Struct):
    """One (name, address). Times in seconds; ``published_until``: how long the bus will hold it."""

    ttl_seconds: int
    expires: float
    published_until: float = 0.0


Pairs = dict[str, Known]


class _Dumped(msgspec.Struct, array_like=True):
    """``asked``: endpoint -> names, the one that it asked for longest ago first."""

    names: dict[str, Pairs]
    asked: dict[str, list[str]]


@dataclass(slots=True)
class _Name:
    pairs: Pairs = field(default_factory=dict)
    askers: set[str] = field(default_factory=set)
    looked: float = 0.0


class Memory:
    """Names of one node. ``counters``: ``forgotten`` and ``over_addresses_of_one_name``, pairs that gave way."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self._names: dict[str, _Name] = {}
        self._asked: dict[str, OrderedDict[str, None]] = {}
        self._weights: Counter[str] = Counter()
        """Endpoint -> entries of the names that it asked for, those of others' askings left out."""
        self._entries = 0

    def __len__(self) -> int:
        """Pairs of name and address."""
        return self._entries - sum(map(len, self._asked.values()))

    def __iter__(self) -> Iterator[str]:
        """Names, those remembered longest first."""
        return iter(list(self._names))

    def find(self, name: str) -> Pairs:
        """What is known of a name, pairs whose time is over perhaps included; empty if nothing."""
        one = self._names.get(name)
        return one.pairs if one else {}

    def askers(self, name: str) -> list[str]:
        """Endpoints that asked for it, in a fixed order."""
        one = self._names.get(name)
        return sorted(one.askers) if one else []

    def note(self, name: str, told: Iterable[tuple[str, Known]], endpoint: str, now: float) -> None:
        """``endpoint`` was told these pairs; of one that is known the later expiry stands."""
        one = self._names.setdefault(name, _Name(looked=now))
        before = len(one.pairs)
        for address, known in told:
            old = one.pairs.get(address)
            if old is None or known.expires > old.expires:
                known.published_until = old.published_until if old else known.published_until
                one.pairs[address] = known
        is_over = len(one.pairs) > MAX_OF_ONE_NAME
        if is_over or now - one.looked >= LOOK_SECONDS:
            one.looked = now
            one.pairs = _list_live(one.pairs, now)
        if len(one.pairs) > MAX_OF_ONE_NAME:
            excess = len(one.pairs) - MAX_OF_ONE_NAME
            for address in heapq.nsmallest(excess, one.pairs, key=lambda address: one.pairs[address].expires):
                del one.pairs[address]
            self.counters["over_addresses_of_one_name"] += excess
        self._weigh(one, len(one.pairs) - before)
        self._claim(name, one, endpoint)
        self._trim()

    def forget(self, name: str) -> Pairs:
        """It was nobody's; what was known of it."""
        one = self._names.get(name, _Name())
        for endpoint in list(one.askers):
            self._unclaim(name, one, endpoint)
        return one.pairs

    def clear(self) -> None:
        """Nothing is known any more."""
        for name in self:
            self.forget(name)

    def drop_expired(self, now: float) -> None:
        """Of every name; one without a pair is gone."""
        for name in self:
            one = self._names[name]
            live = _list_live(one.pairs, now)
            if live:
                self._weigh(one, len(live) - len(one.pairs))
                one.pairs = live
            else:
                self.forget(name)

    def dump(self) -> bytes:
        """All of it, for a file."""
        names = {name: one.pairs for name, one in self._names.items()}
        asked = {endpoint: list(names) for endpoint, names in self._asked.items()}
        return msgspec.msgpack.encode(_Dumped(names, asked))

    def load(self, content: bytes, now: float) -> None:
        """Take up what was dumped, by an older recorder too, without what has expired; ValueError if it is none."""
        try:
            found = msgspec.msgpack.decode(content, type=_Dumped | dict[str, Pairs])
        except msgspec.DecodeError as error:
            raise ValueError(f"not a recorder's memory: {error}") from error
        dumped = found if isinstance(found, _Dumped) else _Dumped(found, {})
        asked = {name for names in dumped.asked.values() for name in names}
        whose = {NOBODY: [name for name in dumped.names if name not in asked], **dumped.asked}
        live = {name: _list_live(pairs, now) for name, pairs in dumped.names.items()}
        for name, pairs in live.items():
            if pairs:  # in their order, whoever asked
                self._names.setdefault(name, _Name(looked=now))
        for endpoint, names in whose.items():
            for name in names:
                if live.get(name):
                    self.note(name, live[name].items(), endpoint, now)

    # -- who asked

    def _claim(self, name: str, one: _Name, endpoint: str) -> None:
        names = self._asked.setdefault(endpoint, OrderedDict())
        names[name] = None
        names.move_to_end(name)
        if endpoint not in one.askers:
            one.askers.add(endpoint)
            self._weights[endpoint] += 1 + len(one.pairs)
            self._entries += 1

    def _unclaim(self, name: str, one: _Name, endpoint: str) -> None:
        """The last one takes the name along."""
        one.askers.discard(endpoint)
        names = self._asked[endpoint]
        del names[name]
        self._weights[endpoint] -= 1 + len(one.pairs)
        self._entries -= 1
        if not names:
            del self._asked[endpoint], self._weights[endpoint]
        if not one.askers:
            del self._names[name]
            self._entries -= len(one.pairs)

    def _weigh(self, one: _Name, more: int) -> None:
        self._entries += more
        for endpoint in one.askers if more else ():
            self._weights[endpoint] += more

    def _trim(self) -> None:
        while self._entries > MAX_REMEMBERED:
            heaviest = max(self._weights, key=self._weights.__getitem__)
            name = next(iter(self._asked[heaviest]))
            one = self._names[name]
            self._unclaim(name, one, heaviest)
            self.counters["forgotten"] += 0 if one.askers else len(one.pairs)


def _list_live(pairs: Pairs, now: float) -> Pairs:
    return {address: known for address, known in pairs.items() if known.expires > now}
