"""Denials like one another are one: the first at once, then a count every window; none is lost, no scan drowns."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schemas.terms import Direction
from services.nodeagent.aggregate import GROUPS_A_CAUSE, Aggregator
from services.nodeagent.events import decode_verdict
from tests.nodeagent.records import make_record

steps = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 90), st.integers(0, 3), st.floats(0, 3)), min_size=1, max_size=400
)


def test_the_first_is_told_at_once_and_the_rest_as_a_count() -> None:
    """At the end of the window, with the last one's fields."""
    aggregator = Aggregator(5.0)
    first = aggregator.take(make_record(source_port=1), 0.0)
    assert first is not None and (first.count, first.varies) == (1, False)
    assert aggregator.take(make_record(source_port=2, suppressed=7), 1.0) is None
    assert aggregator.take(make_record(source_port=3), 2.0) is None
    assert list(aggregator.due(4.9)) == []
    (told,) = aggregator.due(5.0)
    assert (told.count, told.suppressed, told.varies) == (2, 7, False)
    assert decode_verdict(told.record).source_port == 3


def test_a_group_goes_on_for_as_long_as_it_counts() -> None:
    """After a count the next one is counted too; after a window without any, it is a first one again."""
    aggregator = Aggregator(5.0)
    aggregator.take(make_record(), 0.0)
    aggregator.take(make_record(), 1.0)
    assert [told.count for told in aggregator.due(5.0)] == [1]
    assert aggregator.take(make_record(), 6.0) is None
    assert [told.count for told in aggregator.due(10.0)] == [1]
    assert list(aggregator.due(15.0)) == []
    assert aggregator.take(make_record(), 16.0) is not None


def test_peer_port_endpoint_and_revision_tell_denials_apart() -> None:
    """The peer is the source of what comes in; the source port and the own address do not matter."""
    aggregator = Aggregator(5.0)
    different = [
        make_record(),
        make_record(destination="192.0.2.10"),
        make_record(destination_port=80),
        make_record(endpoint=5),
        make_record(revision=18),
        make_record(direction=Direction.INGRESS, source="192.0.2.9", destination="10.0.0.1"),
    ]
    assert all(aggregator.take(record, 0.0) is not None for record in different)
    same = make_record(direction=Direction.INGRESS, source="192.0.2.9", destination="10.0.0.2", source_port=9)
    assert aggregator.take(same, 0.0) is None


def test_a_scan_is_one_group_beyond_the_first_few() -> None:
    """10,000 ports denied for one cause make ``GROUPS_A_CAUSE`` events, one more, and a count that says it varies."""
    aggregator = Aggregator(5.0)
    told = [aggregator.take(make_record(destination_port=port), 0.0) for port in range(10_000)]
    assert sum(one is not None for one in told) == GROUPS_A_CAUSE + 1
    counts = list(aggregator.due(5.0))
    assert [(one.count, one.varies) for one in counts] == [(10_000 - GROUPS_A_CAUSE - 1, True)]


def test_anothers_scan_takes_nothing_from_a_neighbour() -> None:
    """Another endpoint's first denial is told at once while a scan goes on."""
    aggregator = Aggregator(5.0)
    for port in range(1000):
        aggregator.take(make_record(destination_port=port), 0.0)
    assert aggregator.take(make_record(endpoint=9), 0.0) is not None


@given(steps)
def test_nothing_is_lost(plan: list[tuple[int, int, int, float]]) -> None:
    """Whatever comes when: what was told adds up to what was taken, what the kernel held back included."""
    aggregator = Aggregator(2.0)
    now, count, suppressed = 0.0, 0, 0
    for endpoint, port, held_back, pause in plan:
        now += pause
        told = [*aggregator.due(now)]
        first = aggregator.take(make_record(endpoint=endpoint, destination_port=port, suppressed=held_back), now)
        told += [first] if first else []
        count += sum(one.count for one in told)
        suppressed += sum(one.suppressed for one in told)
    rest = list(aggregator.rest())
    assert count + sum(one.count for one in rest) == len(plan)
    assert suppressed + sum(one.suppressed for one in rest) == sum(step[2] for step in plan)
    assert len(aggregator) == 0
