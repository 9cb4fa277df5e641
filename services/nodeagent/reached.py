"""The rows of map ``reached`` and the counters of rules, read where the kernel keeps them.

Rules of this module: a row is freed by its tag alone, after what it said is safe, so nothing that a program claims
meanwhile is lost; counters are read and never written. Deliberately absent: what numbers mean (``usage``).

Layouts: ``struct reach_set`` and ``struct counter``, bpf/types.h.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from schemas.terms import Direction
from schemas.wire import unpack_address
from services.common.bpf import BpfMap
from services.common.bpfarray import MappedArray
from services.nodeagent.mapcodec import TICK_SHIFT
from services.nodeagent.usage import Reach

WAYS = 8
_ROW_WORDS = 5
_BUSY = 1
_NAMED, _AUDITED = 64, 128
_COUNTER_WORDS = 2
_FLOW, _FLOW_AT = struct.Struct("=III"), 8
"""expires, domain and counter of ``struct flow``."""
_NO_COUNTER = 0xFFFFFFFF


class Reached:
    """Both maps of one pin folder. ``maps``: name -> pin."""

    def __init__(self, maps: Mapping[str, Path], endpoint_slots: int) -> None:
        self._rows = MappedArray(maps["reached"])
        self._counters = MappedArray(maps["rule_counters"])
        self._flows = BpfMap(maps["flows"])
        self._slots = endpoint_slots
        self._sets = self._rows.entries // endpoint_slots // 2
        self._read: list[int] = []

    def close(self) -> None:
        """The maps stay."""
        self._rows.close()
        self._counters.close()
        self._flows.close()

    def read_live(self) -> set[int]:
        """Indices of the counters of rules that let in a flow which lives still. Slow where there are many flows."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> TICK_SHIFT
        found = set()
        for _, value in self._flows.items():
            expires, _, counter = _FLOW.unpack_from(value, _FLOW_AT)
            if counter != _NO_COUNTER and expires >= now:
                found.add(counter)
        return found

    def read_counters(self, indices: Iterable[range]) -> dict[int, int]:
        """Flows by index of rule counter, those that are not 0."""
        words = self._counters.words
        found: dict[int, int] = {}
        for part in indices:
            flows = words[part.start * _COUNTER_WORDS : part.stop * _COUNTER_WORDS : _COUNTER_WORDS]
            found.update((index, count) for index, count in zip(part, flows, strict=True) if count)
        return found

    @property
    def all_counters(self) -> range:
        """Every index there is."""
        return range(self._counters.entries)

    def read_rows(self, endpoint: int) -> Iterator[Reach]:
        """One endpoint's rows; those are freed by the next ``free``."""
        for direction in (Direction.EGRESS, Direction.INGRESS):
            for word in self._list_sets(endpoint, direction):
                for at in range(word, word + WAYS * _ROW_WORDS, _ROW_WORDS):
                    tag, high, low, what, flows = self._rows.words[at : at + _ROW_WORDS]
                    if tag > _BUSY:
                        self._read.append(at)
                        yield _decode(direction, high.to_bytes(8, "little") + low.to_bytes(8, "little"), what, flows)

    def read_lost(self, endpoint: int) -> dict[Direction, int]:
        """Flows of an endpoint that found no row, since the map was made."""
        return {
            direction: sum(self._rows.words[word + WAYS * _ROW_WORDS] for word in self._list_sets(endpoint, direction))
            for direction in (Direction.EGRESS, Direction.INGRESS)
        }

    def free(self) -> None:
        """The rows read since the last call may be taken by others."""
        for at in self._read:
            self._rows.words[at] = 0
        self._read.clear()

    def _list_sets(self, endpoint: int, direction: Direction) -> range:
        """Where the sets begin, in words."""
        first = ((endpoint % self._slots) * 2 + int(direction)) * self._sets * self._rows.stride
        return range(first, first + self._sets * self._rows.stride, self._rows.stride)


def _decode(direction: Direction, peer: bytes, what: int, flows: int) -> Reach:
    how, who = what >> 24 & 0xFF, what >> 32
    return Reach(
        direction=direction,
        protocol=what >> 16 & 0xFF,
        port=int.from_bytes((what & 0xFFFF).to_bytes(2, "little"), "big"),
        address=unpack_address(peer),
        identity=0 if how & _NAMED else who,
        row=who if how & _NAMED else 0,
        reason=how & 63,
        is_audited=bool(how & _AUDITED),
        flows=flows,
    )
