"""Rows in an array and a hash beside it are one map to the agent, and are found where the programs look."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.bpf import TYPE_ARRAY, TYPE_HASH, BpfError, BpfMap, create_map
from services.nodeagent.rowmap import ROW_FAR, RowMap, choose_place

pytestmark = pytest.mark.kernel

PLACES, ROOM = 4, 12
KEYS = [struct.pack("=II", handle, klass) for handle in (1, 2, 1023) for klass in (1, 5, 0x40000005, 0x80000007)]
"""Twelve rows for four places: most are in the hash."""
MASKS = [bytes([number]) * 64 for number in range(1, 4)]

writes = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(MASKS), min_size=1, max_size=6)
removals = st.lists(st.sampled_from(KEYS), min_size=1, max_size=6)
steps = st.lists(st.one_of(writes, removals), max_size=12)


class Pair:
    """The two maps, as the kernel has them."""

    def __init__(self, *, room: int = ROOM) -> None:
        self.hash = create_map(TYPE_HASH, 8, 64, room, flags=1)
        self.array = create_map(TYPE_ARRAY, 4, 72, PLACES)

    def open(self) -> RowMap:
        return RowMap(self.hash, self.array)

    def look_up(self, key: bytes) -> bytes | None:
        """find_peers of bpf/lookup.h: the place, and the hash only where the place says so."""
        near = self.array.get(choose_place(key, PLACES).to_bytes(4, "little")) or bytes(72)
        word = struct.unpack_from("=Q", near)[0]
        if word & ~ROW_FAR == struct.unpack("=Q", key)[0]:
            return near[8:]
        return self.hash.get(key) if word & ROW_FAR else None

    def places(self) -> dict[int, int]:
        """place -> key of the row there, 0 where there is none."""
        words = {struct.unpack("=I", at)[0]: struct.unpack_from("=Q", row)[0] for at, row in self.array.items()}
        return {place: word & ~ROW_FAR for place, word in words.items()}


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.hash.close()
    made.array.close()


def take(rows: RowMap, model: dict[bytes, bytes], step: Mapping[bytes, bytes] | list[bytes]) -> None:
    if isinstance(step, list):
        rows.delete_many(step)
        for key in step:
            model.pop(key, None)
    else:
        rows.put_many(step)
        model.update(step)


@given(steps)
def test_programs_find_what_was_written_and_nothing_else(given_steps: list[dict[bytes, bytes] | list[bytes]]) -> None:
    """After any writes and deletes every row is found by the programs' own steps, and no other; no row ever moved."""
    pair, model = Pair(), dict[bytes, bytes]()
    with pair.hash, pair.array:
        rows = pair.open()
        for step in given_steps:
            before = pair.places()
            take(rows, model, step)
            assert {key: pair.look_up(key) for key in KEYS} == {key: model.get(key) for key in KEYS}
            assert {key: rows.get(key) for key in KEYS} == {key: model.get(key) for key in KEYS}
            for place, word in pair.places().items():
                had = before.get(place, 0)
                assert word in (had, 0) or had == 0
        assert dict(rows.items()) == dict(pair.open().items()) == model


def test_a_restarted_agent_goes_on_where_it_was(pair: Pair) -> None:
    """What is in the array stays there, a row in the hash is updated there, and a place forgets its last hash row."""
    first = pair.open()
    for key in KEYS:
        first.put(key, MASKS[0])
    before = pair.places()
    again = pair.open()
    again.put_many(dict.fromkeys(KEYS, MASKS[1]))
    assert pair.places() == before and {pair.look_up(key) for key in KEYS} == {MASKS[1]}
    assert all(again.delete(key) for key in KEYS) and not again.delete(KEYS[0])
    assert not list(pair.array.items()) and not list(pair.hash.items())


def test_full_is_full_whatever_the_places() -> None:
    """The hash's size is the limit of both: one more row is refused, and nothing of it is there."""
    pair = Pair(room=3)
    with pair.hash, pair.array:
        rows = pair.open()
        rows.put_many(dict.fromkeys(KEYS[:3], MASKS[0]))
        with pytest.raises(BpfError) as refused:
            rows.put(KEYS[3], MASKS[0])
        assert refused.value.errno == errno.E2BIG and rows.keys() == [*dict(rows.items())]
        assert sorted(rows.keys()) == sorted(KEYS[:3]) and pair.look_up(KEYS[3]) is None
        rows.delete(KEYS[0])
        rows.put(KEYS[3], MASKS[0])
        assert pair.look_up(KEYS[3]) == MASKS[0]


def test_classes_of_all_kinds_spread_over_the_places() -> None:
    """Rows of 200 rulesets with 49 classes of each kind: of 65,536 places at most a sixth of them shares one."""
    keys = [
        struct.pack("=II", handle, flag | klass)
        for handle in range(1, 201)
        for flag in (0, 0x40000000, 0x80000000)
        for klass in range(1, 50)
    ]
    taken = {choose_place(key, 65536) for key in keys}
    assert len(taken) > len(keys) * 5 / 6


def test_a_map_is_closed_with_its_array(pair: Pair) -> None:
    """Both descriptors go."""
    rows = pair.open()
    rows.close()
    assert isinstance(pair.hash, BpfMap) and pair.hash.fd == pair.array.fd == -1
