"""The digest that proves a replayed state."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schemas.digest import Digest, hash_row

rows = st.dictionaries(st.text(min_size=1, max_size=40), st.binary(max_size=60), max_size=40)
changes = st.lists(st.tuples(st.text(min_size=1, max_size=3), st.none() | st.binary(max_size=4)), max_size=60)


def digest_of(state: dict[str, bytes]) -> str:
    digest = Digest()
    for subject, body in state.items():
        digest.put(subject, body)
    return digest.hexdigest()


@given(rows, rows)
def test_two_states_have_one_digest_only_if_they_are_equal(left: dict[str, bytes], right: dict[str, bytes]) -> None:
    """Digests are equal if and only if the live rows are."""
    assert (digest_of(left) == digest_of(right)) == (left == right)


@given(changes)
def test_a_digest_kept_through_changes_equals_one_made_afresh(history: list[tuple[str, bytes | None]]) -> None:
    """The way to a state leaves no trace in its digest, removals and replacements included."""
    kept, state = Digest(), {}
    for subject, body in history:
        if body is None:
            kept.remove(subject)
            state.pop(subject, None)
        else:
            kept.put(subject, body)
            state[subject] = body
        assert kept.hexdigest() == digest_of(state)
        assert len(kept) == len(state)


def test_subject_and_body_cannot_be_shifted_into_each_other() -> None:
    """A byte that moves from the subject to the body is another row."""
    assert hash_row("ab", b"c") != hash_row("a", b"bc")


def test_two_rows_that_exchange_bodies_change_the_digest() -> None:
    """A digest by sum would not see this."""
    assert digest_of({"a": b"1", "b": b"2"}) != digest_of({"a": b"2", "b": b"1"})


def test_the_empty_state_has_the_digest_of_a_state_that_was_emptied() -> None:
    """Removing the last row of a bucket gives the bucket back its empty hash."""
    digest = Digest()
    digest.put("a", b"1")
    digest.hexdigest()
    digest.remove("a")
    assert digest.hexdigest() == Digest().hexdigest()
