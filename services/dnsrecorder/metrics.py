"""What a recorder's page of metrics says, from its status. Pure."""

from __future__ import annotations

from schemas.status import RecorderStatus
from schemas.terms import Reason
from services.common.metrics import Family, Page

ANSWERS = Family("yett_answers_total", "counter", "DNS answers that were news or handed over, from the kernel.")
LEARNED = Family("yett_names_learned_total", "counter", "Addresses learned for a name that a rule covers.")
HANDED_OVER = Family("yett_answers_handed_over_total", "counter", "Answers that the kernel left to the recorder.")
REFUSED = Family("yett_answers_refused_total", "counter", "Answers not learned, or in part.", ("reason",))
SUPPRESSED = Family("yett_answers_suppressed_total", "counter", "Answers that the kernel held back, by a budget.")
OUTCOMES = Family("yett_answers_outcome_total", "counter", "What became of answers here.", ("outcome",))
PUBLISHED = Family("yett_resolutions_published_total", "counter", "Resolutions that the stream has acknowledged.")
DROPPED = Family("yett_resolutions_dropped_total", "counter", "Resolutions given up while NATS was away.")
BUFFERED = Family("yett_resolutions_buffered", "gauge", "Resolutions that wait for the stream.")
REMEMBERED = Family("yett_names_remembered", "gauge", "Pairs of name and address that the recorder remembers.")
RING = Family("yett_resolution_ring_waiting_bytes", "gauge", "How far the recorder is behind the kernel's learner.")
UNREAD = Family(
    "yett_handovers_unread_total",
    "counter",
    "Handed over and not read: pieces of streams that nobody announced, and streams and datagrams given up.",
    ("reason",),
)
DELAY = Family(
    "yett_handover_delay_seconds_total",
    "counter",
    "From the release of an answer's last piece until it was sent on, of all that were handed over.",
)
DELAY_MAX = Family("yett_handover_delay_seconds_max", "gauge", "The longest of these delays since the start.")
FAMILIES = (
    *(ANSWERS, LEARNED, HANDED_OVER, REFUSED, SUPPRESSED, OUTCOMES, PUBLISHED, DROPPED, BUFFERED, REMEMBERED, RING),
    *(UNREAD, DELAY, DELAY_MAX),
)
UNREAD_REASONS = ("unannounced", "abandoned", "too_long", "overlapping", "corrupt")
REASONS = tuple(reason.name.lower() for reason in Reason if reason.name.startswith("LEARN_"))
KNOWN_OUTCOMES = (
    *("uncovered", "known", "forgotten", "over_addresses_per_name", "over_endpoint_budget", "over_parent_budget"),
    *("over_endpoint_pairs", "over_addresses_of_one_name"),
    *("mismatch", "observed_dropped", "event_malformed"),
)


def put_recorder(page: Page, status: RecorderStatus) -> None:
    """All of it."""
    counters = status.counters
    handed_over = Reason.LEARN_HANDED_OVER.name.lower()
    in_pieces = counters.get("handover_messages", 0)
    page.put(ANSWERS, counters.get("events", 0) + in_pieces)
    page.put(LEARNED, counters.get("learned", 0))
    page.put(HANDED_OVER, counters.get(handed_over, 0) + in_pieces)
    for reason in REASONS:
        if reason != handed_over:
            page.put(REFUSED, counters.get(reason, 0), reason.removeprefix("learn_"))
    page.put(SUPPRESSED, counters.get("suppressed", 0))
    for outcome in KNOWN_OUTCOMES:
        page.put(OUTCOMES, counters.get(outcome, 0), outcome)
    page.put(PUBLISHED, counters.get("published", 0))
    page.put(DROPPED, counters.get("dropped", 0))
    page.put(BUFFERED, status.buffered)
    page.put(REMEMBERED, counters.get("remembered", 0))
    page.put(RING, counters.get("ring_waiting_bytes", 0))
    for reason in UNREAD_REASONS:
        page.put(UNREAD, counters.get(f"handover_{reason}", 0), reason)
    page.put(DELAY, counters.get("handover_delay_micros_total", 0) / 1e6)
    page.put(DELAY_MAX, counters.get("handover_delay_micros_max", 0) / 1e6)
