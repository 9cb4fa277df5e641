"""From one map layout to the next: what is copied, what is not, and whose numbers the copies speak in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common.bpf import BpfMap
from services.nodeagent import mapcodec
from services.nodeagent.carry import Descriptions, find_former, plan_carrier
from services.nodeagent.loader import Loaded, load
from services.nodeagent.mapcodec import SCOPE_LEARNED, NamesPage
from services.nodeagent.memory import Memory, take_over
from services.nodeagent.numbers import Capacities, make_spaces
from tests.bpf.prog_run import SIZES

OLD_KEY = mapcodec.encode_resolution_key("192.0.2.1", scope=SCOPE_LEARNED)
NEW_KEY = mapcodec.encode_resolution_key("192.0.2.2", scope=SCOPE_LEARNED)


def page(row: int) -> bytes:
    return mapcodec.encode_names(NamesPage(((row, 99),) + ((0, 0),) * 7, (1,) * 8, False))


@pytest.fixture(scope="module")
def layouts() -> Iterator[tuple[Path, Loaded, Loaded]]:
    """A pin root with two layouts of one build, of different sizes."""
    root = Path(f"/sys/fs/bpf/yett-carry-{os.getpid()}")
    try:
        yield root, load(root, SIZES), load(root, {**SIZES, "RESOLUTIONS": 4, "FLOWS": 2048})
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.mark.kernel
def test_names_are_carried_over_and_newer_ones_stay(layouts: tuple[Path, Loaded, Loaded]) -> None:
    """Twice over changes nothing; what the new map has already is kept; what does not fit is left out, no error."""
    root, old, new = layouts
    assert find_former(root, new.folder) == old.folder and find_former(root, old.folder) == new.folder
    assert old.descriptions == new.descriptions
    carrier = plan_carrier(old.folder, new.maps, now=new.descriptions, before=old.descriptions)
    with BpfMap(old.maps["resolutions"]) as before, BpfMap(new.maps["resolutions"]) as after:
        before.put(OLD_KEY, page(5))
        before.put(NEW_KEY, page(6))
        after.put(NEW_KEY, page(7))
        assert carrier.copy_before()["resolutions"] == 1
        assert dict(after.items()) == {OLD_KEY: page(5), NEW_KEY: page(7)}
        assert carrier.copy_after()["resolutions"] == 0
        for number in range(10, 20):
            before.put(mapcodec.encode_resolution_key(f"192.0.2.{number}", scope=SCOPE_LEARNED), page(8))
        carrier.copy_after()
        assert len(after.keys()) == 4 and after.get(OLD_KEY) == page(5)


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
