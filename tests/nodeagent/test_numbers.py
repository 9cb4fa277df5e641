"""Numbers last as long as their content is wanted, and are never given a second meaning while present."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.nodeagent.numbers import (
    Capacities,
    Numbers,
    NumbersExhausted,
    Ranges,
    Spaces,
    find_misfits,
    make_spaces,
    resize,
)

KEYS = st.text("abcdefgh", min_size=1, max_size=1)


def space(last: int = 5) -> Numbers:
    return Numbers(space="test", first=1, last=last)


def test_the_same_content_has_the_same_number() -> None:
    """Asking twice gives one number; another content gets another."""
    numbers = space()
    assert numbers.take("a") == numbers.take("a") == 1
    assert numbers.take("b") == 2
    assert numbers.find("a") == 1
    assert numbers.find("never") == 0


def test_released_numbers_come_back_last_and_oldest_first() -> None:
    """A number is reused only when no fresh one is left, the one released longest ago first."""
    numbers = space(4)
    for key in "abc":
        numbers.take(key)
    numbers.release("b")
    numbers.release("a")
    assert [numbers.take(key) for key in "xyz"] == [4, 2, 1]


def test_exhaustion_names_the_space() -> None:
    """A space without a free number says which one, and keeps what it has given."""
    numbers = space(1)
    numbers.take("a")
    with pytest.raises(NumbersExhausted, match="test"):
        numbers.take("b")
    assert numbers.take("a") == 1


@given(st.lists(st.tuples(KEYS, st.booleans()), max_size=60))
def test_no_number_has_two_contents(steps) -> None:
    """Whatever is taken and released in whatever order, a number in use stands for one content."""
    numbers = space(8)
    for key, is_wanted in steps:
        if is_wanted:
            numbers.take(key)
        else:
            numbers.release(key)
        assert len(set(numbers.given.values())) == len(numbers.given)
        assert not set(numbers.released) & set(numbers.given.values())


@given(st.sets(st.integers(1, 20)), st.lists(KEYS, max_size=8))
def test_amnesia_starts_above_what_is_present(present, keys) -> None:
    """Without its memory a space gives no number that was found in the maps."""
    numbers = space(40)
    numbers.avoid(present)
    assert not {numbers.take(key) for key in keys} & present


def test_what_was_found_keeps_its_number() -> None:
    """Content that the maps themselves name (a ruleset by its hash) is recognised after amnesia."""
    numbers = space(9)
    numbers.learn({"a": 7, "b": 3})
    assert (numbers.take("a"), numbers.take("b")) == (7, 3)
    assert numbers.take("c") == 8
    assert numbers.take("d") == 9
    assert numbers.take("e") not in (3, 7, 8, 9)


def test_memory_wins_over_what_was_found() -> None:
    """A remembered number is not changed by a finding, and a number that is taken is given to no other key."""
    numbers = space(9)
    numbers.take("a")
    numbers.learn({"a": 5, "b": 1})
    assert numbers.take("a") == 1
    assert numbers.take("b") not in (1, 5)


def test_keep_only_frees_the_rest() -> None:
    """What is wanted no more is released; what is wanted keeps its number."""
    numbers = space()
    for key in "abc":
        numbers.take(key)
    assert sorted(numbers.keep_only("b")) == ["a", "c"]
    assert numbers.given == {"b": 2}


@given(st.lists(st.tuples(KEYS, st.integers(1, 6), st.booleans()), max_size=40))
def test_ranges_never_overlap(steps) -> None:
    """Rule counters of two rulesets never share an index."""
    ranges = Ranges(space="counters", capacity=64)
    for key, size, is_wanted in steps:
        if is_wanted:
            ranges.take(key, size)
        else:
            ranges.keep_only(one for one in list(ranges.given) if one != key)
        places = sorted(ranges.given.values())
        assert all(start + size <= following for (start, size), (following, _) in pairwise(places))


def test_ranges_reuse_gaps_and_end() -> None:
    """A freed gap is used again where it fits; a range that fits nowhere is refused."""
    ranges = Ranges(space="counters", capacity=10)
    assert [ranges.take("a", 4), ranges.take("b", 4)] == [0, 4]
    ranges.keep_only(["b"])
    assert ranges.take("c", 3) == 0
    with pytest.raises(NumbersExhausted):
        ranges.take("d", 3)


def test_spaces_survive_the_disk() -> None:
    """Encoded and decoded, every space goes on where it was."""
    spaces = make_spaces(Capacities(handles=8))
    spaces.handles.take("hash")
    spaces.counters.take("hash", 3)
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(spaces), type=Spaces)
    assert again == spaces
    assert again.handles.take("other") == 2


def test_other_sizes_keep_every_number_or_say_which_space_does_not_fit() -> None:
    """What was given stays given in larger and smaller spaces; a number beyond a smaller one is told."""
    spaces = make_spaces(Capacities(handles=8, endpoint_ids=8, counters=16))
    given = [spaces.handles.take(key) for key in "abc"]
    spaces.counters.take("a", 9)
    for sizes in (Capacities(handles=4, endpoint_ids=4, counters=9), Capacities()):
        assert find_misfits(spaces, sizes) == []
        resized = resize(spaces, sizes)
        assert [resized.handles.take(key) for key in "abc"] == given
        assert resized.handles.last == sizes.handles - 1 and resized.counters.capacity == sizes.counters
    assert find_misfits(spaces, Capacities(handles=3, counters=8)) == ["handles", "counters"]
    with pytest.raises(NumbersExhausted):
        resize(spaces, Capacities(handles=4)).handles.take("d")
