"""What a holder may have at a time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.common.shares import Shares

takes = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 6), st.integers(0, 9), st.integers(0, 4)))


@given(takes)
def test_nobody_has_more_than_the_limit_and_everybody_that_much(told: list[tuple[str, int, int, int]]) -> None:
    """By a second list of what lives; clocks go in steps of two seconds, so that places come back at once."""
    shares: Shares[int] = Shares(3)
    live: dict[tuple[str, int], int] = {}
    now = 0
    for holder, thing, seconds, later in told:
        now += 2 * later + 2
        live = {key: until for key, until in live.items() if until > now}
        expected = (holder, thing) in live or sum(key[0] == holder for key in live) < 3
        assert shares.take(holder, thing, until=now + seconds, now=now) == expected
        if expected:
            live[holder, thing] = max(now + seconds, live.get((holder, thing), 0))
        assert shares.count(holder) <= 3


def test_a_full_share_is_gone_through_once_a_second() -> None:
    """A flood that is refused costs a look in a dictionary."""
    shares: Shares[int] = Shares(1)
    assert shares.take("a", 1, until=10.5, now=0.0)
    assert not shares.take("a", 2, until=20.0, now=10.0)
    assert not shares.take("a", 2, until=20.0, now=10.6)
    assert shares.take("a", 2, until=20.0, now=11.0)


def test_who_has_nothing_any_more_takes_no_memory() -> None:
    """Holders come and go."""
    shares: Shares[int] = Shares(1)
    for holder in "abc":
        shares.take(holder, 1, until=5.0, now=0.0)
    shares.release([1])
    assert shares.count("a") == 0 and shares.take("a", 2, until=9.0, now=1.0)
    shares.drop_expired(6.0)
    assert list(shares._held) == ["a"]
