"""One scenario asked of both engines: where they differ, and what was concluded.

Verdict, tier, reason, policy and rule must be equal. Where the oracle tells a name the kernel must tell one too, and it
must be one that an answer gave to this address. Which one, where several lead to one rule, is left open; so is a name
where a prefix of the same rule covers the address as well: either is a true story.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from schemas.terms import Direction
from services.controller.policy.model import Finding, Packet, Pod
from services.scenario.evaluate_engine import EvaluateEngine
from services.scenario.model import Scenario
from services.scenario.result import conclude_probe
from services.scenario.route import Crossing, RouteError, find_route
from services.scenario.run import Engine
from services.scenario.world import Cluster, build_cluster, moment_of
from tests.strategies import AT

Coverage = Counter[tuple[str, ...]]


@dataclass(frozen=True)
class Question:
    """A scenario, its cluster, and every crossing with the probe that it belongs to (None: no probe can say it)."""

    scenario: Scenario
    cluster: Cluster
    crossings: tuple[Crossing, ...]
    probes: tuple[int | None, ...]


@dataclass(frozen=True)
class Difference:
    """What one engine said (``kernel``) where the oracle said another (``oracle``)."""

    crossing: Crossing
    probe: int | None
    kernel: Finding
    oracle: Finding

    def __str__(self) -> str:
        way = f"{self.crossing.direction.name.lower()} of {'/'.join(self.crossing.pod.key)}"
        return f"{way}: {self.crossing.packet}\n  oracle: {self.oracle}\n  kernel: {self.kernel}"


class RefusedObjects(AssertionError):
    """The generator made an object that the parser refuses."""


def make_question(scenario: Scenario, extra: Iterable[Packet] = ()) -> Question:
    """``extra``: packets to ask at their pods' interfaces as they are, besides the probes. RefusedObjects."""
    cluster = build_cluster(scenario, [("objects", obj) for obj in scenario.objects])
    refused = [problem for problem in cluster.problems if problem.severity == "error"]
    if refused:
        raise RefusedObjects(refused)
    pairs = [*_cross_probes(scenario, cluster), *((each, None) for each in _cross_packets(cluster, extra))]
    return Question(scenario, cluster, tuple(each for each, _ in pairs), tuple(probe for _, probe in pairs))


def _cross_probes(scenario: Scenario, cluster: Cluster) -> Iterator[tuple[Crossing, int | None]]:
    for index, probe in enumerate(scenario.probes):
        try:
            route = find_route(cluster, probe, moment_of(scenario, probe))
        except RouteError:
            continue
        yield from ((each, index) for each in (*route.egress, *route.ingress))


def _cross_packets(cluster: Cluster, packets: Iterable[Packet]) -> Iterator[Crossing]:
    for packet in packets:
        for direction, own in ((Direction.EGRESS, packet.source), (Direction.INGRESS, packet.destination)):
            pod = cluster.owner_of(own)
            if isinstance(pod, Pod) and pod is not cluster.owner_of(packet.source if direction else packet.destination):
                yield Crossing(pod, direction, packet, AT)


def find_differences(question: Question, engine: Engine, coverage: Coverage | None = None) -> list[Difference]:
    """Ask both."""
    expected = EvaluateEngine().judge(question.cluster, question.crossings)
    said = engine.judge(question.cluster, question.crossings)
    differences = []
    for crossing, probe, mine, theirs in zip(question.crossings, question.probes, said, expected, strict=True):
        if not is_same(question.cluster, crossing, mine, theirs):
            differences.append(Difference(crossing, probe, kernel=mine, oracle=theirs))
        if coverage is not None and not crossing.is_local:
            coverage.update(describe(question.cluster, crossing, theirs))
    return differences


def is_same(cluster: Cluster, crossing: Crossing, mine: Finding, theirs: Finding) -> bool:
    if replace(mine, name="") != replace(theirs, name="") or (theirs.name and not mine.name):
        return False
    address = crossing.packet.destination
    told = {each.name for each in cluster.answers if address in each.addresses and each.at <= crossing.at}
    return not mine.name or mine.name in told


def expect_probes(document: dict[str, Any], question: Question) -> dict[str, Any]:
    """The document with the oracle's verdict as each probe's ``expect``; probes without a route are left out."""
    findings = EvaluateEngine().judge(question.cluster, question.crossings)
    probes = []
    for index, probe in enumerate(document["probes"]):
        own = [place for place, each in enumerate(question.probes) if each == index]
        if own:
            by_way: dict[Direction, list[Finding]] = {direction: [] for direction in Direction}
            for place in own:
                by_way[question.crossings[place].direction].append(findings[place])
            asked = question.scenario.probes[index]
            verdict = conclude_probe(asked, by_way[Direction.EGRESS], by_way[Direction.INGRESS]).verdict
            probes.append({**probe, "expect": verdict.name.lower() if verdict is not None else None})
    return {**document, "probes": probes}


# ---------------------------------------------------------------------------------------------------------------------
# What was met


def describe(cluster: Cluster, crossing: Crossing, found: Finding) -> list[tuple[str, ...]]:
    """What one finding shows, as facts to count: (heading, ...)."""
    packet, way = crossing.packet, crossing.direction.name.lower()
    facts = [
        ("outcome", found.reason.name, found.tier.name, found.verdict.name),
        ("direction", way, found.verdict.name),
        ("family", "6" if ":" in packet.source else "4"),
        ("protocol", str(int(packet.protocol))),
    ]
    if found.policy is not None:
        facts.append(("kind", found.policy.kind, way, found.verdict.name))
    if found.name:
        facts.append(("name", found.reason.name))
    face = cluster.frontend_of(packet) if crossing.direction is Direction.EGRESS else None
    if face is not None:
        shape = {0: "empty", 1: "uniform"}.get(len(face.backends), "mixed")
        facts.append(("frontend", face.kind.name, shape))
    return facts


def format_coverage(coverage: Coverage) -> str:
    """One line a fact, by heading."""
    lines = [f"  {' '.join(fact):58} {count:9}" for fact, count in sorted(coverage.items())]
    return "\n".join(lines)
