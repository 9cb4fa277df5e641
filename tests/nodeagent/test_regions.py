"""Regions of the flow table: apart, stable, and enough of them."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.nodeagent.regions import Region, allot_regions

PLACES = 4096
INTERFACES = st.sets(st.integers(1, 10_000), max_size=300)


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
