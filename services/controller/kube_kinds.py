"""Which kinds are read from an API server, and the few fields of each that Yett needs. Pure.

Lists and watch lines are decoded straight into these fields; what else an object has is never built. Policies keep
their whole ``spec``: it is read strictly, so nothing in it may be lost here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from services.controller.policy.model import PolicyKey
from services.controller.policy.parse import MODE_ANNOTATION, POLICY_KINDS, identify
from services.controller.policy.parse_facts import DEFAULT_ANNOTATION
from services.controller.policy.parse_settings import SETTINGS_NAME

Obj = dict[str, Any]

OUR_ANNOTATIONS = (DEFAULT_ANNOTATION, MODE_ANNOTATION)
"""Others are large, and change without meaning anything here."""
OWNERS_SHARED = 1024
"""Beyond that the pods of the owner that was longest not seen begin a list of their own."""


class _Camel(msgspec.Struct, omit_defaults=True, rename="camel", gc=False):
    """Field names as Kubernetes writes them; what is absent or null stays away."""


class Metadata(_Camel):
    name: str = ""
    namespace: str | None = None
    uid: str | None = None
    resource_version: str | None = None
    generation: int | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class _Owner(msgspec.Struct, omit_defaults=True, frozen=True, gc=False):
    kind: str | None = None
    name: str | None = None
    controller: bool | None = None


class PodMetadata(Metadata):
    owner_references: list[_Owner] | None = None


class _Port(_Camel):
    name: str | None = None
    container_port: int | None = None
    protocol: str | None = None
    host_port: int | None = None
    host_ip: str | None = msgspec.field(default=None, name="hostIP")


class _Container(_Camel):
    ports: list[_Port] | None = None
    restart_policy: str | None = None


class _PodSpec(_Camel):
    node_name: str | None = None
    host_network: bool | None = None
    containers: list[_Container] | None = None
    init_containers: list[_Container] | None = None


class _Ip(_Camel):
    ip: str | None = None


class _Condition(_Camel):
    type: str | None = None
    status: str | None = None


class _PodStatus(_Camel):
    phase: str | None = None
    pod_ip: str | None = msgspec.field(default=None, name="podIP")
    pod_ips: list[_Ip] | None = msgspec.field(default=None, name="podIPs")
    conditions: list[_Condition] | None = None


class PodView(_Camel):
    metadata: PodMetadata
    spec: _PodSpec | None = None
    status: _PodStatus | None = None


class NamespaceView(_Camel):
    metadata: Metadata


class _NodeAddress(_Camel):
    type: str | None = None
    address: str | None = None


class _NodeStatus(_Camel):
    addresses: list[_NodeAddress] | None = None


class NodeView(_Camel):
    metadata: Metadata
    status: _NodeStatus | None = None


class ServiceView(_Camel):
    metadata: Metadata
    spec: Obj | None = None
    status: Obj | None = None


class _Reference(_Camel):
    kind: str | None = None
    name: str | None = None


class _EndpointConditions(_Camel):
    ready: bool | None = None
    serving: bool | None = None


class _Endpoint(_Camel):
    addresses: list[str] | None = None
    conditions: _EndpointConditions | None = None
    target_ref: _Reference | None = None


class _SlicePort(_Camel):
    name: str | None = None
    protocol: str | None = None
    port: int | None = None


class SliceView(_Camel):
    metadata: Metadata
    endpoints: list[_Endpoint] | None = None
    ports: list[_SlicePort] | None = None


class SpecView(_Camel):
    """Policies, and whatever else is its spec."""

    metadata: Metadata
    spec: Any = None


class DataView(_Camel):
    metadata: Metadata
    data: Any = None


class _Version(_Camel):
    name: str = ""
    served: bool = False


class _DefinitionSpec(_Camel):
    versions: list[_Version] | None = None


class _DefinitionStatus(_Camel):
    conditions: list[_Condition] | None = None


class DefinitionView(_Camel):
    """A CustomResourceDefinition: only what it serves."""

    metadata: Metadata
    spec: _DefinitionSpec
    status: _DefinitionStatus | None = None

    @property
    def served(self) -> frozenset[str]:
        """The versions that can be asked for; none before it is established."""
        conditions = (self.status.conditions if self.status else None) or []
        if not any(each.type == "Established" and each.status == "True" for each in conditions):
            return frozenset()
        return frozenset(version.name for version in self.spec.versions or () if version.served)


class ListMeta(_Camel):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class WatchLine(msgspec.Struct, gc=False):
    """One line of a watch; ``object`` is decoded by kind, or as ``Failure`` where the type is ERROR."""

    type: str
    object: msgspec.Raw


class Failure(_Camel):
    """A Kubernetes ``Status``."""

    code: int = 0
    reason: str = ""
    message: str = ""


class BookmarkView(_Camel):
    metadata: Metadata


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of object. ``versions``: of those served the first is read.

    ``is_custom``: it exists only where a CustomResourceDefinition says so. ``name``: this one object only.
    """

    kind: str
    plural: str
    group: str
    versions: tuple[str, ...]
    view: Any
    is_custom: bool = False
    namespace: str = ""
    name: str = ""

    @property
    def resource(self) -> str:
        """``plural.group``, as people and CustomResourceDefinitions name it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def key_kind(self) -> str:
        """The first part of its objects' keys, as in ``parse.identify``."""
        found = POLICY_KINDS.get((self.api_version(self.versions[0]), self.kind))
        return found.value if found is not None else self.kind

    def path(self, version: str) -> str:
        """The collection on the API server."""
        root = f"/apis/{self.group}/{version}" if self.group else f"/api/{version}"
        place = f"/namespaces/{self.namespace}" if self.namespace else ""
        return f"{root}{place}/{self.plural}"

    def api_version(self, version: str) -> str:
        return f"{self.group}/{version}" if self.group else version


AWS, UPSTREAM = "networking.k8s.aws", "policy.networking.k8s.io"

DEFINITIONS = Kind(
    "CustomResourceDefinition", "customresourcedefinitions", "apiextensions.k8s.io", ("v1",), DefinitionView
)


def kinds_read(namespace: str) -> tuple[Kind, ...]:
    """Everything that makes up a world. ``namespace``: where Yett's own ConfigMap stands."""
    return (
        Kind("Namespace", "namespaces", "", ("v1",), NamespaceView),
        Kind("Node", "nodes", "", ("v1",), NodeView),
        Kind("Pod", "pods", "", ("v1",), PodView),
        Kind("Service", "services", "", ("v1",), ServiceView),
        Kind("EndpointSlice", "endpointslices", "discovery.k8s.io", ("v1", "v1beta1"), SliceView),
        Kind("ConfigMap", "configmaps", "", ("v1",), DataView, namespace=namespace, name=SETTINGS_NAME),
        Kind("NetworkPolicy", "networkpolicies", "networking.k8s.io", ("v1",), SpecView),
        Kind("ClusterNetworkPolicy", "clusternetworkpolicies", AWS, ("v1alpha1",), SpecView, is_custom=True),
        Kind("ApplicationNetworkPolicy", "applicationnetworkpolicies", AWS, ("v1alpha1",), SpecView, is_custom=True),
        # v1alpha2 first: it reads all that v1beta1 admits.
        Kind(
            "ClusterNetworkPolicy",
            "clusternetworkpolicies",
            UPSTREAM,
            ("v1alpha2", "v1beta1"),
            SpecView,
            is_custom=True,
        ),
        Kind("AdminNetworkPolicy", "adminnetworkpolicies", UPSTREAM, ("v1alpha1",), SpecView, is_custom=True),
        Kind(
            "BaselineAdminNetworkPolicy",
            "baselineadminnetworkpolicies",
            UPSTREAM,
            ("v1alpha1",),
            SpecView,
            is_custom=True,
        ),
        Kind("NodeClass", "nodeclasses", "eks.amazonaws.com", ("v1",), SpecView, is_custom=True),
    )


class Page(_Camel):
    """One page of a list, its items not decoded yet."""

    metadata: ListMeta
    items: list[msgspec.Raw] | None = None


_PAGE = msgspec.json.Decoder(Page)
_LINE = msgspec.json.Decoder(WatchLine)
_FAILURE = msgspec.json.Decoder(Failure)
_BOOKMARK = msgspec.json.Decoder(BookmarkView)
_DECODERS: dict[Any, msgspec.json.Decoder[Any]] = {}


def decode_page(body: bytes) -> Page:
    """msgspec.MsgspecError if it is no list."""
    return _PAGE.decode(body)


def decode_line(line: bytes) -> WatchLine:
    """msgspec.MsgspecError if it is no watch line."""
    return _LINE.decode(line)


def decode_failure(body: bytes) -> Failure:
    """A Status, or what can be said of an answer that is none."""
    try:
        return _FAILURE.decode(body)
    except msgspec.MsgspecError:
        return Failure(message=body[:200].decode(errors="replace"))


def read_bookmark(raw: bytes) -> str:
    """The resourceVersion of a bookmark."""
    return _BOOKMARK.decode(raw).metadata.resource_version or ""


@dataclass(frozen=True, slots=True)
class Item:
    """One object: its place in every index, its version, its content, and the content's fingerprint.

    ``served``: of a CustomResourceDefinition, the versions that can be asked for.
    """

    key: PolicyKey
    resource_version: str
    obj: Obj
    fingerprint: int
    served: frozenset[str] = frozenset()


def decode_item(kind: Kind, version: str, raw: bytes) -> Item | None:
    """An object as ``parse_object`` takes it, in the fields that count; None if it has no usable name.

    msgspec.MsgspecError if a field is not of the type that its API gives it.
    """
    decoder = _DECODERS.get(kind.view)
    if decoder is None:
        decoder = _DECODERS[kind.view] = msgspec.json.Decoder(kind.view)
    view = decoder.decode(raw)
    metadata: Metadata = view.metadata
    resource_version, metadata.resource_version = metadata.resource_version or "", None
    _keep_what_counts(metadata)
    obj: Obj = {"apiVersion": kind.api_version(version), "kind": kind.kind, **msgspec.to_builtins(view)}
    key = identify(obj)
    if key is None:
        return None
    if isinstance(metadata, PodMetadata) and metadata.owner_references:
        obj["metadata"]["ownerReferences"] = _share_owner(metadata.owner_references[0])
    served = view.served if isinstance(view, DefinitionView) else frozenset()
    # An object that comes in another version is news: by that one it is asked for.
    fingerprint = hash((version, msgspec.json.encode(view, order="deterministic")))
    return Item(key, resource_version, obj, fingerprint, served)


@lru_cache(maxsize=OWNERS_SHARED)
def _share_owner(owner: _Owner) -> list[Obj]:
    """One list for the pods of an owner, which come one after another: half a kilobyte a pod. Nobody changes it."""
    return [{"kind": owner.kind, "name": owner.name, "controller": True}]


def _keep_what_counts(metadata: Metadata) -> None:
    """Of the annotations only ours, of the owners the one in control."""
    given = metadata.annotations or {}
    metadata.annotations = {key: given[key] for key in OUR_ANNOTATIONS if key in given} or None
    if isinstance(metadata, PodMetadata):
        in_control = (each for each in metadata.owner_references or () if each.controller and each.kind and each.name)
        metadata.owner_references = [*in_control][:1] or None
