"""What a recorder remembers and publishes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.policy import Config
from services.dnsrecorder import record
from services.dnsrecorder.dnswire import Answer, Record
from services.dnsrecorder.record import Patterns, Publication, Recorder

CONFIG = Config(ttl_min_seconds=30, ttl_max_seconds=3600, grace_seconds=60)
labels = st.text("ab", min_size=1, max_size=2)
names = st.lists(labels, min_size=1, max_size=4).map(".".join)


def make_recorder(*patterns: str) -> Recorder:
    recorder = Recorder()
    recorder.set_config(CONFIG, 0.0)
    for pattern in patterns:
        recorder.add_pattern(pattern, 0.0)
    return recorder


def answer(name: str, *addresses: str, ttl: int = 100) -> Answer:
    return Answer(name, 0, tuple(Record(address, ttl) for address in addresses))


def covers_by_definition(pattern: str, name: str) -> bool:
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and name != pattern[2:]
    return name == pattern


@given(st.lists(names.flatmap(lambda name: st.sampled_from([name, f"*.{name}"])), max_size=4), names)
def test_patterns_cover_what_the_definition_says(patterns: list[str], name: str) -> None:
    """``*.x`` covers one or more labels under x and not x; any other pattern its own name alone."""
    kept = Patterns()
    for pattern in patterns:
        kept.add(pattern)
    assert kept.covers(name) == any(covers_by_definition(pattern, name) for pattern in patterns)


def test_a_covered_name_is_published_once_for_its_time() -> None:
    """The second answer with the same address is no news."""
    recorder = make_recorder("example.com")
    published = recorder.note(answer("example.com", "192.0.2.1"), "1", 0.0)
    assert published is not None
    assert (published.addresses, published.ttl_seconds, published.keep_seconds) == (("192.0.2.1",), 100, 160)
    assert recorder.note(answer("example.com", "192.0.2.1"), "2", 1.0) is None
    assert recorder.counters["known"] == 1


def test_a_name_is_published_again_when_half_of_its_time_is_over() -> None:
    """So that no name in use runs out on a node that only hears of it."""
    recorder = make_recorder("example.com")
    recorder.note(answer("example.com", "192.0.2.1"), "1", 0.0)
    assert recorder.note(answer("example.com", "192.0.2.1"), "1", 120.0) is not None


def test_what_the_kernel_tells_at_half_time_is_published() -> None:
    """It counts whole seconds, so half of 160 may have been over for it after 79."""
    recorder = make_recorder("example.com")
    recorder.note(answer("example.com", "192.0.2.1"), "1", 0.0)
    assert recorder.note(answer("example.com", "192.0.2.1"), "1", 75.0) is None
    assert recorder.note(answer("example.com", "192.0.2.1"), "1", 79.0) is not None


def test_a_new_address_is_published_and_the_old_one_is_not_repeated() -> None:
    """Only what is news goes out."""
    recorder = make_recorder("example.com")
    recorder.note(answer("example.com", "192.0.2.1"), "1", 0.0)
    published = recorder.note(answer("example.com", "192.0.2.1", "192.0.2.2"), "1", 1.0)
    assert published is not None
    assert published.addresses == ("192.0.2.2",)


def test_a_name_resolved_before_its_pattern_is_published_with_the_pattern() -> None:
    """The operator writes the rule after the pod has looked the name up: it works at once."""
    recorder = make_recorder()
    assert recorder.note(answer("a.example.com", "192.0.2.1"), "1", 0.0) is None
    assert recorder.counters["uncovered"] == 1
    published = recorder.add_pattern("*.example.com", 40.0)
    assert [item.name for item in published] == ["a.example.com"]
    assert (published[0].ttl_seconds, published[0].keep_seconds) == (60, 120)


def test_a_name_that_has_expired_is_not_published_with_its_pattern() -> None:
    """TTL and grace bound what is said of the past."""
    recorder = make_recorder()
    recorder.note(answer("example.com", "192.0.2.1", ttl=1), "1", 0.0)
    assert recorder.add_pattern("example.com", 91.0) == []


def test_learn_all_publishes_uncovered_names_from_then_on_and_those_known() -> None:
    """``learn: all`` is a setting that works live."""
    recorder = make_recorder()
    recorder.note(answer("a.test", "192.0.2.1"), "1", 0.0)
    known = recorder.set_config(Config(learn_all=True), 1.0)
    assert [item.name for item in known] == ["a.test"]
    assert recorder.note(answer("b.test", "192.0.2.2"), "1", 2.0) is not None


def test_after_the_bus_forgot_everything_what_is_covered_is_published_again() -> None:
    """A stream that was deleted fills again from the recorders' memories."""
    recorder = make_recorder("example.com")
    recorder.note(answer("example.com", "192.0.2.1"), "1", 0.0)
    recorder.note(answer("other.test", "192.0.2.2"), "1", 0.0)
    assert [item.name for item in recorder.republish(1.0)] == ["example.com"]


def test_an_endpoint_over_its_budget_is_not_published_and_others_are() -> None:
    """A flood of fresh names from one pod costs that pod alone."""
    recorder = make_recorder("*.evil.test", "example.com")
    results = [
        recorder.note(answer(f"n{number}.evil.test", "192.0.2.1"), "1", 0.0)
        for number in range(int(record.ENDPOINT_BURST) + 5)
    ]
    assert sum(result is None for result in results) == 5
    assert recorder.counters["over_endpoint_budget"] == 5
    assert recorder.note(answer("example.com", "192.0.2.9"), "2", 0.0) is not None


def flood(recorder: Recorder, names: int, addresses: int, *, endpoint: str = "1") -> list[Publication]:
    """Fresh names with fresh addresses, as many a second as the budget for publications allows."""
    made = []
    for name in range(names):
        told = [f"2001:db8::{name:x}:{number:x}" for number in range(addresses)]
        made.append(recorder.note(answer(f"n{name}.evil.test", *told), endpoint, name / record.ENDPOINT_RATE))
    return [one for one in made if one is not None]


def test_one_endpoint_has_so_many_pairs_on_the_bus_and_no_more() -> None:
    """200 names of 100 addresses would fill the half of every other node's map that all share."""
    recorder = make_recorder("*.evil.test", "example.com")
    made = flood(recorder, 200, 100)
    assert sum(len(one.addresses) for one in made) == record.ENDPOINT_PAIRS
    assert recorder.counters["over_endpoint_pairs"] == 200 * 100 - record.ENDPOINT_PAIRS
    assert recorder.note(answer("example.com", "192.0.2.9"), "2", 1.0) is not None
    later = recorder.note(answer("n0.evil.test", "2001:db8::ffff"), "1", 170.0)
    assert later is not None, "its first ones are over"


def test_an_address_that_nobody_paid_for_does_not_travel_in_anothers_place() -> None:
    """Of a name with more addresses than travel the rest takes no place that the quota left empty."""
    recorder = make_recorder("*.evil.test")
    flood(recorder, 41, 100)
    told = ["2001:db8::0:0", *(f"2001:db9::{number:x}" for number in range(600))]
    made = recorder.note(answer("n0.evil.test", *told), "1", 100.0)
    assert made is not None and made.addresses == ("2001:db8::0:0",), "it has this one already"


def test_a_pattern_publishes_no_more_of_one_endpoint_than_its_own_answers_would() -> None:
    """What it filled the memory with beforehand waits for no pattern; a neighbour's name is published with it."""
    recorder = make_recorder()
    recorder.note(answer("good.test", "192.0.2.9"), "2", 0.0)
    flood(recorder, 200, 100)
    made = recorder.add_pattern("*.test", 2.0)
    assert sum(len(one.addresses) for one in made) == record.ENDPOINT_PAIRS + 1
    assert "good.test" in [one.name for one in made]


def test_what_was_over_budget_is_published_once_there_is_budget_again() -> None:
    """Refused for now is not published for ever: the name stays due."""
    recorder = make_recorder("*.evil.test")
    for number in range(int(record.ENDPOINT_BURST)):
        recorder.note(answer(f"n{number}.evil.test", "192.0.2.1"), "1", 0.0)
    assert recorder.note(answer("late.evil.test", "192.0.2.2"), "1", 0.0) is None
    assert recorder.note(answer("late.evil.test", "192.0.2.2"), "1", 5.0) is not None


def test_addresses_beyond_the_limit_of_a_name_are_counted() -> None:
    """At most ``addresses_per_name`` of one name travel."""
    recorder = make_recorder("example.com")
    recorder.set_config(Config(addresses_per_name=3), 0.0)
    published = recorder.note(answer("example.com", *[f"192.0.2.{n}" for n in range(1, 6)]), "1", 0.0)
    assert published is not None
    assert len(published.addresses) == 3
    assert recorder.counters["over_addresses_per_name"] == 1


@given(st.lists(st.tuples(names, st.integers(0, 3), st.integers(0, 200)), max_size=20))
def test_a_dumped_memory_says_after_loading_what_it_would_have_said(told: list[tuple[str, int, int]]) -> None:
    """A restart of the recorder forgets nothing that is still valid."""
    recorder = make_recorder()
    for name, number, ttl in told:
        recorder.note(answer(name, f"192.0.2.{number}", ttl=ttl), "1", 0.0)
    again = make_recorder()
    again.load(recorder.dump(), 0.0)
    assert len(again) == len(recorder)
    for pattern in ("*.a", "a", "*.b", "b.a"):
        assert again.add_pattern(pattern, 50.0) == recorder.add_pattern(pattern, 50.0)


def test_a_memory_that_is_none_is_refused() -> None:
    """A torn file is said to be one."""
    with pytest.raises(ValueError, match="not a recorder's memory"):
        Recorder().load(b"\xff\x00garbage", 0.0)


@pytest.mark.parametrize("share", ["node", "off"])
def test_nothing_is_published_that_is_not_to_travel(share: str) -> None:
    """It is remembered, and published once it may travel again."""
    recorder = make_recorder("*.example.com")
    recorder.set_config(Config(share=share), 0.0)
    assert recorder.note(answer("a.example.com", "192.0.2.1"), "1", 0.0) is None
    assert recorder.add_pattern("a.example.com", 1.0) == []
    assert recorder.counters["not_shared"] == 1
    assert [one.name for one in recorder.set_config(Config(share="zone"), 2.0)] == ["a.example.com"]


def test_a_forgotten_name_is_news_again() -> None:
    """Its addresses are told to whoever asks; others stay as they are."""
    recorder = make_recorder("*.example.com")
    for name in ("a.example.com", "b.example.com"):
        recorder.note(answer(name, "192.0.2.1", "192.0.2.2"), "1", 0.0)
    assert recorder.forget("a.example.com") == ("192.0.2.1", "192.0.2.2")
    assert recorder.forget("a.example.com") == () and len(recorder) == 2
    assert recorder.note(answer("a.example.com", "192.0.2.1"), "1", 1.0) is not None
    assert recorder.note(answer("b.example.com", "192.0.2.1"), "1", 1.0) is None
    recorder.forget_all()
    assert len(recorder) == 0
