"""Objects -> a cluster to ask questions of: the controller's own state, the facts and policies in force, the oracle.

Manifests seldom say what only a running cluster knows. What is missing is stood in for, so that questions can be asked:
a workload has one pod, a pod without node or address gets one, so does a Service without a cluster address, so does a
name that nobody resolved yet. Stand-ins are from 198.18.0.0/15 and 2001:db8::/32 (RFC 2544, RFC 3849), which no cluster
uses.

Pure. Deliberately absent: files, probes' routes, judging.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from schemas.policy import FrontendRow
from schemas.selectors import parse_address
from schemas.status import Problem
from services.controller.policy.evaluate import Oracle
from services.controller.policy.model import Answer, Node, ObjectKey, Packet, Pod, Policy, World
from services.controller.policy.parse import DEFAULT_NAMESPACE, identify
from services.controller.policy.parse_reader import Reader, Report
from services.controller.policy.parse_settings import SETTINGS, SETTINGS_NAME, SETTINGS_NAMESPACES, read_settings
from services.controller.world import State
from services.scenario.model import TTL_SECONDS, Probe, Scenario, ScenarioError

STAND_IN_NODE = "unscheduled"
"""Where pods without a node are; it has no Node object and so no address."""
POD_RANGES = ("198.18.0.0/17", "2001:db8:0:1::/64")
NAME_RANGES = ("198.18.128.0/17", "2001:db8:0:2::/64")
SERVICE_RANGES = {"IPv4": "198.19.0.0/16", "IPv6": "2001:db8:0:3::/64"}
REPLICAS_MAX = 100
"""Of a StatefulSet, all of whose pods have names that are known beforehand."""
SETTINGS_KEY = ("ConfigMap", min(SETTINGS_NAMESPACES), SETTINGS_NAME)
"""First in the order in which the controller chooses between several."""

WORKLOADS = frozenset({"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job"})

Obj = dict[str, Any]
Placed = tuple[str, Any]
"""(where it stands, object)."""
Hosts = Iterator[ipaddress.IPv4Address] | Iterator[ipaddress.IPv6Address]


@dataclass(frozen=True)
class Cluster:
    """What questions are asked of. ``answers``: what pods were told; ``problems``: refusals and warnings."""

    state: State
    world: World
    policies: tuple[Policy, ...]
    answers: tuple[Answer, ...]
    oracle: Oracle
    problems: tuple[Problem, ...] = ()

    def owner_of(self, address: str) -> Pod | Node | None:
        """Whose address it is: a node's, else the newest live pod's."""
        return self.oracle.owner_of(address)

    def frontend_of(self, packet: Packet) -> FrontendRow | None:
        """The Service's face that a packet is sent to; its backends are told by address."""
        return self.oracle.frontend_of(packet)

    def addresses_of(self, name: str) -> tuple[str, ...]:
        """Every address that some answer gives a name, in order, once."""
        return tuple(dict.fromkeys(each for answer in self.answers if answer.name == name for each in answer.addresses))


def moment_of(scenario: Scenario, probe: Probe) -> float:
    """When a probe is sent: when it says, else once all answers are there."""
    if probe.at is not None:
        return probe.at
    return max([0.0, *(answer.at for answer in scenario.resolutions)])


def build_cluster(scenario: Scenario, objects: Iterable[Placed]) -> Cluster:
    """The cluster of a scenario. ScenarioError if its settings cannot be used."""
    given = list(objects)
    ends = [end for probe in scenario.probes for end in (probe.source, probe.destination)]
    claimed: dict[ObjectKey, tuple[str, ...]] = {}
    for end in ends:
        if end.pod is not None and end.address:
            claimed[end.pod] = tuple(dict.fromkeys([*claimed.get(end.pod, ()), end.address]))
    asked = [(probe.destination.name, moment_of(scenario, probe)) for probe in scenario.probes]
    config = _merge_config(scenario, [obj for _, obj in given])
    return assemble_cluster(given, config=config, answers=scenario.resolutions, asked=asked, claimed=claimed)


def assemble_cluster(
    objects: Iterable[Placed],
    *,
    config: Mapping[str, str] | None = None,
    answers: Iterable[Answer] = (),
    asked: Iterable[tuple[str, float]] = (),
    claimed: Mapping[ObjectKey, tuple[str, ...]] | None = None,
) -> Cluster:
    """A cluster from (where, object) pairs.

    ``config``: settings that replace any ConfigMap's. ``asked``: names, and when somebody connects to them.
    ``claimed``: addresses of pods that have none themselves.
    """
    state, problems = State(), []
    for where, obj in complete_objects(objects, claimed or {}):
        if config is not None and _is_settings(obj):
            continue
        found = state.upsert(obj, file=where)
        problems += found if identify(obj) is None else []
    if config is not None:
        namespace, name = SETTINGS_KEY[1:]
        metadata = {"name": name, "namespace": namespace}
        state.upsert({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(config)})
    told = tuple(answers)
    told += tuple(_resolve_on_use({answer.name for answer in told}, asked))
    problems += state.problems()
    world, policies = state.world, tuple(sorted(state.policies, key=lambda policy: policy.key))
    return Cluster(state, world, policies, told, Oracle(policies, world, told), tuple(problems))


def _resolve_on_use(known: Set[str], asked: Iterable[tuple[str, float]]) -> Iterator[Answer]:
    """Who connects to a name has resolved it: one that no answer mentions gets stand-ins, just in time."""
    ranges = [ipaddress.ip_network(cidr).hosts() for cidr in NAME_RANGES]
    stand_ins: dict[str, tuple[str, ...]] = {}
    for name, at in sorted(set(asked)):
        if name and name not in known:
            if name not in stand_ins:
                stand_ins[name] = tuple(str(next(hosts)) for hosts in ranges)
            yield Answer(name=name, addresses=stand_ins[name], ttl_seconds=TTL_SECONDS, at=at)


# ---------------------------------------------------------------------------------------------------------------------
# Settings


def _is_settings(obj: Any) -> bool:
    key = identify(obj)
    return key is not None and key[0] == SETTINGS_KEY[0] and key[2] == SETTINGS_NAME


def _merge_config(scenario: Scenario, objects: Iterable[Any]) -> dict[str, str] | None:
    """The scenario's settings over those of its ConfigMap, key by key; None if it has none of its own."""
    unknown = sorted(scenario.config.keys() - SETTINGS.keys())
    if unknown:
        known = ", ".join(sorted(SETTINGS))
        faults = [f"config.{key}: unknown setting; known: {known}" for key in unknown]
        raise ScenarioError(scenario.name, faults, file=scenario.file)
    if not scenario.config:
        return None
    chosen: Any = min((obj for obj in objects if _is_settings(obj)), key=lambda obj: identify(obj) or (), default={})
    data = chosen.get("data") if isinstance(chosen, dict) else None
    merged = {**(data if isinstance(data, dict) else {}), **scenario.config}
    report = Report("config", scenario.file)
    read_settings(Reader(merged, "config", report))
    if report.is_refused:
        faults = [f"{problem.path}: {problem.message}" for problem in report.problems]
        raise ScenarioError(scenario.name, faults, file=scenario.file)
    return merged


# ---------------------------------------------------------------------------------------------------------------------
# Stand-ins


def complete_objects(objects: Iterable[Placed], claimed: Mapping[ObjectKey, tuple[str, ...]]) -> Iterator[Placed]:
    """The objects, each with what a running cluster would have added; others are passed on as they are."""
    objects = list(objects)
    objects += _run_workloads(objects)
    pods = [ipaddress.ip_network(cidr).hosts() for cidr in POD_RANGES]
    services = {family: ipaddress.ip_network(cidr).hosts() for family, cidr in SERVICE_RANGES.items()}
    for where, obj in objects:
        key = identify(obj)
        if key is not None and key[0] == "Pod":
            yield where, _complete_pod(obj, pods, claimed.get(key[1:], ()))
        elif key is not None and key[0] == "Service":
            yield where, _complete_service(obj, services)
        else:
            yield where, obj


def _run_workloads(objects: Iterable[Placed]) -> list[Placed]:
    """The pods of every workload of which no pod is given: a StatefulSet's by their ordinals, else one by its name."""
    given = list(objects)
    pods = [_dict(obj) for _, obj in given if _dict(obj).get("kind") == "Pod"]
    found = []
    for where, obj in given:
        template = _find_template(_dict(obj))
        if template is None:
            continue
        metadata = _dict(obj.get("metadata"))
        labels = _dict(_dict(template.get("metadata")).get("labels"))
        namespace = metadata.get("namespace") or DEFAULT_NAMESPACE
        if any(_is_of(pod, namespace, labels) for pod in pods):
            continue
        for name, own in _name_pods(obj):
            named = {"name": name, "namespace": namespace, "labels": {**labels, **own}}
            found.append((where, {"apiVersion": "v1", "kind": "Pod", "metadata": named, "spec": template.get("spec")}))
    return found


def _name_pods(obj: Obj) -> Iterator[tuple[Any, Obj]]:
    """(name, labels of its own) of a workload's pods."""
    name, spec = _dict(obj.get("metadata")).get("name"), _dict(obj.get("spec"))
    if obj.get("kind") != "StatefulSet":
        yield name, {}
        return
    first, replicas = _dict(spec.get("ordinals")).get("start"), spec.get("replicas")
    first = first if isinstance(first, int) else 0
    for ordinal in range(first, first + min(replicas if isinstance(replicas, int) else 1, REPLICAS_MAX)):
        own = {"statefulset.kubernetes.io/pod-name": f"{name}-{ordinal}", "apps.kubernetes.io/pod-index": str(ordinal)}
        yield f"{name}-{ordinal}", own


def _find_template(obj: Obj) -> Obj | None:
    spec = _dict(obj.get("spec"))
    if obj.get("kind") == "CronJob":
        spec = _dict(_dict(spec.get("jobTemplate")).get("spec"))
    elif obj.get("kind") not in WORKLOADS:
        return None
    return _dict(spec.get("template"))


def _is_of(pod: Obj, namespace: str, labels: Obj) -> bool:
    metadata = _dict(pod.get("metadata"))
    own = _dict(metadata.get("labels"))
    return (metadata.get("namespace") or DEFAULT_NAMESPACE) == namespace and labels.items() <= own.items()


def _dict(value: Any) -> Obj:
    return value if isinstance(value, dict) else {}


def _complete_pod(obj: Obj, ranges: list[Hosts], claimed: Sequence[str]) -> Obj:
    spec, status = _dict(obj.get("spec")), _dict(obj.get("status"))
    if not spec.get("nodeName"):
        spec = {**spec, "nodeName": STAND_IN_NODE}
    if not status.get("podIP") and not status.get("podIPs") and not spec.get("hostNetwork"):
        addresses = list(claimed) or [str(next(hosts)) for hosts in ranges]
        status = {**status, "podIPs": [{"ip": address} for address in addresses]}
    return {**obj, "spec": spec, "status": status}


def _complete_service(obj: Obj, ranges: Mapping[str, Hosts]) -> Obj:
    """Addresses of the families that it asks for, else of both, as pods have."""
    spec = _dict(obj.get("spec"))
    if spec.get("clusterIP") or spec.get("clusterIPs") or spec.get("type") == "ExternalName":
        return obj
    asked = spec.get("ipFamilies")
    families = [each for each in asked if each in ranges] if isinstance(asked, list) else []
    addresses = [str(next(ranges[family])) for family in families or ranges]
    return {**obj, "spec": {**spec, "clusterIP": addresses[0], "clusterIPs": addresses}}


def families_of(addresses: Iterable[str]) -> dict[int, str]:
    """IP version -> the first address of it."""
    found: dict[int, str] = {}
    for address in addresses:
        found.setdefault(parse_address(address).version, address)
    return found
