"""Names of one address in slots: a row never moves, time frees, nothing is lost between pages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.nodeagent.slots import MAX_NAMES, Slots, drop_expired, list_pages, place_row

lessons = st.lists(st.tuples(st.integers(1, 80), st.integers(1, 100)), max_size=120)


@given(lessons, st.integers(0, 50))
def test_live_rows_are_there_once(taught, now) -> None:
    """Whatever is taught, each live row is in exactly one slot, with the latest expiry it was promised."""
    slots: Slots = []
    latest: dict[int, int] = {}
    for row, expires in taught:
        if place_row(slots, row, expires, now) >= 0:
            latest[row] = max(expires, latest.get(row, 0))
    rows = [row for row, _ in slots if row]
    assert len(rows) == len(set(rows))
    assert len(slots) <= MAX_NAMES
    assert all(expiry <= latest[row] for row, expiry in slots if row)
    live = {row for row, expires in latest.items() if expires > now}
    assert live <= set(rows)


@given(lessons)
def test_pages_hold_the_slots_in_order(taught) -> None:
    """Read page by page, the slots come back; every page but the last says that more follow."""
    slots: Slots = []
    for row, expires in taught:
        place_row(slots, row, expires, 0)
    pages = list(list_pages(slots))
    read = [slot for page in pages for slot in page.slots]
    assert read[: len(slots)] == slots
    assert not any(row for row, _ in read[len(slots) :])
    assert [page.more for page in pages] == [True] * (len(pages) - 1) + [False] * bool(pages)


def test_the_sixty_fifth_live_name_is_refused() -> None:
    """64 names at once; another one has no place until one of them is over."""
    slots: Slots = []
    for row in range(1, MAX_NAMES + 1):
        assert place_row(slots, row, 100, 0) == row - 1
    assert place_row(slots, 99, 100, 50) == -1
    assert place_row(slots, 99, 300, 200) == 0


def test_an_expired_name_explains_denials_as_long_as_it_costs_no_page() -> None:
    """Within its page it stays beside new names; before a page is added for another name its slot is taken."""
    slots: Slots = []
    place_row(slots, 1, 10, 0)
    assert [place_row(slots, row, 100, 50) for row in range(2, 9)] == [1, 2, 3, 4, 5, 6, 7]
    assert place_row(slots, 9, 100, 50) == 0


def test_a_row_never_moves() -> None:
    """What was dropped leaves a hole, so that the others keep their page."""
    slots: Slots = []
    for row, expires in ((1, 10), (2, 99), (3, 10)):
        place_row(slots, row, expires, 0)
    assert not drop_expired(slots, 10)
    assert slots == [(0, 0), (2, 99)]
    assert drop_expired(slots, 99)
    assert slots == []
