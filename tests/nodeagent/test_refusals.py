"""Which answers without an address are told as refusals, and how often."""

from __future__ import annotations

import pytest

from schemas.resolution import Observed
from schemas.terms import Reason, RefusalReason
from services.nodeagent.refusals import (
    HOLD_SECONDS,
    MAX_HELD,
    MAX_WINDOWS,
    NAMES_A_POD,
    WINDOW_SECONDS,
    Refusals,
    Refused,
)

NAME = "www.example.com"
WEB = "198.51.100.7"
RCODES = {3: RefusalReason.NXDOMAIN, 5: RefusalReason.REFUSED, 2: RefusalReason.SERVFAIL, 4: RefusalReason.OTHER}


def refused(rcode: int = 3, *, name: str = NAME, endpoint: int = 4, suppressed: int = 0) -> Observed:
    reason = Reason.LEARN_RCODE if rcode else Reason.LEARN_NO_ADDRESS
    return Observed(
        endpoint_id=endpoint, name=name, addresses=(), rcode=rcode, reason=int(reason), suppressed=suppressed
    )


def given(*, name: str = NAME, endpoint: int = 4) -> Observed:
    return Observed(endpoint_id=endpoint, name=name, addresses=(WEB,))


def tell(refusals: Refusals, now: float) -> list[tuple[str, RefusalReason, int]]:
    return [(one.name, one.reason, one.count) for one in refusals.due(now)]


@pytest.mark.parametrize("rcode", [*RCODES, 0])
def test_what_dns_said_is_told_when_no_address_has_come(rcode: int) -> None:
    """By its own reason, once the time is over in which the other family may be answered."""
    refusals = Refusals()
    refusals.take(refused(rcode), 100.0)
    assert tell(refusals, 100.0 + HOLD_SECONDS - 0.1) == []
    reason = RCODES.get(rcode, RefusalReason.NO_ADDRESS)
    assert tell(refusals, 100.0 + HOLD_SECONDS) == [(NAME, reason, 1)]


@pytest.mark.parametrize("rcode", [*RCODES, 0])
@pytest.mark.parametrize("seconds", [-1.9, -0.001, 0.001, 1.9])
def test_an_address_of_the_same_name_cancels_it(rcode: int, seconds: float) -> None:
    """A good A beside an empty AAAA, before it or after it; another resolver's good answer as well."""
    refusals = Refusals()
    answers = sorted([(100.0, refused(rcode)), (100.0 + seconds, given())], key=lambda one: one[0])
    for now, answer in answers:
        refusals.take(answer, now)
    assert tell(refusals, 200.0) == []
    assert refusals.counters["answered_after_all"] == 1


def test_another_pods_address_or_another_name_cancels_nothing() -> None:
    """What counts is what this pod was told of this name."""
    refusals = Refusals()
    refusals.take(given(endpoint=5), 100.0)
    refusals.take(given(name="mail.example.com"), 100.0)
    refusals.take(refused(), 100.0)
    assert tell(refusals, 110.0) == [(NAME, RefusalReason.NXDOMAIN, 1)]


def test_an_address_of_long_ago_cancels_nothing() -> None:
    """A firewall that begins to refuse a name is told of at once."""
    refusals = Refusals()
    refusals.take(given(), 100.0)
    refusals.take(refused(), 100.0 + HOLD_SECONDS + 0.1)
    assert tell(refusals, 110.0) == [(NAME, RefusalReason.NXDOMAIN, 1)]


def test_a_sinkhole_is_told_at_once() -> None:
    """Its address is the refusal: nothing is waited for, and it cancels nothing."""
    refusals = Refusals()
    refusals.take(refused(0), 100.0)
    hole = Observed(endpoint_id=4, name=NAME, addresses=("0.0.0.0",), reason=int(Reason.LEARN_REFUSED_ADDRESS))
    refusals.take(hole, 100.0)
    assert tell(refusals, 100.0) == [(NAME, RefusalReason.SINKHOLE, 1)]
    assert tell(refusals, 110.0) == [(NAME, RefusalReason.NO_ADDRESS, 1)]


def test_other_reasons_are_no_refusal_of_dns() -> None:
    """A quota that is used up is ours; its addresses are addresses."""
    refusals = Refusals()
    refusals.take(refused(), 100.0)
    refusals.take(Observed(endpoint_id=4, name=NAME, addresses=(WEB,), reason=int(Reason.LEARN_QUOTA)), 100.1)
    assert tell(refusals, 110.0) == []


def test_who_tries_again_is_told_once_and_then_as_a_count_a_window() -> None:
    """An hour of a question a second: every answer is in one of the counts, and the pods told apart."""
    refusals, told, seconds = Refusals(), list[tuple[str, RefusalReason, int]](), 3600
    for second in range(seconds):
        refusals.take(refused(), float(second))
        told += tell(refusals, float(second))
    windows = (seconds - HOLD_SECONDS) / WINDOW_SECONDS
    assert windows - 1 <= len(told) <= windows + 2
    told += [(one.name, one.reason, one.count) for one in refusals.rest(float(seconds))]
    assert sum(count for _, _, count in told) == seconds
    assert {(name, reason) for name, reason, _ in told} == {(NAME, RefusalReason.NXDOMAIN)}


def test_a_window_without_refusals_ends() -> None:
    """The next one after it is told at once again."""
    refusals = Refusals()
    for now in (0.0, WINDOW_SECONDS * 3):
        refusals.take(refused(), now)
        assert tell(refusals, now + HOLD_SECONDS) == [(NAME, RefusalReason.NXDOMAIN, 1)]
        assert tell(refusals, now + HOLD_SECONDS + WINDOW_SECONDS) == []
    assert len(refusals) == 0


def test_names_without_number_are_told_as_one_that_varies() -> None:
    """10,000 fresh names of one pod in a window: some by name, the rest as a count; a neighbour is told as ever."""
    refusals, names = Refusals(), 10_000
    for number in range(names):
        refusals.take(refused(name=f"n{number}.example.com"), number / names)
    refusals.take(refused(endpoint=5), 1.0)
    told = list(refusals.due(WINDOW_SECONDS))
    neighbour = [one for one in told if one.endpoint == 5]
    assert [one.count for one in neighbour] == [1]
    assert len(told) <= NAMES_A_POD + 2
    told += refusals.due(2 * WINDOW_SECONDS)
    assert sum(one.count for one in told) == names + 1
    assert [one.varies for one in told].count(True) == 1


def test_what_it_holds_is_bounded() -> None:
    """Ten times as many names as there is room for, of 1,000 pods: none of it is lost, and little is kept."""
    refusals, told, pods = Refusals(), list[Refused](), 1000
    for number in range(10 * MAX_HELD):
        refusals.take(refused(name=f"n{number}.example.com", endpoint=number % pods), 1.0)
        refusals.take(given(name=f"g{number}.example.com", endpoint=number % pods), 1.0)
        told += refusals.due(1.0)
        assert len(refusals) <= 2 * MAX_HELD + MAX_WINDOWS + pods
    told += refusals.rest(2.0)
    assert sum(one.count for one in told) == 10 * MAX_HELD
    assert len(refusals) <= MAX_HELD


def test_what_the_kernel_held_back_is_told_in_sum() -> None:
    """However many answers are one event."""
    refusals = Refusals()
    for suppressed in (0, 5, 7):
        refusals.take(refused(suppressed=suppressed), 0.0)
    assert [(one.count, one.suppressed) for one in refusals.due(10.0)] == [(3, 12)]
