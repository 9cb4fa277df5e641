"""Kubernetes objects -> policies and facts, with problems. Never raises on what a user wrote.

Strict in the spec of policy kinds: one fault refuses the object whole, so that nobody enforces half a policy.
Lenient on every other kind. null equals absent. Which API reads which kind is the one table at the end.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from schemas.status import Problem
from schemas.terms import PolicyKind, Tier
from services.controller.policy import parse_cluster_policy, parse_facts, parse_network_policy, parse_settings
from services.controller.policy.model import NAMESPACED_KINDS, Fact, NodeClass, Policy, PolicyKey, Settings
from services.controller.policy.parse_reader import Reader, Report
from services.controller.policy.parse_spec import Spec

DEFAULT_NAMESPACE = "default"
NAME_MAX = 253

MODE_ANNOTATION = "yett.dev/mode"
"""On a policy of any kind. Not part of its spec: the APIs are others', and switching it is no new generation."""
MODE_AUDIT = "audit"
MODES = ("enforce", MODE_AUDIT)
"""Absent is ``enforce``."""

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?\Z")

BETA_VERSION = "policy.networking.k8s.io/v1beta1"

POLICY_KINDS: dict[tuple[str, str], PolicyKind] = {
    ("networking.k8s.io/v1", "NetworkPolicy"): PolicyKind.NETWORK_POLICY,
    ("networking.k8s.aws/v1alpha1", "ApplicationNetworkPolicy"): PolicyKind.APPLICATION_NETWORK_POLICY,
    ("networking.k8s.aws/v1alpha1", "ClusterNetworkPolicy"): PolicyKind.AWS_CLUSTER_NETWORK_POLICY,
    (BETA_VERSION, "ClusterNetworkPolicy"): PolicyKind.CLUSTER_NETWORK_POLICY,
    ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"): PolicyKind.CLUSTER_NETWORK_POLICY,
    ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy"): PolicyKind.ADMIN_NETWORK_POLICY,
    ("policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy"): PolicyKind.BASELINE_ADMIN_NETWORK_POLICY,
}
API_OF = {kind: (version, name) for (version, name), kind in POLICY_KINDS.items()}
"""The other way round, for specs that come back from the stream: v1alpha2, which reads all that v1beta1 admits."""

POLICY_GROUPS = frozenset(version.partition("/")[0] for version, _ in POLICY_KINDS) | {"extensions"}
"""``extensions/v1beta1 NetworkPolicy`` is the same object's first version, which no API server knows any more."""
POLICY_KIND_NAMES = frozenset(name for _, name in POLICY_KINDS)

Parsed = Policy | Fact


@dataclass(frozen=True, slots=True)
class Header:
    """What an object is, as far as it can be read. ``key``: (kind, namespace, name), its place in every index."""

    key: PolicyKey
    policy_kind: PolicyKind | None
    uid: str = ""
    created: str = ""
    generation: int = 0

    @property
    def kind(self) -> str:
        return self.key[0]

    @property
    def namespace(self) -> str:
        return self.key[1]

    @property
    def name(self) -> str:
        return self.key[2]


def parse_object(obj: Any, *, file: str = "") -> tuple[Parsed | None, list[Problem]]:
    """A policy or a fact, or None where it is refused or of no interest; and what is wrong with it."""
    header, reader = _read_header(obj, file)
    report = reader.report
    if header is None or report.is_refused:
        return None, report.problems
    parsed = _parse_policy(reader, header) if header.policy_kind is not None else _parse_fact(reader, header)
    is_strict = isinstance(parsed, Policy | Settings | NodeClass)
    return (None if is_strict and report.is_refused else parsed), report.problems


def identify(obj: Any) -> PolicyKey | None:
    """(kind, namespace, name) of an object, or None if it has none; kinds of policies are ``PolicyKind`` values."""
    header, _ = _read_header(obj, "")
    return header.key if header is not None else None


def read_uid(obj: Any) -> str:
    """Which of the objects that ever bore its name it is; empty where nobody says."""
    header, _ = _read_header(obj, "")
    return header.uid if header is not None else ""


def parse_isolation(obj: Any) -> Policy | None:
    """What is left of a refused namespaced policy: no rules, but its pods isolated, if we can tell which they are.

    None where podSelector or policyTypes cannot be read either.
    """
    header, reader = _read_header(obj, "")
    if header is None or header.policy_kind not in NAMESPACED_KINDS:
        return None
    report = Report("", "")
    spec = Reader(reader.get("spec").value, "spec", report)
    if not isinstance(spec.value, dict):
        return None
    subject = parse_network_policy.read_subject(spec, PolicyKind(header.kind), header.namespace)
    isolates = parse_network_policy.read_isolation(spec)
    if report.is_refused:
        return None
    is_audited = _find_mode(reader).value == MODE_AUDIT  # one that cannot be read shuts
    bare = Spec(
        tier=Tier.NETWORK_POLICY,
        priority=0,
        subject=subject,
        isolates=isolates,
        egress=(),
        ingress=(),
    )
    return _build_policy(header, bare, is_audited=is_audited)


def _read_header(obj: Any, file: str) -> tuple[Header | None, Reader]:
    """Group, kind and name. An object without them, or with a name that no row could carry, is refused."""
    unnamed = Reader(obj, "", Report("object", file))
    if not isinstance(obj, dict):
        unnamed.fault("not a Kubernetes object")
        return None, unnamed
    version, kind = unnamed.get("apiVersion").value, unnamed.get("kind").value
    if not isinstance(version, str) or not isinstance(kind, str):
        unnamed.fault("not a Kubernetes object: apiVersion and kind are required")
        return None, unnamed
    metadata = unnamed.get("metadata")
    name, namespace = metadata.get("name").value, metadata.get("namespace").value
    policy_kind = POLICY_KINDS.get((version, kind))
    is_namespaced = policy_kind in NAMESPACED_KINDS or kind in NAMESPACED_FACTS
    # Others may have names that no row could carry, such as a ClusterRole's system:node.
    is_ours = is_namespaced or policy_kind is not None or kind in CLUSTER_FACTS
    place = (namespace or DEFAULT_NAMESPACE) if is_namespaced else ""
    reader = Reader(obj, "", Report(f"{kind} {f'{place}/' if place else ''}{name}", file))
    for field, value in (("metadata.name", name), ("metadata.namespace", place or "-")):
        if value is None:
            reader.report.add(field, "required")
        elif not isinstance(value, str) or (is_ours and value != "-" and not _is_name(value)):
            reader.report.add(field, f"{value!r} is not a Kubernetes name")
    if reader.report.is_refused:
        return None, reader
    key = (policy_kind.value if policy_kind is not None else kind, place, str(name))
    _check_version(reader, version, kind, policy_kind)
    generation = metadata.get("generation").value
    return Header(
        key=key,
        policy_kind=policy_kind,
        uid=parse_facts.read_word(metadata.get("uid")),
        created=parse_facts.read_word(metadata.get("creationTimestamp")),
        generation=generation if isinstance(generation, int) else 0,
    ), reader


def _is_name(text: str) -> bool:
    return _NAME.match(text) is not None and len(text) <= NAME_MAX


def _check_version(reader: Reader, version: str, kind: str, policy_kind: PolicyKind | None) -> None:
    """A policy kind in a version that we cannot read must not pass as "of no interest"."""
    if policy_kind is None and kind in POLICY_KIND_NAMES and version.partition("/")[0] in POLICY_GROUPS:
        reader.report.add("apiVersion", f"{version} {kind} is not a version that Yett reads")


def _parse_policy(obj: Reader, header: Header) -> Policy | None:
    kind = header.policy_kind
    spec = obj.get("spec")
    if kind is None:
        return None
    if header.name != header.name.lower():
        obj.report.add("metadata.name", f"{header.name!r}: an API server wants lower case", "warning")
    if not spec.is_present:
        spec.fault("required")
        return None
    if kind is PolicyKind.BASELINE_ADMIN_NETWORK_POLICY and header.name != "default":
        obj.report.add("metadata.name", "the one BaselineAdminNetworkPolicy of a cluster is named default")
    mode = _find_mode(obj)
    if mode.is_present and mode.value not in MODES:
        mode.fault(f"{mode.value!r} is none of {', '.join(MODES)}")
    if kind in NAMESPACED_KINDS:
        read = parse_network_policy.read_spec(spec, kind, header.namespace)
    else:
        is_beta = obj.get("apiVersion").value == BETA_VERSION
        read = parse_cluster_policy.read_spec(spec, kind, is_beta=is_beta)
    return _build_policy(header, read, is_audited=mode.value == MODE_AUDIT)


def _find_mode(obj: Reader) -> Reader:
    return obj.get("metadata").get("annotations").get(MODE_ANNOTATION)


def _build_policy(header: Header, spec: Spec, *, is_audited: bool) -> Policy:
    return Policy(
        kind=PolicyKind(header.kind),
        namespace=header.namespace,
        name=header.name,
        tier=spec.tier,
        priority=spec.priority,
        subject=spec.subject,
        isolates=spec.isolates,
        egress=spec.egress,
        ingress=spec.ingress,
        uid=header.uid,
        created=header.created,
        generation=header.generation,
        is_audited=is_audited,
    )


def _parse_fact(obj: Reader, header: Header) -> Fact | None:
    if header.kind in NAMESPACED_FACTS:
        return NAMESPACED_FACTS[header.kind](obj, header.namespace, header.name)
    if header.kind in CLUSTER_FACTS:
        return CLUSTER_FACTS[header.kind](obj, header.name)
    return None


def _read_config_map(obj: Reader, namespace: str, name: str) -> Fact | None:
    """Only our own, and never from a tenant's namespace; every other ConfigMap is of no interest."""
    if name != parse_settings.SETTINGS_NAME:
        return None
    if obj.get("metadata").get("namespace").is_present and namespace not in parse_settings.SETTINGS_NAMESPACES:
        known = ", ".join(parse_settings.SETTINGS_NAMESPACES)
        obj.report.add("metadata.namespace", f"ignored: settings are read from {known}", "warning")
        return None
    return parse_settings.read_settings(obj.get("data"))


NAMESPACED_FACTS: dict[str, Callable[[Reader, str, str], Fact | None]] = {
    "Pod": parse_facts.read_pod,
    "Service": parse_facts.read_service,
    "EndpointSlice": parse_facts.read_slice,
    "ConfigMap": _read_config_map,
}
CLUSTER_FACTS: dict[str, Callable[[Reader, str], Fact]] = {
    "Namespace": parse_facts.read_namespace,
    "Node": parse_facts.read_node,
    "NodeClass": parse_facts.read_node_class,
}
"""Kind -> reader. Kinds are taken by name, whatever their group's version: facts are read leniently."""
