"""Subjects and bytes: the one table of what is said where, and the codec for it.

Names become subject tokens reversibly. Kubernetes names: '.' -> '_' (illegal in DNS-1123, so nothing collides).
Addresses: 32 hex digits of the 128-bit form (IPv4 as v4-mapped). Domain patterns: '.' -> '/' and '*' -> '+'.
DNS names on YETT_RESOLUTION: one token a label, reversed, so that the subject tree is the DNS tree.

Deliberately absent: NATS itself. This module makes strings and bytes, nothing else.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import msgspec

from schemas import flowlog, policy, resolution, status, usage, verdict
from schemas.terms import IdentityId, NodeName, RulesetHash, Verdict

STREAM_POLICY = "YETT_POLICY"
STREAM_RESOLUTION = "YETT_RESOLUTION"
STREAM_VERDICT = "YETT_VERDICT"
USAGE_BUCKET = "yett_usage"
STREAM_USAGE = f"KV_{USAGE_BUCKET}"
"""A key-value bucket is a stream of this name; the key stands behind ``USAGE_BUCKET_PREFIX``."""

POLICY_PREFIX = "yett.policy."
RESOLUTION_PREFIX = "yett.resolution."
DENIED_PREFIX = "yett.denied."
"""Aggregated denials, on stream YETT_VERDICT; single verdicts are plain NATS below ``yett.verdict.``."""
NAME_REFUSED_PREFIX = "yett.name_refused."
"""The gate is open, DNS said no: on stream YETT_VERDICT too."""

FORGET_PREFIX = "yett.forget."
"""On stream YETT_RESOLUTION, by the controller's account alone."""
FORGET_TTL = "24h"
"""A node that was away for longer has names that are over by themselves."""

USAGE_PREFIX = "yett.usage."
USAGE_BUCKET_PREFIX = f"$KV.{USAGE_BUCKET}."

HEADER_SCHEMA = "Yett-Schema"
HEADER_OPERATION = "Yett-Op"
HEADER_TRACE = "traceparent"
HEADER_UID = "Yett-Uid"
"""On the removal of an address or endpoint: whose it was. A removal applies to its own uid only."""
HEADER_TTL = "Nats-TTL"
HEADER_FENCE_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
HEADER_FENCE_SUBJECT = "Nats-Expected-Last-Subject-Sequence-Subject"
OPERATION_DELETE = "delete"
DELETE_TTL = "24h"
"""How long a removal stays readable; a follower away for longer is below ``floor`` and replays."""

MAX_ROW_BYTES = 256 * 1024
"""No row is larger: NATS' default max_payload is 1 MiB, and a row is stored, replicated and delivered whole."""


class WireError(ValueError):
    """A subject or body that is not what the table says. ``kind`` is the row type's name, or ``subject``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


# ---------------------------------------------------------------------------------------------------------------------
# Tokens

_KUBERNETES_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?\Z")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\Z")
MAX_NAME_BYTES = 253


def encode_name(name: str) -> str:
    """A Kubernetes object, node or pod name as one token; WireError if it could not be one."""
    if not _KUBERNETES_NAME.match(name):
        raise WireError("subject", f"{name!r} is not a Kubernetes name")
    return name.replace(".", "_")


def decode_name(token: str) -> str:
    """Inverse of ``encode_name``."""
    name = token.replace("_", ".")
    if not _KUBERNETES_NAME.match(name):
        raise WireError("subject", f"{token!r} is not an encoded Kubernetes name")
    return name


@lru_cache(maxsize=65536)
def encode_address(address: str) -> str:
    """An IPv4 or IPv6 address as 32 hex digits."""
    return pack_address(address).hex()


@lru_cache(maxsize=65536)
def pack_address(address: str) -> bytes:
    """16 bytes, network order; IPv4 in its v4-mapped form. WireError if it is no address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError as error:
        raise WireError("subject", f"{address!r} is not an IP address") from error
    if isinstance(parsed, ipaddress.IPv4Address):
        return b"\0" * 10 + b"\xff\xff" + parsed.packed
    return parsed.packed


def unpack_address(packed: bytes) -> str:
    """Inverse of ``pack_address``, canonical text."""
    parsed = ipaddress.IPv6Address(packed)
    return str(parsed.ipv4_mapped or parsed)


def decode_address(token: str) -> str:
    """Inverse of ``encode_address``."""
    if not re.fullmatch(r"[0-9a-f]{32}", token):
        raise WireError("subject", f"{token!r} is not an encoded address")
    return unpack_address(bytes.fromhex(token))


def encode_pattern(pattern: str) -> str:
    """A domain pattern as one token."""
    return pattern.replace(".", "/").replace("*", "+")


def decode_pattern(token: str) -> str:
    """Inverse of ``encode_pattern``."""
    return token.replace("/", ".").replace("+", "*")


def is_legal_name(name: str) -> bool:
    """Whether a DNS name may travel: lower case letters, digits, '-' and '_', labels of 1..63, 253 in all."""
    return len(name) <= MAX_NAME_BYTES and all(_LABEL.match(label) for label in name.split("."))


def encode_labels(name: str) -> str:
    """``s3.amazonaws.com`` -> ``com.amazonaws.s3``; WireError on a name that may not travel."""
    if not is_legal_name(name):
        raise WireError("subject", f"{name!r} is not a name that may travel")
    return ".".join(reversed(name.split(".")))


def decode_labels(tokens: str) -> str:
    """Inverse of ``encode_labels``."""
    name = ".".join(reversed(tokens.split(".")))
    if not is_legal_name(name):
        raise WireError("subject", f"{tokens!r} are not the labels of a name")
    return name


# ---------------------------------------------------------------------------------------------------------------------
# Subjects

SUBJECT_LEADER = "yett.policy.leader"
SUBJECT_CONFIG = "yett.policy.config"
SUBJECT_REVISION = "yett.policy.revision"


def subject_namespace(name: str) -> str:
    return f"yett.policy.namespace.{encode_name(name)}"


def subject_identity(identity: IdentityId) -> str:
    return f"yett.policy.identity.{identity}"


def subject_address(address: str) -> str:
    return f"yett.policy.address.{encode_address(address)}"


def subject_frontend(address: str, protocol: int, port: int) -> str:
    return f"yett.policy.frontend.{encode_address(address)}-{protocol}-{port}"


def subject_ruleset(ruleset: RulesetHash) -> str:
    return f"yett.policy.ruleset.{ruleset}"


def subject_peerset(peerset: str) -> str:
    return f"yett.policy.peerset.{peerset}"


def subject_endpoint(node: NodeName, namespace: str, pod: str) -> str:
    return f"yett.policy.endpoint.{encode_name(node)}.{encode_name(namespace)}.{encode_name(pod)}"


def subject_node(node: NodeName) -> str:
    return f"yett.policy.node.{encode_name(node)}"


def subject_domain(pattern: str) -> str:
    return f"yett.policy.domain.{encode_pattern(pattern)}"


def subject_source(kind: str, namespace: str, name: str) -> str:
    """``-`` stands for the missing namespace of a cluster-wide object (never a namespace's name)."""
    where = encode_name(namespace) if namespace else "-"
    return f"yett.policy.source.{encode_name(kind)}.{where}.{encode_name(name)}"


def subject_resolution(node: NodeName, name: str) -> str:
    return f"{RESOLUTION_PREFIX}{encode_name(node)}.{encode_labels(name)}"


def filter_resolution(pattern: str) -> str:
    """The subscription that a domain pattern is: ``*.x`` all names below x; ``x`` that name alone; from any node."""
    if pattern.startswith("*."):
        return f"{RESOLUTION_PREFIX}*.{encode_labels(pattern[2:])}.>"
    return f"{RESOLUTION_PREFIX}*.{encode_labels(pattern)}"


def subject_forget_name(name: str) -> str:
    return f"{FORGET_PREFIX}name.{encode_labels(name)}"


def subject_forget_node(node: NodeName) -> str:
    return f"{FORGET_PREFIX}node.{encode_name(node)}"


def subject_observed(node: NodeName) -> str:
    return f"yett.observed.{encode_name(node)}"


@lru_cache(maxsize=65536)
def subject_verdict(node: NodeName, namespace: str, pod: str, conclusion: Verdict) -> str:
    return f"yett.verdict.{encode_name(node)}.{encode_name(namespace)}.{encode_name(pod)}.{conclusion.name.lower()}"


def subject_name_refused(node: NodeName, namespace: str, pod: str) -> str:
    return f"{NAME_REFUSED_PREFIX}{encode_name(node)}.{encode_name(namespace)}.{encode_name(pod)}"


@lru_cache(maxsize=65536)
def subject_denied(node: NodeName, namespace: str, pod: str, conclusion: Verdict) -> str:
    """Where the stream of aggregated denials keeps one."""
    return f"{DENIED_PREFIX}{encode_name(node)}.{encode_name(namespace)}.{encode_name(pod)}.{conclusion.name.lower()}"


def subject_status(node: NodeName) -> str:
    return f"yett.status.{encode_name(node)}"


def subject_usage(node: NodeName) -> str:
    """A request, see ``UsageReport``."""
    return f"{USAGE_PREFIX}{encode_name(node)}"


def subject_usage_rule(key: tuple[str, str, str], uid: str, digest: str) -> str:
    """``key``: of the policy. ``-`` stands for what is missing: a namespace, the uid of an object from a file."""
    kind, namespace, name = key
    tokens = [encode_name(kind), encode_name(namespace) if namespace else "-", encode_name(name)]
    return ".".join([f"{USAGE_BUCKET_PREFIX}rule", *tokens, encode_name(uid) if uid else "-", encode_name(digest)])


def subject_usage_pod(namespace: str, pod: str) -> str:
    return f"{USAGE_BUCKET_PREFIX}pod.{encode_name(namespace)}.{encode_name(pod)}"


def subject_usage_node(node: NodeName) -> str:
    return f"{USAGE_BUCKET_PREFIX}node.{encode_name(node)}"


SUBJECT_STATUS_CONTROLLER = "yett.controller.status"
"""Outside ``yett.status.``, where it would be the subject of a node named ``controller``."""
SUBJECT_STATUS_CONTROLLER_GET = "yett.controller.status.get"
"""Request and reply: whoever leads answers with its ``ControllerStatus`` at once."""


def subject_status_recorder(node: NodeName) -> str:
    return f"yett.status.recorder.{encode_name(node)}"


# ---------------------------------------------------------------------------------------------------------------------
# The table


@dataclass(frozen=True, slots=True)
class Entry:
    """One kind of message. ``prefix``: subjects that start with it, or equal it if it does not end in '.'."""

    prefix: str
    type: type[msgspec.Struct]
    digested: bool = False
    """Part of the cluster-wide digest in every Revision."""

    @property
    def kind(self) -> str:
        return self.type.__name__


TABLE: tuple[Entry, ...] = (
    Entry(SUBJECT_LEADER, policy.Leader),
    Entry(SUBJECT_CONFIG, policy.Config, digested=True),
    Entry(SUBJECT_REVISION, policy.Revision),
    Entry("yett.policy.namespace.", policy.NamespaceRow, digested=True),
    Entry("yett.policy.identity.", policy.IdentityRow, digested=True),
    Entry("yett.policy.address.", policy.AddressRow, digested=True),
    Entry("yett.policy.frontend.", policy.FrontendRow, digested=True),
    Entry("yett.policy.ruleset.", policy.Ruleset, digested=True),
    Entry("yett.policy.peerset.", policy.PeersetRow, digested=True),
    Entry("yett.policy.endpoint.", policy.EndpointRow),
    Entry("yett.policy.node.", policy.NodeRow, digested=True),
    Entry("yett.policy.domain.", policy.DomainRow, digested=True),
    Entry("yett.policy.source.", policy.SourceRow),
    Entry(RESOLUTION_PREFIX, resolution.Resolution),
    Entry(FORGET_PREFIX, resolution.Forget),
    Entry("yett.observed.", resolution.Observed),
    Entry("yett.verdict.", verdict.VerdictEvent),
    Entry(DENIED_PREFIX, verdict.VerdictEvent),
    Entry(NAME_REFUSED_PREFIX, verdict.NameRefused),
    Entry(USAGE_PREFIX, usage.UsageReport),
    Entry(f"{USAGE_BUCKET_PREFIX}rule.", usage.RuleUsage),
    Entry(f"{USAGE_BUCKET_PREFIX}pod.", usage.PodUsage),
    Entry(f"{USAGE_BUCKET_PREFIX}node.", usage.NodeUsage),
    Entry(SUBJECT_STATUS_CONTROLLER, status.ControllerStatus),
    Entry("yett.status.recorder.", status.RecorderStatus),
    Entry("yett.status.", status.AgentStatus),
)
"""Subjects of YETT_POLICY are those below ``yett.policy.``."""

SCHEMA_VERSION = 1

_ENCODER = msgspec.json.Encoder(order="deterministic")
_DECODERS: dict[type[msgspec.Struct], Callable[[bytes], Any]] = {
    entry.type: msgspec.json.Decoder(entry.type).decode for entry in TABLE
}


_BY_PREFIX = {entry.prefix: entry for entry in TABLE}


def find_entry(subject: str) -> Entry:
    """The table's entry for a subject; WireError if it has none. Of its prefixes, of two or three dots, the longest."""
    second = subject.find(".", subject.find(".") + 1)
    third = subject.find(".", second + 1)
    entry = _BY_PREFIX.get(subject[: third + 1]) or _BY_PREFIX.get(subject[: second + 1]) or _BY_PREFIX.get(subject)
    if entry is None:
        raise WireError("subject", f"{subject!r} is in no table")
    return entry


def encode(row: msgspec.Struct) -> bytes:
    """Canonical JSON bytes: equal rows have equal bytes. WireError if it is larger than ``MAX_ROW_BYTES``."""
    body = _ENCODER.encode(row)
    if len(body) > MAX_ROW_BYTES:
        raise WireError(type(row).__name__, f"{len(body)} bytes, more than {MAX_ROW_BYTES}")
    return body


def decode(subject: str, body: bytes) -> msgspec.Struct:
    """The struct that the table promises for this subject; WireError otherwise.

    Unknown fields are ignored: they are a newer sender's.
    """
    entry = find_entry(subject)
    try:
        return _DECODERS[entry.type](body)  # type: ignore[no-any-return]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(entry.kind, f"on {subject}: {error}") from error


def headers_for(row: msgspec.Struct, *, trace: str = "") -> dict[str, str]:
    """The headers that every message carries."""
    headers = {HEADER_SCHEMA: f"{type(row).__name__}/{SCHEMA_VERSION}"}
    if trace:
        headers[HEADER_TRACE] = trace
    return headers


def hash_content(row: msgspec.Struct) -> str:
    """32 hex digits: the id of a content-addressed row (Ruleset, PeersetRow)."""
    return hash_body(_ENCODER.encode(row))


def hash_body(body: bytes) -> str:
    """``hash_content`` of a row that is encoded already."""
    return blake2b(body, digest_size=16).hexdigest()


def _published_types() -> list[type[msgspec.Struct]]:
    """Every body's type once, the answer to a report of usage, and the line of a flow log."""
    return [*dict.fromkeys(entry.type for entry in TABLE), usage.UsageTaken, flowlog.FlowLog]


def export_json_schema() -> dict[str, Any]:
    """JSON Schema of every body, by type name."""
    _, components = msgspec.json.schema_components(_published_types(), ref_template="#/$defs/{name}")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": components}


def export_asyncapi() -> dict[str, Any]:
    """AsyncAPI 3.0 of every subject: what integrations are promised."""
    _, components = msgspec.json.schema_components(_published_types(), ref_template="#/components/schemas/{name}")
    channels = {
        entry.prefix.rstrip("."): {
            "address": entry.prefix + (">" if entry.prefix.endswith(".") else ""),
            "messages": {entry.kind: {"$ref": f"#/components/messages/{entry.kind}"}},
        }
        for entry in TABLE
    }
    messages = {
        entry.kind: {"contentType": "application/json", "payload": {"$ref": f"#/components/schemas/{entry.kind}"}}
        for entry in TABLE
    }
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Yett", "version": str(SCHEMA_VERSION)},
        "channels": channels,
        "components": {"messages": messages, "schemas": components},
    }
