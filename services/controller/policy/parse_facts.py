"""Namespaces, pods, nodes, Services and EndpointSlices, read leniently: only what Yett needs, whatever else there is.

A fact that cannot be read is left out and reported; the rest of its object is used.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from sys import intern
from typing import Any

from schemas.selectors import NAMESPACE_NAME_LABEL
from schemas.terms import Default, NodeName, Protocol
from services.controller.policy.model import (
    ContainerPort,
    EndpointSlice,
    Labels,
    Namespace,
    Node,
    NodeClass,
    Pod,
    Service,
    ServicePort,
    SliceEndpoint,
)
from services.controller.policy.parse_reader import Reader

DEFAULT_ANNOTATION = "yett.dev/default"
"""On a namespace (may only tighten) and on a node."""
DEFAULTS = {"deny": Default.DENY, "allow": Default.ALLOW, "audit": Default.AUDIT}
NODE_CLASS_LABEL = "eks.amazonaws.com/nodeclass"
NODE_CLASS_DEFAULTS = {"DefaultDeny": Default.DENY, "DefaultAllow": Default.ALLOW}
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
PROTOCOL_NUMBERS = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP}
TEMPLATE_LABEL = "pod-template-hash"
"""On a ReplicaSet of a Deployment and on its pods; the ReplicaSet's name is the Deployment's, a dash, and this."""
TERMINAL_PHASES = ("Succeeded", "Failed")
BALANCED_TYPES = ("NodePort", "LoadBalancer")


def read_labels(reader: Reader) -> Labels:
    """A map of strings; YAML's numbers and booleans are not."""
    return {key: value.text() for key, value in reader.pairs() if isinstance(value.value, str)}


def read_namespace(obj: Reader, name: str) -> Namespace:
    labels = read_labels(obj.get("metadata").get("labels"))
    labels[NAMESPACE_NAME_LABEL] = name
    return Namespace(name=name, labels=labels, default=_read_default(obj))


def read_pod(obj: Reader, namespace: str, name: str) -> Pod:
    metadata, spec, status = obj.get("metadata"), obj.get("spec"), obj.get("status")
    labels = read_labels(metadata.get("labels"))
    return Pod(
        namespace=namespace,
        name=name,
        uid=_text(metadata.get("uid")) or f"manifest:{namespace}/{name}",
        labels=labels,
        node=NodeName(_text(spec.get("nodeName"))),
        addresses=_read_pod_addresses(status),
        ports=tuple(_read_container_ports(spec)),
        created=_text(metadata.get("creationTimestamp")),
        host_network=spec.get("hostNetwork").value is True,
        is_live=status.get("phase").value not in TERMINAL_PHASES,
        is_ready=_is_ready(status, is_terminating=metadata.get("deletionTimestamp").is_present),
        owner=_read_owner(metadata, labels),
    )


def _read_owner(metadata: Reader, labels: Labels) -> str:
    """The controlling owner; for a ReplicaSet of a Deployment the Deployment."""
    for item in _list(metadata.get("ownerReferences")):
        kind, name = _text(item.get("kind")), _text(item.get("name"))
        if item.get("controller").value is True and kind and name:
            suffix = f"-{labels.get(TEMPLATE_LABEL, '')}"
            is_deployments = kind == "ReplicaSet" and suffix != "-" and name.endswith(suffix) and name != suffix
            return intern(f"Deployment/{name.removesuffix(suffix)}" if is_deployments else f"{kind}/{name}")
    return ""


def _read_pod_addresses(status: Reader) -> tuple[str, ...]:
    listed = [_text(item.get("ip")) for item in _list(status.get("podIPs"))]
    single = _text(status.get("podIP"))
    given = listed or ([single] if single else [])
    addresses = {address for text in given if (address := _canonical_address(status, text))}
    return tuple(sorted(addresses))


def _read_container_ports(spec: Reader) -> Iterator[ContainerPort]:
    """The containers' ports in order, then those of sidecars (init containers that stay)."""
    sidecars = [item for item in _list(spec.get("initContainers")) if item.get("restartPolicy").value == "Always"]
    for container in [*_list(spec.get("containers")), *sidecars]:
        for port in _list(container.get("ports")):
            number = port.get("containerPort").value
            protocol = PROTOCOL_NUMBERS.get(_text(port.get("protocol")) or "TCP")
            if protocol is None or not _is_port(number):
                port.warn("ignored: not a port of TCP, UDP or SCTP")
                continue
            host_port = port.get("hostPort").value
            yield ContainerPort(
                protocol=protocol,
                number=number,
                name=_text(port.get("name")),
                host_port=host_port if _is_port(host_port) else 0,
                host_address=_text(port.get("hostIP")),
            )


def _is_ready(status: Reader, *, is_terminating: bool) -> bool:
    """The Ready condition; without one (a manifest) a pod that is not going away counts as ready."""
    if is_terminating:
        return False
    for condition in _list(status.get("conditions")):
        if condition.get("type").value == "Ready":
            return bool(condition.get("status").value == "True")
    return True


def read_node(obj: Reader, name: str) -> Node:
    metadata, status = obj.get("metadata"), obj.get("status")
    kinds = ("InternalIP", "ExternalIP")
    listed = [item for item in _list(status.get("addresses")) if item.get("type").value in kinds]
    addresses = {address for item in listed if (address := _canonical_address(item, _text(item.get("address"))))}
    labels = read_labels(metadata.get("labels"))
    return Node(
        name=NodeName(name),
        uid=_text(metadata.get("uid")) or f"manifest:{name}",
        labels=labels,
        addresses=tuple(sorted(addresses)),
        default=_read_default(obj),
        node_class=labels.get(NODE_CLASS_LABEL, ""),
    )


def read_node_class(obj: Reader, name: str) -> NodeClass:
    default = obj.get("spec").get("networkPolicy")
    if default.is_present and _text(default) not in NODE_CLASS_DEFAULTS:
        default.fault(f"{default.value!r} is none of {', '.join(NODE_CLASS_DEFAULTS)}")
    return NodeClass(name=name, default=NODE_CLASS_DEFAULTS.get(_text(default)))


def read_service(obj: Reader, namespace: str, name: str) -> Service:
    spec = obj.get("spec")
    kind = _text(spec.get("type")) or "ClusterIP"
    cluster = [_text(item) for item in _list(spec.get("clusterIPs"))] or [_text(spec.get("clusterIP"))]
    balancer = obj.get("status").get("loadBalancer").get("ingress")
    selector = read_labels(spec.get("selector"))
    return Service(
        namespace=namespace,
        name=name,
        cluster_addresses=() if kind == "ExternalName" else _addresses(spec, cluster),
        external_addresses=_addresses(spec, [_text(item) for item in _list(spec.get("externalIPs"))]),
        balancer_addresses=_addresses(spec, [_text(item.get("ip")) for item in _list(balancer)]),
        ports=tuple(_read_service_ports(spec, has_node_ports=kind in BALANCED_TYPES)),
        selector=selector or None,
        publishes_not_ready=spec.get("publishNotReadyAddresses").value is True,
    )


def _read_service_ports(spec: Reader, *, has_node_ports: bool) -> Iterator[ServicePort]:
    for item in _list(spec.get("ports")):
        protocol = PROTOCOL_NUMBERS.get(_text(item.get("protocol")) or "TCP")
        number, target, node_port = item.get("port").value, item.get("targetPort").value, item.get("nodePort").value
        if protocol is None or not _is_port(number):
            item.warn("ignored: not a port of TCP, UDP or SCTP")
            continue
        yield ServicePort(
            name=_text(item.get("name")),
            protocol=protocol,
            port=number,
            target=target if isinstance(target, str) or _is_port(target) else number,
            node_port=node_port if has_node_ports and _is_port(node_port) else 0,
        )


def read_slice(obj: Reader, namespace: str, name: str) -> EndpointSlice:
    """Also ``discovery.k8s.io/v1beta1``, whose fields used here are the same."""
    endpoints = []
    for item in _list(obj.get("endpoints")):
        conditions, target = item.get("conditions"), item.get("targetRef")
        is_ready = conditions.get("ready").value is not False
        serving = conditions.get("serving").value
        endpoints.append(
            SliceEndpoint(
                addresses=_addresses(item, [_text(each) for each in _list(item.get("addresses"))]),
                is_ready=is_ready,
                is_serving=is_ready if serving is None else serving is True,
                pod=_text(target.get("name")) if target.get("kind").value == "Pod" else "",
            )
        )
    ports = []
    for item in _list(obj.get("ports")):
        protocol = PROTOCOL_NUMBERS.get(_text(item.get("protocol")) or "TCP")
        if protocol is not None and _is_port(item.get("port").value):
            ports.append((_text(item.get("name")), int(protocol), item.get("port").value))
    service = read_labels(obj.get("metadata").get("labels")).get(SERVICE_NAME_LABEL, "")
    return EndpointSlice(
        namespace=namespace, name=name, service=service, endpoints=tuple(endpoints), ports=tuple(ports)
    )


# ---------------------------------------------------------------------------------------------------------------------
# Lenient readers: what is not of the expected type is not there.


def read_word(reader: Reader) -> str:
    """Text, a timestamp also where YAML made a date of it; empty if it is neither."""
    return _text(reader)


def _text(reader: Reader) -> str:
    value = reader.value
    if isinstance(value, str):
        return value
    # YAML reads an unquoted timestamp as a date.
    return value.strftime("%Y-%m-%dT%H:%M:%SZ") if hasattr(value, "strftime") else ""


def _list(reader: Reader) -> list[Reader]:
    return reader.items() if isinstance(reader.value, list) else []


def _is_port(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535


def _addresses(reader: Reader, texts: list[str]) -> tuple[str, ...]:
    given = [text for text in texts if text and text != "None"]
    return tuple(sorted({address for text in given if (address := _canonical_address(reader, text))}))


def _canonical_address(reader: Reader, text: str) -> str:
    """Canonical text, or empty with a warning. A v4-mapped address is the IPv4 one it stands for."""
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        reader.warn(f"ignored: {text!r} is not an IP address")
        return ""
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(parsed)


def _read_default(obj: Reader) -> Default | None:
    annotation = obj.get("metadata").get("annotations").get(DEFAULT_ANNOTATION)
    text = _text(annotation)
    if annotation.is_present and text not in DEFAULTS:
        annotation.fault(f"{annotation.value!r} is none of {', '.join(DEFAULTS)}")
    return DEFAULTS.get(text)
