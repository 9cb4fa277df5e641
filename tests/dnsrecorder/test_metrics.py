"""What the page of metrics makes of a recorder's counters."""

from __future__ import annotations

from schemas.status import RecorderStatus
from schemas.terms import NodeName
from services.common.metrics import Page
from services.dnsrecorder.metrics import ANSWERS, HANDED_OVER, put_recorder


def test_what_was_handed_over_is_a_share_of_the_answers() -> None:
    """Of ten answers on the kernel's ring two were given up; four more came in pieces."""
    counters = {"events": 10, "learn_handed_over": 2, "handover_messages": 4}
    page = Page()
    put_recorder(page, RecorderStatus(node=NodeName("a"), counters=counters))
    assert (page.values[HANDED_OVER], page.values[ANSWERS]) == ({(): 6}, {(): 14})
