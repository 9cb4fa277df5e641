"""Where the TCP connections of this node lead, as far as its flows tell.

Every flow has a place, and ``places`` is mapped: one word of each is looked at, the rest only of those that lead where
is asked for, and the flow itself of those alone. Other protocols are left out: their packets do not tell whether they
are in the middle of something, so an expired name admits none of them.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Set
from pathlib import Path

from services.common.bpf import BpfMap
from services.common.bpfarray import MappedArray
from services.nodeagent.expired import Place
from services.nodeagent.mapcodec import FLOW_KEY_WORDS, SCOPE_LEARNED, SCOPE_SHARED, TICK_SHIFT, is_live_flow, is_tcp

_PEER = 16
_INTERFACE = slice(16, 20)


def find_live(maps: Mapping[str, Path], places: Set[Place], ids: Mapping[int, int]) -> Set[Place]:
    """Those of these places at which a TCP connection lives: anybody's, or the endpoint's own whose scope it is.

    ``maps``: name -> pin; ``ids``: endpoint by ifindex.
    """
    asked = _Asked(places)
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> TICK_SHIFT
    with MappedArray(maps["places"]) as array, BpfMap(maps["flows"]) as flows:
        words = array.words
        for number, half in enumerate(words[1::FLOW_KEY_WORDS]):
            if half not in asked.halves:
                continue
            key = words[number * FLOW_KEY_WORDS : (number + 1) * FLOW_KEY_WORDS].tobytes()
            scopes = asked.find_scopes(key[:_PEER], ids.get(int.from_bytes(key[_INTERFACE], "little"), 0))
            if not scopes or not is_tcp(key):
                continue
            flow = flows.get(key)
            if flow is not None and is_live_flow(flow, now):
                asked.answer(key[:_PEER], scopes)
    return asked.answered


class _Asked:
    """Places by address, and how many of the addresses end in the same eight bytes: what is compared at first."""

    def __init__(self, places: Set[Place]) -> None:
        self._scopes: dict[bytes, set[int]] = defaultdict(set)
        for place in places:
            self._scopes[place[:_PEER]].add(int.from_bytes(place[_PEER:], "little"))
        self.halves = Counter(_read_half(peer) for peer in self._scopes)
        self.answered: set[Place] = set()

    def find_scopes(self, peer: bytes, endpoint: int) -> list[int]:
        """In which a flow of this endpoint keeps names of that address."""
        scopes = self._scopes.get(peer, ())
        return [scope for scope in (SCOPE_LEARNED, SCOPE_SHARED, endpoint) if scope in scopes] if scopes else []

    def answer(self, peer: bytes, scopes: Iterable[int]) -> None:
        """A connection lives at these: they are not asked for any more."""
        self.answered.update(peer + scope.to_bytes(4, "little") for scope in scopes)
        self._scopes[peer].difference_update(scopes)
        if not self._scopes[peer]:
            half = _read_half(peer)
            self.halves[half] -= 1
            if not self.halves[half]:
                del self.halves[half]


def _read_half(peer: bytes) -> int:
    return int.from_bytes(peer[_PEER // 2 :], "little")
