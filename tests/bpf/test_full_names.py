"""A full map of learned names: what is in it stays open, the rest is counted, and the agent's status says it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.terms import Direction, NodeName, Reason
from services.nodeagent.datapath import Datapath
from services.nodeagent.enforcer import Enforcer, Place
from services.nodeagent.expired import KEEP_WHEN_FULL_SECONDS
from services.nodeagent.numbers import Capacities
from tests.bpf.prog_run import SIZES, Kernel
from tests.bpf.test_learner_scale import (
    NAME,
    OTHER,
    OTHER_ROW,
    ROW,
    WEB,
    connects,
    count_pages,
    learn_many,
    let_expire,
    resolve,
    tables,
)

pytestmark = pytest.mark.kernel
ROOM = 64


@pytest.fixture(scope="module")
def small() -> Iterator[Kernel]:
    """Room for as many addresses with a name."""
    kernel = Kernel(Path("/sys/fs/bpf"), {**SIZES, "RESOLUTIONS": ROOM})
    kernel.fill(tables())
    yield kernel
    kernel.close()


@pytest.fixture
def enforcer(small: Kernel, tmp_path: Path) -> Iterator[Enforcer]:
    datapath = Datapath(small.loaded.maps)
    datapath.open()
    yield Enforcer(Place(NodeName("a"), "layout", tmp_path), datapath, Capacities())
    datapath.close()


def tell_full(enforcer: Enforcer) -> list[str]:
    """What the status says of the map, after a clean-up."""
    enforcer.collect()
    return [one.message for one in enforcer.problems() if one.object == "map resolutions"]


def test_a_full_map_of_names_is_counted_and_told_and_what_it_has_stays_open(small: Kernel, enforcer: Enforcer) -> None:
    """A name there is open, and so is another one at its address; a new address is not learned until there is room."""
    many = learn_many(small, ROOM - 1)
    assert tell_full(enforcer) == []
    resolve(small, NAME, *many, WEB)
    resolve(small, OTHER, "198.51.100.99")
    assert small.count_reason(Direction.INGRESS, Reason.MAP_FULL) == 1
    assert small.count_reason(Direction.INGRESS, Reason.LEARN_QUOTA) == 0
    assert not small.names_of("198.51.100.99") and not connects(small, "198.51.100.99")
    resolve(small, OTHER, WEB)
    assert set(small.names_of(WEB)) == {ROW, OTHER_ROW} and connects(small, WEB, 50001)
    (message,) = tell_full(enforcer)
    assert f"{ROOM} of {ROOM}" in message and "YETT_MAP_RESOLUTIONS" in message
    let_expire(small, many, seconds_ago=KEEP_WHEN_FULL_SECONDS + 1)
    assert tell_full(enforcer) == [message] and tell_full(enforcer) == []
    resolve(small, OTHER, "198.51.100.99")
    assert connects(small, "198.51.100.99", 50002) and count_pages(small) == 2
