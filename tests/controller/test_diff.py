"""Differences between states: they lead from one to the other, in an order that is safe to stop at."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.controller.policy.diff import PHASES, RowChange, apply, diff, order
from services.controller.rows import RowStore

subjects = st.builds(
    lambda phase, n: f"{phase}{n}" if phase.endswith(".") else phase, st.sampled_from(PHASES), st.integers(0, 5)
)
states = st.dictionaries(subjects, st.binary(min_size=1, max_size=3), max_size=20)


@given(states, states)
def test_a_difference_leads_from_one_state_to_the_other(old: dict[str, bytes], new: dict[str, bytes]) -> None:
    """``apply(old, diff(old, new)) == new`` for any two states."""
    assert apply(old, diff(old, new)) == new


@given(states)
def test_equal_states_differ_in_nothing(state: dict[str, bytes]) -> None:
    """A state that is already there makes no row move."""
    assert diff(state, dict(state)) == []


@given(states, states)
def test_writes_come_before_removals(old: dict[str, bytes], new: dict[str, bytes]) -> None:
    """Facts, then rulesets, then endpoints; removals after all writes and the other way round."""
    changes = diff(old, new)
    phases = [
        (change.body is None, next(n for n, prefix in enumerate(PHASES) if change.subject.startswith(prefix)))
        for change in changes
    ]
    written = [phase for is_removal, phase in phases if not is_removal]
    removed = [phase for is_removal, phase in phases if is_removal]
    assert written == sorted(written) and removed == sorted(removed, reverse=True)
    assert [is_removal for is_removal, _ in phases] == [False] * len(written) + [True] * len(removed)


@given(st.lists(st.tuples(subjects, st.none() | st.binary(min_size=1, max_size=2)), max_size=30), st.integers(1, 5))
def test_the_store_knows_what_changed(events: list[tuple[str, bytes | None]], every: int) -> None:
    """Changes taken from time to time, applied to what was published, always give the store's rows."""
    store = RowStore()
    published: dict[str, bytes] = {}
    for count, (subject, body) in enumerate(events):
        if body is None:
            store.drop(subject)
        else:
            store.put(subject, body)
        if count % every == 0:
            published = apply(published, store.take_changes())
            assert published == store.rows
    assert apply(published, store.take_changes()) == store.rows
    assert store.take_changes() == []


def test_a_row_that_changes_back_is_no_change() -> None:
    """What ends as it began is not published."""
    store = RowStore()
    store.put("yett.policy.domain.a", b"1")
    store.take_changes()
    store.put("yett.policy.domain.a", b"2")
    store.put("yett.policy.domain.a", b"1")
    store.put("yett.policy.domain.b", b"1")
    store.drop("yett.policy.domain.b")
    assert store.take_changes() == []


def test_order_is_reproducible() -> None:
    """Changes of one phase come by subject, so that a plan reads the same every time."""
    changes = [RowChange("yett.policy.domain.b", b"1"), RowChange("yett.policy.domain.a", b"1")]
    assert order(changes) == order(reversed(changes))
