"""Which expired names stay: by their time, by what lives at their address, and by how much room there is."""

from __future__ import annotations

from collections.abc import Set

from services.nodeagent.expired import LOOKS, PlacesInUse, Terms, choose_keep
from services.nodeagent.mapcodec import NamesPage

NOW = 1_000_000
TERMS = Terms(expired_seconds=3600, in_use_seconds=86_400)
ONE, OTHER = b"one", b"other"


def page(*ages: int, owner: int = 3) -> NamesPage:
    """Names that expired so many seconds ago."""
    slots = tuple((7, NOW - age) for age in ages)
    return NamesPage((*slots, *((0, 0),) * (8 - len(slots))), (owner,) * 8, more=False)


def test_a_page_stays_while_one_of_its_names_does() -> None:
    """An hour; a day in use; a minute where there is no room, in use or not."""
    keep = choose_keep(TERMS, NOW, is_full=False, crowded={4})
    assert not keep.is_over(page(3599, 90_000)) and keep.is_over(page(3600, 90_000))
    assert not keep.is_over(page(3600), in_use=True) and keep.is_over(page(86_400), in_use=True)
    assert keep.is_over(page(60, owner=4), in_use=True) and not keep.is_over(page(59, owner=4))
    full = choose_keep(TERMS, NOW, is_full=True)
    assert full.is_over(page(60), in_use=True) and not full.is_over(page(59))


def test_flows_matter_for_names_between_the_two_times() -> None:
    """For no other, so that nobody looks at flows for nothing."""
    keep = choose_keep(TERMS, NOW, is_full=False, crowded={4})
    assert [keep.is_doubtful(page(age)) for age in (-5, 3599, 3600, 86_399, 86_400)] == [
        False,
        False,
        True,
        True,
        False,
    ]
    assert not keep.is_doubtful(page(7200, owner=4))
    assert not choose_keep(TERMS, NOW, is_full=True).is_doubtful(page(7200))


def test_terms_that_are_shorter_than_each_other_shut() -> None:
    """A day that is less than the hour is the hour."""
    keep = choose_keep(Terms(expired_seconds=3600, in_use_seconds=10), NOW, is_full=False)
    assert keep.longest == keep.before and not keep.is_doubtful(page(3600))


def test_flows_are_looked_at_now_and_then_and_only_where_something_is_doubtful() -> None:
    """Between two looks what is doubtful is in use; what was seen stays so for as long as any expired name."""
    asked: list[Set[bytes]] = []

    def find(places: Set[bytes]) -> Set[bytes]:
        asked.append(places)
        return {ONE} & places if len(asked) == 1 else set()

    in_use = PlacesInUse(TERMS, NOW - 3600)
    look = TERMS.expired_seconds // LOOKS
    assert in_use.choose(set(), NOW, find) == set() and not asked
    assert in_use.choose({ONE, OTHER}, NOW, find) == {ONE}
    assert in_use.choose({ONE, OTHER}, NOW + look - 1, find) == {ONE, OTHER} and len(asked) == 1
    assert in_use.choose({ONE, OTHER}, NOW + look, find) == {ONE} and len(asked) == 2
    assert in_use.choose({ONE}, NOW + 3599, find) == {ONE} and in_use.choose({ONE}, NOW + 3899, find) == set()
