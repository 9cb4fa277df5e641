"""From a scenario to its result: a cluster, the routes of its probes, an engine's findings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Protocol

from services.controller.policy.model import Finding
from services.scenario.explain import describe_cache
from services.scenario.model import Probe, Scenario
from services.scenario.result import ProbeResult, ScenarioResult, conclude_probe, conclude_scenario
from services.scenario.route import Crossing, Route, RouteError, find_route
from services.scenario.rows import Rows
from services.scenario.walk import NODE_CACHE, Facts, suppose_cache
from services.scenario.world import Cluster, Placed, build_cluster, moment_of


class Engine(Protocol):
    """Who judges."""

    def judge(self, cluster: Cluster, crossings: Sequence[Crossing]) -> list[Finding]:
        """One finding a crossing, in order."""
        ...


def run_scenario(scenario: Scenario, objects: Iterable[Placed], engine: Engine) -> ScenarioResult:
    """Judge every probe. ScenarioError if its settings cannot be used."""
    cluster = build_cluster(scenario, objects)
    routes = [_find_route(cluster, probe, moment_of(scenario, probe)) for probe in scenario.probes]
    crossings = [each for route in routes if isinstance(route, Route) for each in (*route.egress, *route.ingress)]
    findings = iter(engine.judge(cluster, crossings))
    doubts = _Doubts(cluster)
    results = [_conclude(probe, route, findings, doubts) for probe, route in zip(scenario.probes, routes, strict=True)]
    return conclude_scenario(scenario, results, cluster.problems)


def _find_route(cluster: Cluster, probe: Probe, at: float) -> Route | RouteError:
    try:
        return find_route(cluster, probe, at)
    except RouteError as error:
        return error


def _conclude(probe: Probe, route: Route | RouteError, findings: Iterable[Finding], doubts: _Doubts) -> ProbeResult:
    if isinstance(route, RouteError):
        return ProbeResult(probe, None, error=str(route))
    taken = iter(findings)
    egress = [next(taken) for _ in route.egress]
    result = conclude_probe(probe, egress, [next(taken) for _ in route.ingress])
    return replace(result, note=doubts.find(route))


class _Doubts:
    """What no manifest tells: where NodeLocal DNSCache is. No engine knows of it, and an agent may."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def find(self, route: Route) -> str:
        """In words, where a verdict hangs on it; else empty."""
        for each in route.egress:
            if each.packet.destination == NODE_CACHE and each.pod.key in self._rows.endpoints:
                facts = Facts(self._rows, self._cluster.answers, each.at)
                found = suppose_cache(facts, self._rows.endpoints[each.pod.key], each.packet)
                if found is not None:
                    return describe_cache(NODE_CACHE, found)
        return ""

    @cached_property
    def _rows(self) -> Rows:
        return Rows.read(self._cluster.state.rows())
