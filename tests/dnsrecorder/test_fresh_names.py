"""Fresh subdomains below an allowed wildcard, from one pod, for eight hours: what the daemons keep of them.

The clock is simulated. The kernel's part is in ``bpf/test_learner_scale.py``.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pytest

from schemas import wire
from schemas.policy import Config
from schemas.resolution import Observed, Resolution
from schemas.terms import NodeName, Reason
from services.dnsrecorder.dnswire import Answer, Record
from services.dnsrecorder.memory import MAX_REMEMBERED
from services.dnsrecorder.record import ENDPOINT_BURST, ENDPOINT_RATE, Publication, Recorder
from services.nodeagent.names import BusNames
from services.nodeagent.refusals import Refusals
from services.nodeagent.verdicts import MAX_REMEMBERED as MAX_TOLD
from services.nodeagent.verdicts import PodName, Storyteller

NODE = NodeName("node-a")
FLOOD, NEIGHBOUR = 4, 5
BURST = 10_000
AN_HOUR = 10_000
HOURS = 8
WARM_HOURS = 6
"""By then every bound is reached."""
GROWTH = 1.03
"""Beyond it: a leak would add two hours' names, a quarter of the largest of these numbers."""
TTL_SECONDS = 60
NEIGHBOURS = "api.example.com"
MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One answer of the simulated hours."""

    name: str
    address: str
    endpoint: int
    at: float


def list_answers(hours: range) -> Iterator[Asked]:
    """In hour 0 10,000 fresh names at once; then 10,000 an hour; a neighbour asks for one name every minute."""
    for hour in hours:
        step = 0.001 if hour == 0 else 3600 / AN_HOUR
        number = hour * AN_HOUR
        minute = hour * 3600.0
        for n in range(BURST if hour == 0 else AN_HOUR):
            now = hour * 3600.0 + n * step
            if now >= minute:
                yield Asked(NEIGHBOURS, "198.51.100.7", NEIGHBOUR, now)
                minute = now + MINUTE
            fresh = number + n
            yield Asked(f"n{fresh}.wild.example", f"10.{fresh >> 16}.{fresh >> 8 & 255}.{fresh & 255}", FLOOD, now)


def count_entries(thing: object) -> int:
    """Of all containers that an object holds, those within them included."""
    if isinstance(thing, Mapping):
        return len(thing) + sum(map(count_entries, thing.values()))
    if isinstance(thing, list | tuple | set | frozenset | deque):
        return len(thing) + sum(map(count_entries, thing))
    if type(thing).__module__.startswith("services."):
        slots = [getattr(thing, name, None) for name in getattr(type(thing), "__slots__", ())]
        return count_entries([*vars(thing).values()] if hasattr(thing, "__dict__") else slots)
    return 0


def play(thing: object, take: Callable[[Asked], None]) -> list[int]:
    """Entries after each hour."""
    entries = []
    for hour in range(HOURS):
        for asked in list_answers(range(hour, hour + 1)):
            take(asked)
        entries.append(count_entries(thing))
    return entries


def test_the_recorders_memory_is_flat_and_the_neighbours_name_is_published_as_ever() -> None:
    """What is over the pod's budget is counted, not published; the oldest are forgotten, and counted."""
    recorder = Recorder()
    recorder.set_config(Config(ttl_min_seconds=30, ttl_max_seconds=3600, grace_seconds=60), 0.0)
    for pattern in ("*.wild.example", NEIGHBOURS):
        recorder.add_pattern(pattern, 0.0)
    of_neighbour: list[tuple[float, Publication]] = []
    published = 0

    def take(asked: Asked) -> None:
        nonlocal published
        answer = Answer(asked.name, 0, (Record(asked.address, TTL_SECONDS),))
        made = recorder.note(answer, str(asked.endpoint), asked.at)
        if made is not None and asked.endpoint == NEIGHBOUR:
            of_neighbour.append((asked.at, made))
        elif made is not None:
            published += 1
        assert len(recorder) <= MAX_REMEMBERED

    entries = play(recorder, take)
    assert max(entries[WARM_HOURS:]) <= GROWTH * max(entries[:WARM_HOURS])
    told = BURST + (HOURS - 1) * AN_HOUR
    at_once = ENDPOINT_BURST + ENDPOINT_RATE * BURST * 0.001
    over = recorder.counters["over_endpoint_budget"]
    assert over == pytest.approx(BURST - at_once, abs=2)
    assert published == told - over
    assert recorder.counters["forgotten"] == told + 1 - len(recorder)
    gaps = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(of_neighbour)]
    assert max(gap for gap in gaps if gap < 3000) <= TTL_SECONDS + 60, "the neighbour's name ran out on the bus"


def test_an_agent_that_hears_them_keeps_no_more_than_is_alive() -> None:
    """What other nodes tell is dropped when its time is over; the neighbour's name is known at every moment."""
    names = BusNames()
    names.set_tables(Config(grace_seconds=60), {"*.wild.example": 7, NEIGHBOURS: 8}, {}, {})
    alive = AN_HOUR * (TTL_SECONDS + 60 + MINUTE) / 3600
    most = 0
    dropped_at = 0.0

    def take(asked: Asked) -> None:
        nonlocal most, dropped_at
        resolution = Resolution(name=asked.name, addresses=(asked.address,), ttl_seconds=TTL_SECONDS, node=NODE)
        names.hear(wire.subject_resolution(NODE, asked.name), resolution, age_seconds=0.0, now=asked.at)
        if asked.at - dropped_at >= MINUTE:
            names.drop_expired(asked.at)
            dropped_at = asked.at
            if asked.at > 3600 + MINUTE:
                most = max(most, len(names._known))
                assert any(key[0] == NEIGHBOURS for key in names._known)

    entries = play(names, take)
    assert max(entries[1:]) <= GROWTH * max(entries[:2])
    assert most <= alive * 1.1 + 2


def test_what_the_agent_tells_verdicts_with_is_flat() -> None:
    """Which endpoint was told which address, bounded; and of refused names a few windows."""
    storyteller, refusals = Storyteller(NODE), Refusals()
    storyteller.set_state(pods={FLOOD: PodName("app", "web")}, rulesets={}, patterns={}, owners={})

    def take(asked: Asked) -> None:
        storyteller.note_observed(Observed(endpoint_id=asked.endpoint, name=asked.name, addresses=(asked.address,)))
        reason = int(Reason.LEARN_RCODE)
        refusals.take(
            Observed(endpoint_id=asked.endpoint, name=asked.name, addresses=(), rcode=3, reason=reason), asked.at
        )
        for refused in refusals.due(asked.at):
            assert refused.endpoint in (FLOOD, NEIGHBOUR)
        assert len(refusals) < BURST

    entries = play([storyteller, refusals], take)
    assert max(entries[WARM_HOURS:]) <= GROWTH * max(entries[:WARM_HOURS])
    assert len(storyteller._told) == MAX_TOLD
