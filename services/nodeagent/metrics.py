"""What an agent's page of metrics says, from its status and a few numbers more. Pure but for the histogram's type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from schemas.status import FORGED_PACKETS, AgentStatus
from schemas.terms import RefusalReason
from schemas.verdict import NameRefused, VerdictEvent
from services.common.metrics import Family, Page

PACKETS = Family("yett_packets_total", "counter", "Packets judged, by the kernel's count.", ("direction", "reason"))
VERDICTS = Family(
    "yett_verdicts_total",
    "counter",
    "Verdicts told: denials and audited flows in full, of allowed flows the share that is told.",
    ("direction", "verdict", "tier", "reason"),
)
NAMES_REFUSED = Family(
    "yett_names_refused_total",
    "counter",
    "Answers by which DNS refused a name that a rule of the pod covers.",
    ("reason",),
)
EVENTS = Family("yett_verdict_events_total", "counter", "Verdict events by what became of them.", ("outcome",))
RING = Family("yett_verdict_ring_waiting_bytes", "gauge", "How far the agent is behind the kernel's verdicts.")
QUEUE = Family("yett_verdict_queue", "gauge", "Verdicts that wait for NATS.")
REVISION = Family("yett_revision_enforced", "gauge", "Policy revision in force on the node.")
HEARD = Family("yett_revision_heard", "gauge", "Newest policy revision that the agent has proven.")
PROVEN = Family("yett_revision_proven", "gauge", "0 while the agent waits for a state that its digest proves.")
PROGRAMMING = Family(
    "yett_programming_seconds", "histogram", "From a proven revision to its enforcement in the kernel."
)
ENDPOINTS = Family("yett_endpoints", "gauge", "Pod interfaces by state.", ("state",))
WINDOW = Family("yett_start_window_seconds_max", "gauge", "Standard mode: longest time until an interface was judged.")
RING_LOST = Family(
    "yett_ring_lost_total", "counter", "Events that a full ring of the kernel's did not take.", ("ring",)
)
NAMES = Family("yett_names", "gauge", "Live names that other nodes told of.")
EXPIRED = Family(
    "yett_names_expired_total", "counter", "Addresses of names whose time ended and was not renewed.", ("source",)
)
RESOLUTIONS = Family(
    "yett_resolutions_heard_total", "counter", "Addresses of names from other nodes, by outcome.", ("outcome",)
)
MAP_ENTRIES = Family("yett_map_entries", "gauge", "Entries of a map.", ("map",))
MAP_CAPACITY = Family("yett_map_capacity", "gauge", "Most entries of a map.", ("map",))
QUOTA_USED = Family("yett_quota_used_max", "gauge", "Most that one pod, or one ruleset, uses of a quota.", ("quota",))
QUOTA_LIMIT = Family("yett_quota_limit", "gauge", "What a quota lets one pod, or one ruleset, use.", ("quota",))
MAP_REFUSED = Family("yett_map_writes_refused_total", "counter", "Writes that a map refused.", ("map",))
PROBLEMS = Family("yett_problems", "gauge", "What a person must hear about, on this node.")
ENFORCING = Family("yett_enforcing", "gauge", "0 where the switch enforce is off: nothing is enforced by policy.")
FOREIGN = Family("yett_foreign_enforcers", "gauge", "Pod interfaces on which a program of others runs before ours.")
FILTERS = Family("yett_filters_put_back_total", "counter", "Filters that somebody removed and the agent put back.")
FORGED = Family(
    "yett_forged_resolver_packets_total",
    "counter",
    "Packets dropped because they came to the node with its resolver's own address.",
)
FAMILIES = (
    *(
        PACKETS,
        VERDICTS,
        NAMES_REFUSED,
        EVENTS,
        RING,
        RING_LOST,
        QUEUE,
        REVISION,
        HEARD,
        PROVEN,
        PROGRAMMING,
        ENDPOINTS,
        WINDOW,
        NAMES,
        EXPIRED,
    ),
    *(
        RESOLUTIONS,
        MAP_ENTRIES,
        MAP_CAPACITY,
        QUOTA_USED,
        QUOTA_LIMIT,
        MAP_REFUSED,
        PROBLEMS,
        ENFORCING,
        FOREIGN,
        FILTERS,
        FORGED,
    ),
)
SOURCES = ("learned", "shared", "outside")
"""Who taught a name: a pod's answer here, another node, or a resolver outside the cluster."""
PROGRAMMING_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
OUTCOMES = {
    "published": "verdicts_published",
    "aggregated": "verdicts_aggregated",
    "sampled_out": "verdicts_sampled_out",
    "left_out_busy": "verdicts_left_out_busy",
    "suppressed": "verdicts_suppressed",
    "dropped": "verdicts_dropped",
    "malformed": "verdicts_malformed",
    "unknown_endpoint": "verdicts_of_unknown_endpoints",
}
"""Outcome -> the agent's counter. ``suppressed``: held back in the kernel, by a budget or because the ring was full."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """What a status does not say. ``maps``: name -> (entries, capacity), ``quotas``: -> (used, limit)."""

    heard: int
    ring_bytes: int
    queued: int
    verdicts: Mapping[tuple[str, str, str, str], int]
    refused: Mapping[str, int]
    names: Mapping[str, int]
    maps: Mapping[str, tuple[int, int]]
    quotas: Mapping[str, tuple[int, int]]
    lost: Mapping[str, int]


class VerdictCounts:
    """Sinks of the verdict bus: told verdicts by direction, verdict, tier and reason; refused names by reason."""

    def __init__(self) -> None:
        self.counted: Counter[tuple[str, str, str, str]] = Counter()
        self.refused: Counter[str] = Counter()

    def count_refused(self, event: NameRefused) -> None:
        """One refused name."""
        self.refused[event.reason or RefusalReason.SINKHOLE] += event.count

    def __call__(self, event: VerdictEvent) -> None:
        key = (
            event.direction.name.lower(),
            event.verdict.name.lower(),
            event.tier.name.lower(),
            event.reason.name.lower(),
        )
        self.counted[key] += event.count


def put_agent(page: Page, status: AgentStatus, numbers: Numbers) -> None:
    """Everything but the histogram, which is observed."""
    for name, count in status.counters.items():
        direction, _, reason = name.partition(".")
        if reason:
            page.put(PACKETS, count, direction, reason.lower())
        elif name.startswith("refused_"):
            page.put(MAP_REFUSED, count, name.removeprefix("refused_"))
    for labels, count in numbers.verdicts.items():
        page.put(VERDICTS, count, *labels)
    for reason in RefusalReason:
        page.put(NAMES_REFUSED, numbers.refused.get(reason, 0), reason)
    for outcome, name in OUTCOMES.items():
        page.put(EVENTS, status.counters.get(name, 0), outcome)
    page.put(RING, numbers.ring_bytes)
    page.put(QUEUE, numbers.queued)
    page.put(REVISION, status.revision)
    page.put(HEARD, numbers.heard)
    page.put(PROVEN, 0 if status.torn else 1)
    for state, count in Counter(one.state for one in status.endpoints).items():
        page.put(ENDPOINTS, count, state)
    page.put(WINDOW, max((one.window_millis for one in status.endpoints), default=0.0) / 1000)
    page.put(NAMES, status.names)
    for outcome, count in numbers.names.items():
        page.put(RESOLUTIONS, count, outcome)
    for name, (entries, capacity) in numbers.maps.items():
        page.put(MAP_ENTRIES, entries, name)
        page.put(MAP_CAPACITY, capacity, name)
    for name, (used, limit) in numbers.quotas.items():
        page.put(QUOTA_USED, used, name)
        page.put(QUOTA_LIMIT, limit, name)
    for ring, count in numbers.lost.items():
        page.put(RING_LOST, count, ring)
    for source in SOURCES:
        page.put(EXPIRED, status.counters.get(f"names_expired_{source}", 0), source)
    page.put(PROBLEMS, len(status.problems))
    page.put(ENFORCING, int(status.enforcing))
    page.put(FOREIGN, sum(bool(one.foreign) for one in status.endpoints))
    page.put(FILTERS, status.counters.get("filters_put_back", 0))
    page.put(FORGED, status.counters.get(FORGED_PACKETS, 0))
