"""Regions of the flow table: apart, stable, and enough of them."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.nodeagent.regions import NO_REGION, Region, allot_regions, find_given, plan_moves

PLACES = 4096
INTERFACES = st.sets(st.integers(1, 10_000), max_size=300)
FEW_PLACES = 64
FEW = st.sets(st.integers(1, 30), max_size=24)
CHANGES = st.lists(st.tuples(FEW, st.none() | st.integers(0, 30), st.randoms(use_true_random=False)), max_size=6)
"""What is wanted, after how many writes the agent dies, and in which order it writes."""


@given(st.lists(INTERFACES, max_size=6))
def test_regions_never_overlap_whatever_came_before(steps: list[set[int]]) -> None:
    """After any history every interface has a region, all of one size, within the table and apart."""
    regions: dict[int, Region] = {}
    for interfaces in steps:
        regions = allot_regions(interfaces, regions, PLACES)
        assert regions.keys() == interfaces
        spans = sorted((region.first, region.first + region.size) for region in regions.values())
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        assert all(end <= PLACES for _, end in spans)
        assert len({region.size for region in regions.values()}) <= 1
        assert all(region.size * 4 * len(interfaces) >= PLACES for region in regions.values())


def test_an_interface_keeps_its_region_while_the_size_stays() -> None:
    """Pods come and go; who stays is not moved."""
    before = allot_regions({5, 6, 7}, {}, PLACES)
    after = allot_regions({5, 7, 8, 9}, before, PLACES)
    assert after[5] == before[5] and after[7] == before[7]
    assert {region.size for region in after.values()} == {1024}


def test_regions_shrink_when_interfaces_no_longer_fit_and_grow_when_they_would_fit_fourfold() -> None:
    """A power of two, and no swinging to and fro at a border."""
    two = allot_regions({1, 2}, {}, PLACES)
    three = allot_regions({1, 2, 3}, two, PLACES)
    again = allot_regions({1, 2}, three, PLACES)
    alone = allot_regions({1}, again, PLACES)
    assert [one[1].size for one in (two, three, again, alone)] == [2048, 1024, 1024, 4096]


def test_more_interfaces_than_places_have_none() -> None:
    """Nothing is shared: with no room at all there is no region, and flows are not made."""
    assert set(allot_regions(range(1, 10), {}, 8).values()) == {Region(0, 0)}


def places_of(region: Region) -> set[int]:
    return set(range(region.first, region.first + region.size))


class DiedError(Exception):
    """An agent that ends between two writes."""


class Node:
    """The regions that programs see, and where flows of each interface may be."""

    def __init__(self) -> None:
        self.regions: dict[int, Region] = {}
        self.flows: dict[int, set[int]] = {}
        self.writes_left: int | None = None

    def write(self, one: int, region: Region, living: set[int]) -> None:
        """One interface's region; ``living``: those whose flows must not be lost."""
        if self.writes_left == 0:
            raise DiedError
        if self.writes_left is not None:
            self.writes_left -= 1
        own = places_of(region)
        for other in self.regions.keys() - {one}:
            assert own.isdisjoint(places_of(self.regions[other])), "two have it"
            assert other not in living or own.isdisjoint(self.flows[other]), "another's flows are there"
        self.regions[one] = region
        self.flows.setdefault(one, set()).update(own)

    def move(self) -> None:
        self.flows = {one: places_of(region) for one, region in self.regions.items()}

    def change(self, interfaces: set[int], order: random.Random) -> None:
        """What an agent does: it knows no more than the regions in force."""
        before = dict(self.regions)
        after = allot_regions(interfaces, before, FEW_PLACES)
        steps = plan_moves(before, after)
        if steps or find_given(before, after):
            self.move()
        for step in steps:
            for one in order.sample(sorted(step), len(step)):
                self.write(one, step[one], interfaces)
            self.move()
        for one in order.sample(sorted(after), len(after)):
            if after[one] != self.regions.get(one):
                self.write(one, after[one], interfaces)
        for one in self.regions.keys() - interfaces:
            del self.regions[one], self.flows[one]


@given(CHANGES)
def test_no_write_gives_anybody_what_another_has_or_has_flows_in(changes: list) -> None:
    """Whatever comes and goes, in any order of writes, and wherever an agent dies between them: the next finishes."""
    node = Node()
    for interfaces, dies_after, order in changes:
        node.writes_left = dies_after
        try:
            node.change(interfaces, order)
        except DiedError:
            continue
        assert node.regions == allot_regions(interfaces, node.regions, FEW_PLACES)


@given(FEW, FEW)
def test_who_stays_keeps_the_beginning_of_its_region_when_regions_shrink(few: set[int], more: set[int]) -> None:
    """It moves no flow of its own but those that no longer fit."""
    before = allot_regions(few, {}, FEW_PLACES)
    after = allot_regions(few | more, before, FEW_PLACES)
    assert all(after[one].first == before[one].first and after[one].size <= before[one].size for one in few)


@given(FEW, FEW)
def test_who_moves_when_regions_grow_moves_to_what_is_nobodys(many: set[int], fewer: set[int]) -> None:
    """It keeps what its own region lies in, or goes where no present interface has anything."""
    before = allot_regions(many, {}, FEW_PLACES)
    stay = many & fewer
    after = allot_regions(stay, before, FEW_PLACES)
    for one in stay:
        others = set().union(*(places_of(before[other]) for other in stay - {one}))
        is_alone = places_of(after[one]).isdisjoint(others)
        assert places_of(before[one]) <= places_of(after[one]) or is_alone


@pytest.mark.parametrize(
    ("before", "after", "given_to_all"),
    [
        ({}, {1: Region(0, 8)}, [Region(0, 8)]),
        ({1: Region(0, 8)}, {1: Region(0, 4), 2: Region(4, 4)}, [Region(4, 4)]),
        ({1: Region(4, 4)}, {1: Region(4, 8)}, [Region(8, 4)]),
        ({1: Region(4, 4)}, {1: Region(8, 8)}, [Region(8, 8)]),
        ({1: Region(4, 4)}, {1: NO_REGION}, []),
    ],
)
def test_what_is_given_is_what_was_not_had(before: dict, after: dict, given_to_all: list[Region]) -> None:
    """The rest of what each keeps does not change hands."""
    assert find_given(before, after) == given_to_all
