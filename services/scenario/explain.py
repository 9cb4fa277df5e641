"""One flow explained: its route, and the walk through the rules at every interface that it crosses; as text and JSON.

Pure. Deliberately absent: where the state comes from.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from schemas.terms import Default, Direction, NodeName, Tier, Verdict
from services.controller.policy.model import Finding, ObjectKey
from services.scenario.model import End, Probe
from services.scenario.result import conclude_probe, describe_finding, finding_to_json
from services.scenario.route import Reachable, find_route
from services.scenario.walk import (
    NODE_CACHE,
    CrossingWalk,
    Facts,
    Outcome,
    RuleStep,
    TierStep,
    Walk,
    suppose_cache,
    walk_crossing,
)
from services.scenario.words import format_address, format_protocol, format_rule, format_source

MARKS = {
    Outcome.DECIDES: "=>",
    Outcome.PASSES: "->",
    Outcome.LATER: "..",
    Outcome.EXPIRED: "!!",
    Outcome.PORT: " ~",
    Outcome.PEER: " ~",
    Outcome.NEITHER: "  ",
}
TIER_NAMES = {Tier.ADMIN: "Admin", Tier.NETWORK_POLICY: "NetworkPolicy", Tier.BASELINE: "Baseline"}
OTHER_SOURCES_MAX = 2


class EndError(ValueError):
    """What is no end of a flow; the message says why."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The verdict on a flow, and the crossings that led to it."""

    probe: Probe
    verdict: Verdict
    crossings: tuple[CrossingWalk, ...]


def parse_end(text: str, services: Iterable[ObjectKey] = ()) -> tuple[End, int]:
    """``ns/pod``, an address or a name, with ``:port`` or without (0) -> the end. EndError.

    ``services``: ``ns/name`` of these is a Service, ``svc/ns/name`` always.
    """
    rest, port = _split_port(text)
    try:
        return End(address=str(ipaddress.ip_address(rest.strip("[]")))), port
    except ValueError:
        pass
    is_service = rest.startswith("svc/")
    namespace, slash, name = rest.removeprefix("svc/").partition("/")
    if not slash:
        if not rest:
            raise EndError(f"{text!r} is no pod, address or name")
        return End(name=rest.lower().removesuffix(".")), port
    if not (namespace and name) or "/" in name:
        raise EndError(f"{text!r} is not namespace/name")
    if is_service or (namespace, name) in set(services):
        return End(service=(namespace, name)), port
    return End(pod=(namespace, name)), port


def _split_port(text: str) -> tuple[str, int]:
    """An IPv6 address needs brackets before its port."""
    head, colon, tail = text.rpartition(":")
    if not colon or (":" in head and not head.endswith("]")):
        return text, 0
    if not tail.isdecimal() or not 1 <= int(tail) <= 65535:
        raise EndError(f"{text!r}: {tail!r} is not a port")
    return head, int(tail)


def explain_flow(cluster: Reachable, facts: Facts, probe: Probe) -> Explanation:
    """Walk every crossing of a flow. RouteError."""
    route = find_route(cluster, probe, facts.at)
    walks = [
        walk_crossing(facts, facts.rows.endpoints[each.pod.key], each.direction, each.packet)
        for each in (*route.egress, *route.ingress)
        if each.pod.key in facts.rows.endpoints
    ]
    egress = [each.finding for each in walks if each.direction is Direction.EGRESS]
    ingress = [each.finding for each in walks if each.direction is Direction.INGRESS]
    verdict = conclude_probe(probe, egress, ingress).verdict
    return Explanation(probe, verdict if verdict is not None else Verdict.DENY, tuple(walks))


def doubt_caches(facts: Facts, explanation: Explanation, heard: Collection[NodeName] | None = None) -> Iterator[str]:
    """Where a verdict hangs on whether a node has a DNS cache of its own at the address, and nobody told.

    ``heard``: the nodes whose agents did. None: of manifests, which do not say so of any: the usual address is doubted.
    """
    for each in explanation.crossings:
        node, address = each.endpoint.node, each.packet.destination
        is_untold = node not in heard if heard is not None else address == NODE_CACHE
        if is_untold and each.direction is Direction.EGRESS:
            found = suppose_cache(facts, each.endpoint, each.packet)
            if found is not None:
                yield describe_cache(address, found) if heard is None else describe_silence(node, address, found)


def describe_cache(address: str, supposed: Finding) -> str:
    """What manifests do not tell, and how to."""
    return (
        f"NodeLocal DNSCache listens at {address}, and no manifest says on which nodes: where an agent finds it this is"
        f" {describe_finding(supposed)}; with {address} in the setting resolvers it is asked so here"
    )


def describe_silence(node: str, address: str, supposed: Finding) -> str:
    """What the node's agent would have told."""
    return f"no agent is heard on {node}: if {address} is its own DNS cache, this is {describe_finding(supposed)}"


# ---------------------------------------------------------------------------------------------------------------------
# For people


def format_explanation(explanation: Explanation) -> Iterator[str]:
    """Lines of text."""
    probe = explanation.probe
    port = f":{probe.port}" if probe.port else ""
    yield f"{probe.source} -> {probe.destination}{port} {format_protocol(probe.protocol)}: {explanation.verdict.name}"
    if not explanation.crossings:
        yield "  no pod is at either end: nothing judges this flow"
    for crossing in explanation.crossings:
        yield ""
        yield from _format_crossing(crossing)


def _format_crossing(crossing: CrossingWalk) -> Iterator[str]:
    packet, is_egress = crossing.packet, crossing.direction is Direction.EGRESS
    pod = f"{crossing.endpoint.namespace}/{crossing.endpoint.pod}"
    to = format_address(packet.destination, packet.protocol, packet.port)
    what = f"egress of {pod}, to {to}" if is_egress else f"ingress of {pod}, from {packet.source} to {to}"
    yield f"{what}: {describe_finding(crossing.finding)}"
    if crossing.full is None:
        yield from _format_walks(crossing.walks, is_egress=is_egress)
        return
    yield f"  without the policies under audit: {describe_finding(crossing.full.enforced)}"
    yield from _format_walks(crossing.walks, is_egress=is_egress)
    yield f"  with them: {describe_finding(crossing.full.finding)}"
    yield from _format_walks(crossing.full.walks, is_egress=is_egress)


def _format_walks(walks: Iterable[Walk], *, is_egress: bool) -> Iterator[str]:
    for walk in walks:
        if walk.seen_as:
            yield f"  the other side: {'; '.join(walk.seen_as)}"
        yield from _format_walk(walk, is_egress=is_egress)


def _format_walk(walk: Walk, *, is_egress: bool) -> Iterator[str]:
    for step in walk.tiers:
        if not step.rules and not step.end and step.is_reached:
            yield f"  {TIER_NAMES[step.tier]}: no rule"
            continue
        if step.rules or step.end:
            yield f"  {TIER_NAMES[step.tier]}:{'' if step.is_reached else ' not reached'}"
        yield from _format_rules(step, is_egress=is_egress)
        if step.end:
            yield f"    => {step.end}"
    if walk.tiers and walk.finding.tier is Tier.DEFAULT:
        yield f"  Default: => {Default(int(walk.finding.verdict)).name.lower()}"
    elif walk.finding.reason.name in ("OWN_NODE", "NAME_EXPIRED", "NO_BACKEND"):
        yield f"  => {describe_finding(walk.finding)}"


def _format_rules(step: TierStep, *, is_egress: bool) -> Iterator[str]:
    """Rules that lack both peer and port are counted only."""
    far = sum(each.outcome is Outcome.NEITHER for each in step.rules)
    for each in step.rules:
        if each.outcome is not Outcome.NEITHER:
            yield f"    {MARKS[each.outcome]} {_format_rule(each, is_egress=is_egress)}"
    if far:
        yield f"       {far} {'rule matches' if far == 1 else 'rules match'} neither peer nor port"


def _format_rule(step: RuleStep, *, is_egress: bool) -> str:
    rule = step.rule
    source = rule.sources[0]
    others = len(rule.sources) - 1
    more = f" (and {others} like it)" if others else ""
    words = format_rule(rule.action, rule.peers, rule.ports, is_egress=is_egress)
    return f"{format_source(source)} {source.rule}{more}: {words}: {step.outcome.value}"


# ---------------------------------------------------------------------------------------------------------------------
# For programs


def explanation_to_json(explanation: Explanation) -> dict[str, Any]:
    """The same, every rule included."""
    probe = explanation.probe
    return {
        "from": str(probe.source),
        "to": str(probe.destination),
        "protocol": format_protocol(probe.protocol),
        "port": probe.port,
        "verdict": explanation.verdict.name.lower(),
        "crossings": [_crossing_to_json(each) for each in explanation.crossings],
    }


def _crossing_to_json(crossing: CrossingWalk) -> dict[str, Any]:
    told: dict[str, Any] = {
        "pod": f"{crossing.endpoint.namespace}/{crossing.endpoint.pod}",
        "direction": crossing.direction.name.lower(),
        "source": crossing.packet.source,
        "destination": crossing.packet.destination,
        "port": crossing.packet.port,
        "finding": finding_to_json(crossing.finding),
        "walks": [_walk_to_json(walk, crossing.direction) for walk in crossing.walks],
    }
    if crossing.full is not None:
        told["enforced"] = finding_to_json(crossing.full.enforced)
        told["full"] = {
            "finding": finding_to_json(crossing.full.finding),
            "walks": [_walk_to_json(walk, crossing.direction) for walk in crossing.full.walks],
        }
    return told


def _walk_to_json(walk: Walk, direction: Direction) -> dict[str, Any]:
    return {
        "seen_as": list(walk.seen_as),
        "finding": finding_to_json(walk.finding),
        "tiers": [
            {
                "tier": step.tier.name.lower(),
                "reached": step.is_reached,
                "end": step.end,
                "rules": [_rule_to_json(each, is_egress=direction is Direction.EGRESS) for each in step.rules],
            }
            for step in walk.tiers
        ],
    }


def _rule_to_json(step: RuleStep, *, is_egress: bool) -> dict[str, Any]:
    rule = step.rule
    return {
        "sources": [{"policy": format_source(each), "rule": each.rule} for each in rule.sources],
        "action": rule.action.name.lower(),
        "rule": format_rule(rule.action, rule.peers, rule.ports, is_egress=is_egress),
        "outcome": step.outcome.name.lower(),
    }
