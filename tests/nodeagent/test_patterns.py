"""The most specific pattern of a name knows every pattern that covers it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schemas.selectors import pattern_covers
from services.nodeagent.patterns import coarsen_patterns, find_covering, find_node, reduce_patterns

label = st.sampled_from(("a", "b", "com"))
names = st.lists(label, min_size=1, max_size=4).map(".".join)
patterns = st.sets(st.one_of(names, names.map("*.{}".format)), max_size=6)


@given(patterns, names)
def test_the_node_of_a_name_carries_all_that_cover_it(known, name) -> None:
    """The patterns of the longest match are those that cover the name."""
    node = find_node(name, known)
    expected = {one for one in known if pattern_covers(one, name)}
    assert (set(find_covering(node, known)) if node else set()) == expected


def test_the_apex_is_not_below_itself() -> None:
    """``*.x`` covers no x, at the node of x as at its own."""
    known = {"*.example.com", "example.com", "*.com"}
    assert find_covering("example.com", known) == {"example.com", "*.com"}
    assert find_covering("*.example.com", known) == {"*.example.com", "*.com"}


@given(patterns, names)
def test_reduced_patterns_cover_the_same_names(known, name) -> None:
    """Leaving out what another pattern covers changes nothing."""
    reduced = reduce_patterns(known)
    assert any(pattern_covers(one, name) for one in reduced) == any(pattern_covers(one, name) for one in known)


@given(patterns, names, st.integers(1, 3))
def test_coarse_patterns_cover_at_least_the_same_names(known, name, limit) -> None:
    """At most the limit, and nothing that was covered is lost."""
    coarse = coarsen_patterns(known, limit)
    assert len(coarse) <= limit
    if any(pattern_covers(one, name) for one in known):
        assert coarse == ["*"] or any(pattern_covers(one, name) for one in coarse)
