"""What the page of metrics makes of a recorder's counters."""

from __future__ import annotations

from schemas.status import RecorderStatus
from schemas.terms import NodeName
from services.common.metrics import Page
from services.dnsrecorder.metrics import ANSWERS, DELAY, DELAY_MAX, HANDED_OVER, UNREAD, put_recorder


def test_what_was_handed_over_is_a_share_of_the_answers() -> None:
    """Of ten answers on the kernel's ring two were given up; four more came in pieces."""
    counters = {"events": 10, "learn_handed_over": 2, "handover_messages": 4}
    page = Page()
    put_recorder(page, RecorderStatus(node=NodeName("a"), counters=counters))
    assert (page.values[HANDED_OVER], page.values[ANSWERS]) == ({(): 6}, {(): 14})


def test_what_was_not_read_and_how_late_the_rest_was_is_told() -> None:
    """By reason, those at 0 too; delays in seconds."""
    counters = {
        **{"handover_unannounced": 1, "handover_abandoned": 2, "handover_overlapping": 3},
        **{"handover_delay_micros_total": 2_500_000, "handover_delay_micros_max": 1_500},
    }
    page = Page()
    put_recorder(page, RecorderStatus(node=NodeName("a"), counters=counters))
    assert page.values[UNREAD] == {
        ("unannounced",): 1,
        ("abandoned",): 2,
        ("too_long",): 0,
        ("overlapping",): 3,
        ("corrupt",): 0,
    }
    assert (page.values[DELAY], page.values[DELAY_MAX]) == ({(): 2.5}, {(): 0.0015})
