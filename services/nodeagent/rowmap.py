"""``peers`` and ``ports`` as one map each, though most rows lie in an array beside the hash: struct row of bpf/types.h.

Rules of this module:

* A row is in one of the two: in the array where its place is free when it comes, else in the hash. It never moves, so
  no program meets a place whose row becomes another's while the row is referred to.
* A place says that the hash has rows of it before anything can look for them, and until the last of them is gone.
* The hash's size is the limit of both together, so that a full map is full whatever the rows' places.

Deliberately absent: what rows mean, and the order of writes (``plan``). One writer: the agent, which read it at first.
"""

from __future__ import annotations

import errno
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from services.common.bpf import BpfError, BpfMap, MapInfo

ROW_FAR = 0x80000000
_GOLDEN = 0x9E3779B97F4A7C15
_U32, _U64 = struct.Struct("=I"), struct.Struct("=Q")
_NO_ROW, _NO_MASK = bytes(8), bytes(64)
TABLES = frozenset({"peers", "ports"})
"""Maps that have an array ``near_<name>`` beside them."""


def choose_place(key: bytes, places: int) -> int:
    """Index of a row's place in an array of so many, a power of two: choose_place of bpf/lookup.h."""
    word: int = _U64.unpack(key)[0]
    return ((word ^ word >> 32) * _GOLDEN & (1 << 64) - 1) >> 32 & (places - 1)


class RowMap:
    """The hash, and the array before it. Keys and values are the hash's."""

    def __init__(self, far: BpfMap, near: BpfMap) -> None:
        """Takes over both."""
        self._hash, self._array = far, near
        self._read()

    @property
    def info(self) -> MapInfo:
        """The hash's: its size is what both together may hold."""
        return self._hash.info

    def _read(self) -> None:
        self._near: dict[int, bytes] = {}
        """place -> key of the row that is there"""
        self._far: defaultdict[int, set[bytes]] = defaultdict(set)
        """place -> keys in the hash"""
        for place, key, _ in self._list_near():
            self._near[place] = key
        for key, _ in self._hash.items():
            self._far[self._place(key)].add(key)

    def _list_near(self) -> Iterator[tuple[int, bytes, bytes]]:
        for index, value in self._array.items():
            key = _U64.pack(_U64.unpack_from(value)[0] & ~ROW_FAR)
            if key != _NO_ROW:
                yield _U32.unpack(index)[0], key, value[8:]

    def _place(self, key: bytes) -> int:
        return choose_place(key, self._array.info.max_entries)

    def _encode(self, place: int, mask: bytes) -> bytes:
        flag = ROW_FAR if self._far.get(place) else 0
        return _U64.pack(_U64.unpack(self._near.get(place, _NO_ROW))[0] | flag) + mask

    def close(self) -> None:
        """Close both descriptors; the pins stay."""
        self._hash.close()
        self._array.close()

    def keys(self) -> list[bytes]:
        """All keys now."""
        return [key for key, _ in self.items()]

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All rows, those of the array first."""
        for _, key, mask in self._list_near():
            yield key, mask
        yield from self._hash.items()

    def get(self, key: bytes) -> bytes | None:
        """The mask of a row, or None."""
        place = self._place(key)
        return self._get_near(place) if self._near.get(place) == key else self._hash.get(key)

    def _get_near(self, place: int) -> bytes:
        return (self._array.get(_U32.pack(place)) or b"")[8:]

    def put(self, key: bytes, value: bytes) -> None:
        """Write one row."""
        self.put_many({key: value})

    def put_many(self, entries: Mapping[bytes, bytes]) -> None:
        """Write all rows, those of the hash first. On an error some are written and the rest are not."""
        near: dict[int, bytes] = {}
        far: dict[bytes, bytes] = {}
        for key, mask in entries.items():
            place = self._place(key)
            if key not in self._far.get(place, ()) and self._near.setdefault(place, key) == key:
                near[place] = mask
            else:
                far[key] = mask
                self._far[place].add(key)
        try:
            self._check_room()
            self._hash.put_many(far)
            self._mark({self._place(key) for key in far} - near.keys())
            self._array.put_many({_U32.pack(place): self._encode(place, mask) for place, mask in near.items()})
        except BpfError:
            self._read()
            raise

    def _check_room(self) -> None:
        if len(self._near) + sum(map(len, self._far.values())) > self.info.max_entries:
            raise BpfError(errno.E2BIG, "put", self._hash.name)

    def delete(self, key: bytes) -> bool:
        """Whether there was such a row."""
        place = self._place(key)
        had = self._near.get(place) == key or key in self._far.get(place, ())
        self.delete_many([key])
        return had

    def delete_many(self, keys: Iterable[bytes]) -> None:
        """Delete those that exist; unknown keys are fine."""
        far, emptied = [], set()
        for key in keys:
            place = self._place(key)
            if self._near.get(place) == key:
                del self._near[place]
                emptied.add(place)
            elif key in self._far.get(place, ()):
                self._far[place].discard(key)
                far.append(key)
        self._array.put_many({_U32.pack(place): self._encode(place, _NO_MASK) for place in emptied})
        self._hash.delete_many(far)
        self._mark({self._place(key) for key in far} - emptied)

    def _mark(self, places: Iterable[int]) -> None:
        """Write whether the hash has rows of these places; the rows that are there stay."""
        self._array.put_many({_U32.pack(place): self._encode(place, self._get_near(place)) for place in places})


def open_table(pins: Mapping[str, Path], name: str) -> BpfMap | RowMap:
    """The map of this name, with the array beside it where there is one."""
    found = BpfMap(pins[name])
    return RowMap(found, BpfMap(pins[f"near_{name}"])) if name in TABLES else found
