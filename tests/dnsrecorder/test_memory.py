"""What a recorder remembers: bounded, and fair to who asks."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dnsrecorder import memory
from services.dnsrecorder.memory import Known, Memory

SECONDS = 90.0


def note(kept: Memory, name: str, *addresses: str, endpoint: str = "1", now: float = 0.0, lives: float = 1e6) -> None:
    kept.note(name, [(address, Known(60, now + lives)) for address in addresses], endpoint, now)


def count_entries(kept: Memory) -> int:
    """Pairs and askings, from what is there."""
    return sum(len(one.pairs) + len(one.askers) for one in kept._names.values())


def test_a_flood_of_fresh_names_pushes_out_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a neighbour asked for once, long ago, is still there, and of the flood what was asked for last."""
    monkeypatch.setattr(memory, "MAX_REMEMBERED", 100)
    kept = Memory()
    note(kept, "old.example", "192.0.2.1", endpoint="2")
    for number in range(1000):
        note(kept, f"n{number}.flood.test", "192.0.2.2", now=float(number))
    assert list(kept.find("old.example")) == ["192.0.2.1"]
    assert list(kept) == ["old.example", *(f"n{number}.flood.test" for number in range(951, 1000))]
    assert len(kept) == 50 and kept.counters["forgotten"] == 951


@pytest.mark.parametrize("first", ["1", "2"])
def test_a_name_that_both_asked_for_is_not_pushed_out_with_the_floods(
    first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asked for it first, or last."""
    monkeypatch.setattr(memory, "MAX_REMEMBERED", 100)
    kept = Memory()
    for endpoint in (first, "3", "2", "1"):
        note(kept, "old.example", "192.0.2.1", endpoint=endpoint)
    for number in range(1000):
        note(kept, f"n{number}.flood.test", "192.0.2.2")
    assert list(kept.find("old.example")) == ["192.0.2.1"]
    assert kept.askers("old.example") == ["2", "3"]


def test_one_name_has_a_bound_and_pushes_out_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 fresh addresses each time, of which none lives long: those that end first go, and are counted."""
    monkeypatch.setattr(memory, "MAX_REMEMBERED", 3000)
    kept = Memory()
    note(kept, "old.example", "192.0.2.1", endpoint="2")
    for turn in range(500):
        told = [f"2001:db8::{turn:x}:{number:x}" for number in range(200)]
        note(kept, "evil.test", *told, now=turn / 100, lives=SECONDS)
        assert len(kept.find("evil.test")) <= memory.MAX_OF_ONE_NAME
    assert list(kept.find("old.example")) == ["192.0.2.1"]
    assert set(told) <= kept.find("evil.test").keys()
    assert kept.counters["over_addresses_of_one_name"] == 500 * 200 - memory.MAX_OF_ONE_NAME


def test_a_name_with_a_thousand_addresses_keeps_them() -> None:
    """Told at once or a few at a time."""
    kept = Memory()
    many = [f"198.18.{number // 250}.{number % 250}" for number in range(1000)]
    note(kept, "long.test", *many)
    for begin in range(0, 1000, 4):
        note(kept, "short.test", *many[begin : begin + 4])
    assert set(kept.find("long.test")) == set(kept.find("short.test")) == set(many)
    assert not kept.counters


def test_what_is_over_goes() -> None:
    """From a name that is asked for, and by the clean-up from every other; who asked for nothing else is gone too."""
    kept = Memory()
    for now in range(10):
        note(kept, "busy.test", f"192.0.2.{now}", now=now * 50.0, lives=SECONDS)
    assert len(kept.find("busy.test")) == 2
    note(kept, "idle.test", "192.0.2.1", endpoint="2", now=450.0, lives=SECONDS)
    kept.drop_expired(450.0 + SECONDS)
    assert (len(kept), list(kept), kept._asked, kept._entries) == (0, [], {}, 0)


asked = st.tuples(st.sampled_from("abcd"), st.integers(0, 5), st.sampled_from("123"), st.integers(1, 9))


@given(st.lists(asked, max_size=40), st.integers(2, 20))
def test_the_count_is_what_is_there_and_within_the_bound(told: list[tuple[str, int, str, int]], bound: int) -> None:
    """Whatever is asked, expires, is forgotten and comes again from a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "MAX_REMEMBERED", bound)
        kept = Memory()
        for now, (name, number, endpoint, lives) in enumerate(told):
            note(kept, name, f"192.0.2.{number}", endpoint=endpoint, now=float(now), lives=lives)
            if number == 0:
                kept.drop_expired(float(now))
            if number == 1:
                kept.forget(name)
            assert kept._entries == count_entries(kept) <= bound
            for one, weight in kept._weights.items():
                assert weight == sum(1 + len(kept.find(name)) for name in kept._asked[one])
        again = Memory()
        again.load(kept.dump(), 0.0)
        assert count_entries(again) == count_entries(kept) and again.dump() == kept.dump()


def test_a_file_of_an_older_recorder_is_read() -> None:
    """It does not say who asked, so those names are nobody's, and give way before a neighbour's."""
    kept = Memory()
    kept.load(
        msgspec.msgpack.encode({"a.test": {"192.0.2.1": Known(60, 90.0)}, "b.test": {"192.0.2.2": Known(60, 5)}}), 10.0
    )
    assert list(kept) == ["a.test"] and kept.askers("a.test") == [memory.NOBODY]
