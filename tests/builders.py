"""Objects for tests, short to write and plain to read. Append a section of your own; change nobody else's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Obj = dict[str, Any]

# ---------------------------------------------------------------------------------------------------------------------
# Kubernetes objects


def namespace(name: str, **labels: str) -> Obj:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def node(name: str, *addresses: str, **labels: str) -> Obj:
    listed = [{"type": "InternalIP", "address": address} for address in addresses]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "status": {"addresses": listed},
    }


def pod(
    name: str,
    *addresses: str,
    namespace: str = "app",
    node: str = "node-a",
    ports: Iterable[Obj] = (),
    **labels: str,
) -> Obj:
    """``name`` may be ``namespace/name``. Labels are keywords."""
    place, _, short = name.rpartition("/")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": short, "namespace": place or namespace, "labels": labels},
        "spec": {"nodeName": node, "containers": [{"name": "main", "ports": list(ports)}]},
        "status": {"phase": "Running", "podIPs": [{"ip": address} for address in addresses]},
    }


def service(name: str, address: str, *ports: Obj, selector: dict[str, str] | None = None, **spec: Any) -> Obj:
    place, _, short = name.rpartition("/")
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": short, "namespace": place or "app"},
        "spec": {"clusterIP": address, "ports": list(ports), "selector": selector, **spec},
    }


def endpoint_slice(service: str, *endpoints: Obj, ports: Iterable[Obj], name: str = "") -> Obj:
    place, _, short = service.rpartition("/")
    labels = {"kubernetes.io/service-name": short}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name or f"{short}-1", "namespace": place or "app", "labels": labels},
        "addressType": "IPv4",
        "endpoints": list(endpoints),
        "ports": list(ports),
    }


def policy(api: str, kind: str, name: str, spec: Obj, **metadata: Any) -> Obj:
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, **metadata}, "spec": spec}


def network_policy(name: str, spec: Obj, *, namespace: str = "app", **metadata: Any) -> Obj:
    spec = {"podSelector": {}, **spec}
    return policy("networking.k8s.io/v1", "NetworkPolicy", name, spec, namespace=namespace, **metadata)


def application_policy(name: str, spec: Obj, *, namespace: str = "app", **metadata: Any) -> Obj:
    spec = {"podSelector": {}, **spec}
    return policy(
        "networking.k8s.aws/v1alpha1", "ApplicationNetworkPolicy", name, spec, namespace=namespace, **metadata
    )


def aws_cluster_policy(name: str, spec: Obj, **metadata: Any) -> Obj:
    spec = {"tier": "Admin", "priority": 10, "subject": {"namespaces": {}}, **spec}
    return policy("networking.k8s.aws/v1alpha1", "ClusterNetworkPolicy", name, spec, **metadata)


def cluster_policy(name: str, spec: Obj, **metadata: Any) -> Obj:
    spec = {"tier": "Admin", "priority": 10, "subject": {"namespaces": {}}, **spec}
    return policy("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", name, spec, **metadata)


def admin_policy(name: str, spec: Obj, **metadata: Any) -> Obj:
    spec = {"priority": 10, "subject": {"namespaces": {}}, **spec}
    return policy("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy", name, spec, **metadata)


def baseline_policy(spec: Obj, **metadata: Any) -> Obj:
    spec = {"subject": {"namespaces": {}}, **spec}
    return policy("policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy", "default", spec, **metadata)


def settings(**data: str) -> Obj:
    """The ConfigMap ``yett``; '_' in keywords stands for '-'."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "yett", "namespace": "yett-system"},
        "data": {key.replace("_", "-"): value for key, value in data.items()},
    }
