"""From one map layout to the next: what is copied, what is not, and whose numbers the copies speak in."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.common.bpf import BpfMap
from services.nodeagent import mapcodec, occupancy
from services.nodeagent.carry import Carrier, Descriptions, find_former, plan_carrier
from services.nodeagent.datapath import boottime_seconds
from services.nodeagent.loader import Loaded, load
from services.nodeagent.mapcodec import SCOPE_LEARNED, NamesPage
from services.nodeagent.memory import Memory, take_over
from services.nodeagent.merge import merge_queries
from services.nodeagent.numbers import Capacities, make_spaces
from tests.bpf.prog_run import SIZES

CARRIED = ("resolutions", "queries", "quotas", "credits")
QUERY = struct.Struct("=QIHH")
OLD_KEY = mapcodec.encode_resolution_key("192.0.2.1", scope=SCOPE_LEARNED)
NEW_KEY = mapcodec.encode_resolution_key("192.0.2.2", scope=SCOPE_LEARNED)


def page(row: int, expires: int) -> bytes:
    return mapcodec.encode_names(NamesPage(((row, expires),) + ((0, 0),) * 7, (1,) * 8, False))


@pytest.fixture(scope="module")
def layouts() -> Iterator[tuple[Path, Loaded, Loaded]]:
    """A pin root with two layouts of one build, of different sizes."""
    root = Path(f"/sys/fs/bpf/yett-carry-{os.getpid()}")
    try:
        yield root, load(root, SIZES), load(root, {**SIZES, "RESOLUTIONS": 4, "FLOWS": 2048})
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def sides(layouts: tuple[Path, Loaded, Loaded]) -> Iterator[Sides]:
    """Both layouts' maps with nothing in them, and the carrier from one to the other."""
    root, old, new = layouts
    assert find_former(root, new.folder) == old.folder and find_former(root, old.folder) == new.folder
    assert old.descriptions == new.descriptions
    carrier = plan_carrier(old.folder, new.maps, now=new.descriptions, before=old.descriptions)
    with ExitStack() as stack:
        before, after = ({name: stack.enter_context(BpfMap(one.maps[name])) for name in CARRIED} for one in (old, new))
        for one in (*before.values(), *after.values()):
            one.delete_many(one.keys())
        yield Sides(carrier, before, after)


@dataclass(frozen=True)
class Sides:
    carrier: Carrier
    before: dict[str, BpfMap]
    after: dict[str, BpfMap]

    def names(self) -> dict[bytes, NamesPage]:
        return {key: mapcodec.decode_names(value) for key, value in self.after["resolutions"].items()}

    def count_charged(self) -> dict[int, int]:
        held = occupancy.count_charged(self.after["quotas"].items(), self.after["credits"].items())
        return {endpoint: count for endpoint, count in held.items() if count}


def teach(side: dict[str, BpfMap], key: bytes, row: int, expires: int, owner: int) -> None:
    """As the programs do: the name first, then its charge."""
    value = side["resolutions"].get(key)
    names = mapcodec.decode_names(value) if value else NamesPage(((0, 0),) * 8, (0,) * 8, False)
    free = names.slots.index((0, 0))
    slots, owners = list(names.slots), list(names.owners)
    slots[free], owners[free] = (row, expires), owner
    side["resolutions"].put(key, mapcodec.encode_names(NamesPage(tuple(slots), tuple(owners), names.more)))
    index = mapcodec.encode_index(owner)
    quota = list(occupancy.QUOTA.unpack(side["quotas"].get(index) or bytes(occupancy.QUOTA.size)))
    quota[occupancy._LEARNED] += 1
    side["quotas"].put(index, occupancy.QUOTA.pack(*quota))


@pytest.mark.kernel
def test_what_was_learned_during_a_swap_comes_beside_what_was_there(sides: Sides) -> None:
    """At an address whose page was copied already: by the old programs, by the new ones, renewed by either; each name
    is there once, with its later time, and charged once to who learned it."""
    soon, later = (boottime_seconds() + seconds for seconds in (60, 600))
    teach(sides.before, OLD_KEY, 5, soon, 1)
    teach(sides.before, OLD_KEY, 6, soon, 1)
    sides.carrier.copy_before()
    assert sides.count_charged() == {1: 2}
    for row, owner in ((7, 1), (8, 2)):
        teach(sides.before, OLD_KEY, row, soon, owner)
    teach(sides.after, OLD_KEY, 8, later, 3)
    teach(sides.after, OLD_KEY, 9, soon, 3)
    teach(sides.before, NEW_KEY, 5, soon, 2)
    assert sides.carrier.copy_after()["resolutions"] == 2
    held = {key: dict(zip(page.slots, page.owners, strict=True)) for key, page in sides.names().items()}
    assert held[OLD_KEY] == {(5, soon): 1, (6, soon): 1, (8, later): 3, (9, soon): 3, (7, soon): 1, (0, 0): 0}
    assert held[NEW_KEY] == {(5, soon): 2, (0, 0): 0}
    assert sides.count_charged() == {1: 3, 2: 1, 3: 2}
    assert sides.carrier.copy_after()["resolutions"] == 0 and sides.count_charged() == {1: 3, 2: 1, 3: 2}


@pytest.mark.kernel
def test_a_name_renewed_during_a_swap_lives_as_long_as_either_side_says(sides: Sides) -> None:
    """The old programs' renewal counts, and is no new charge; what expired and was collected does not come back."""
    soon, later = (boottime_seconds() + seconds for seconds in (60, 600))
    teach(sides.before, OLD_KEY, 5, soon, 1)
    teach(sides.before, NEW_KEY, 6, 1, 1)
    sides.carrier.copy_before()
    sides.before["resolutions"].put(OLD_KEY, page(5, later))
    sides.after["resolutions"].delete(NEW_KEY)
    sides.carrier.copy_after()
    assert {key: one.slots[0] for key, one in sides.names().items()} == {OLD_KEY: (5, later)}
    assert sides.count_charged() == {1: 2}


@pytest.mark.kernel
def test_a_full_page_goes_on_in_the_next(sides: Sides) -> None:
    """Eight names of each side: all sixteen, and the first page says that there are more."""
    expires = boottime_seconds() + 60
    teach(sides.before, OLD_KEY, 1, expires, 1)
    sides.carrier.copy_before()
    for n in range(7):
        teach(sides.before, OLD_KEY, 10 + n, expires, 1)
        teach(sides.after, OLD_KEY, 20 + n, expires, 1)
    sides.carrier.copy_after()
    second = mapcodec.encode_resolution_key("192.0.2.1", 1, scope=SCOPE_LEARNED)
    names = sides.names()
    assert [names[OLD_KEY].more, names[second].more] == [True, False]
    rows = {row for key in (OLD_KEY, second) for row, _ in names[key].slots if row}
    assert rows == {1, *range(10, 17), *range(20, 27)} and sides.count_charged() == {1: 15}


@pytest.mark.kernel
def test_what_does_not_fit_a_smaller_map_is_left_out(sides: Sides) -> None:
    """No error, and what is there stays."""
    expires = boottime_seconds() + 60
    teach(sides.before, OLD_KEY, 5, expires, 1)
    sides.carrier.copy_before()
    for number in range(10, 20):
        teach(sides.before, mapcodec.encode_resolution_key(f"192.0.2.{number}", scope=SCOPE_LEARNED), 8, expires, 1)
    sides.carrier.copy_after()
    assert len(sides.names()) == 4 and sides.names()[OLD_KEY].slots[0] == (5, expires)


@pytest.mark.kernel
def test_what_other_nodes_told_is_the_agents_own_to_write(sides: Sides) -> None:
    """Of shared names the new map has the newest: what is not there was forgotten."""
    key = mapcodec.encode_resolution_key("192.0.2.1")
    teach(sides.before, key, 5, boottime_seconds() + 60, 0)
    sides.carrier.copy_before()
    assert key in sides.names()
    sides.after["resolutions"].delete(key)
    sides.carrier.copy_after()
    assert not sides.names()


@pytest.mark.kernel
def test_questions_of_both_sides_wait_for_their_answers(sides: Sides) -> None:
    """In one set: asked before, during the swap under the old programs and under the new ones, or again."""
    index = mapcodec.encode_index(3)
    first, again, old, new = ((n, 100, n, 53) for n in range(1, 5))
    sides.before["queries"].put(index, questions(first, again))
    sides.carrier.copy_before()
    sides.before["queries"].put(index, questions(first, (2, 109, 2, 53), old))
    sides.after["queries"].put(index, questions(first, again, new))
    assert sides.carrier.copy_after()["queries"] == 1
    found = sides.after["queries"].get(index) or b""
    assert {one for one in QUERY.iter_unpack(found) if one[0]} == {first, (2, 109, 2, 53), old, new}
    assert sides.carrier.copy_after()["queries"] == 0


def test_of_too_many_questions_those_asked_last_wait() -> None:
    """A set has room for eight."""
    newer = questions(*((n, 100 + n, n, 53) for n in range(1, 9)))
    older = questions(*((n, 100 + n, n, 53) for n in range(5, 13)))
    found = merge_queries(newer, older)
    assert len(found) == len(newer) and {one[0] for one in QUERY.iter_unpack(found)} == set(range(5, 13))
    assert merge_queries(found, newer) == found and merge_queries(bytes(128), bytes(128)) == bytes(128)


def questions(*asked: tuple[int, int, int, int]) -> bytes:
    """A ``struct query_set``: hash, ticks, id and port of each."""
    return b"".join(QUERY.pack(*one) for one in asked).ljust(128, b"\0")


@pytest.mark.kernel
def test_a_map_that_is_described_otherwise_starts_empty(layouts: tuple[Path, Loaded, Loaded]) -> None:
    """Bytes of another struct would be read as what they are not."""
    _, old, new = layouts
    changed = {**old.descriptions, "resolutions": "another"}
    carrier = plan_carrier(old.folder, new.maps, now=new.descriptions, before=changed)
    assert "resolutions" not in carrier.same and "reasons" in carrier.same
    assert plan_carrier(old.folder, new.maps, now=new.descriptions, before={}).same == frozenset()


@pytest.mark.kernel
@pytest.mark.parametrize("other", ["resolutions", "quotas", "credits"])
def test_what_was_charged_goes_along_with_what_was_given_back_or_begins_anew(
    layouts: tuple[Path, Loaded, Loaded], other: str
) -> None:
    """One without the other would be an endpoint that may learn nothing more."""
    _, old, new = layouts
    before = {**old.descriptions, other: "another"}
    same = plan_carrier(old.folder, new.maps, now=new.descriptions, before=before).same
    assert not same & {"quotas", "credits"} and ("resolutions" in same) == (other != "resolutions")


def test_descriptions_survive_the_disk(tmp_path: Path) -> None:
    """What was kept is read; what was not, or is garbage, is nothing."""
    kept = Descriptions(tmp_path)
    kept.write("one", {"flows": "abc"})
    assert kept.read("one") == {"flows": "abc"} and kept.read("two") == {}
    (tmp_path / "layout-two").write_bytes(b"{")
    assert kept.read("two") == {}
    kept.remove("one")
    assert kept.read("one") == {}


def test_numbers_go_along_only_from_the_layout_in_force() -> None:
    """The memory must be that layout's, and its numbers must fit the new sizes."""
    memory = Memory(layout="old", scene="s", spaces=make_spaces(Capacities(handles=8)))
    number = memory.spaces.handles.take("content")
    taken = take_over(memory, layout="new", former="old", capacities=Capacities(handles=4))
    assert taken is not None and (taken.layout, taken.former) == ("new", "old")
    assert taken.spaces.handles.find("content") == number
    assert take_over(taken, layout="new", former="old", capacities=Capacities(handles=4)) == taken
    assert take_over(memory, layout="new", former="other", capacities=Capacities()) is None
    assert take_over(memory, layout="new", former="old", capacities=Capacities(handles=1)) is None
    assert take_over(None, layout="new", former="old", capacities=Capacities()) is None
