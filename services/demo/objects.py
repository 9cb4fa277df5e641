"""Kubernetes objects of the demo's world: what an API server would say of the lab.

Plain dictionaries in, YAML text out. Deliberately absent: policies (``manifests/*.yaml``), files (``folder``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from services.demo import topology
from services.demo.topology import Node, Pod, Service

Object = dict[str, Any]

GRACE_SECONDS = 2
CREATED = "2025-12-15T00:00:00Z"
NODE_LABEL = "demo.yett/node"
"""On every pod, the key of its node: what ``--sabotage node-scope`` selects by."""


def render(objects: Iterable[Object]) -> str:
    """YAML with many documents."""
    return yaml.dump_all(objects, Dumper=_PlainDumper, sort_keys=False)


class _PlainDumper(yaml.SafeDumper):
    """Writes what is shared twice, as people do, instead of with anchors and aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def make_config(settings: Mapping[str, str]) -> Object:
    """The ConfigMap that holds the cluster's settings; ``settings`` win over the demo's own."""
    data = {
        "default": "deny",
        "resolvers": f"{topology.DNS_SERVICE}:53,[{topology.DNS_SERVICE6}]:53",
        "service-cidrs": ",".join(topology.SERVICE_CIDRS),
        "pod-cidrs": ",".join(topology.POD_CIDRS),
        # Lowered, so that step 10 is over in seconds.
        "ttl-min": str(topology.DATABASE_TTL_SECONDS),
        "grace": str(GRACE_SECONDS),
        **settings,
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "yett", "namespace": "yett-system"},
        "data": data,
    }


def make_namespace(name: str, labels: Mapping[str, str]) -> Object:
    """With the name as a label, as the API server adds it."""
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name, **labels}},
    }


def make_node(node: Node) -> Object:
    """With its addresses and pod ranges."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": {"kubernetes.io/hostname": node.name}},
        "spec": {"podCIDR": node.pod_cidr, "podCIDRs": [node.pod_cidr, node.pod_cidr6]},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": node.address},
                {"type": "InternalIP", "address": node.address6},
                {"type": "Hostname", "address": node.name},
            ]
        },
    }


def make_pod(pod: Pod) -> Object:
    """Bound, running, with both addresses."""
    container: Object = {"name": "main", "image": "demo"}
    if pod.serves:
        container["ports"] = [{"name": "http", "containerPort": topology.POD_WEB_PORT, "protocol": "TCP"}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod.name,
            "namespace": pod.namespace,
            "uid": pod.uid,
            "labels": {**dict(pod.labels), NODE_LABEL: pod.node.key},
            "creationTimestamp": CREATED,
        },
        "spec": {"nodeName": pod.node.name, "containers": [container]},
        "status": {
            "phase": "Running",
            "hostIP": pod.node.address,
            "podIP": pod.address,
            "podIPs": [{"ip": address} for address in pod.addresses],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def make_service(service: Service, backends: Sequence[Pod] = ()) -> list[Object]:
    """The Service and one EndpointSlice a family. ``backends``: if they are none of the topology's."""
    port = {"name": "http", "protocol": "TCP", "port": service.port, "targetPort": topology.POD_WEB_PORT}
    backends = backends or [topology.find_pod(key) for key in service.backends]
    slices = [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{service.name}-{family.lower()}",
                "namespace": service.namespace,
                "labels": {"kubernetes.io/service-name": service.name},
            },
            "addressType": family,
            "ports": [{"name": "http", "protocol": "TCP", "port": topology.POD_WEB_PORT}],
            "endpoints": [
                {
                    "addresses": [backend.addresses[index]],
                    "nodeName": backend.node.name,
                    "conditions": {"ready": True},
                    "targetRef": {
                        "kind": "Pod",
                        "namespace": backend.namespace,
                        "name": backend.name,
                        "uid": backend.uid,
                    },
                }
                for backend in backends
            ],
        }
        for index, family in enumerate(("IPv4", "IPv6"))
    ]
    spec = {
        "type": "ClusterIP",
        "clusterIP": service.address,
        "clusterIPs": list(service.addresses),
        "ipFamilies": ["IPv4", "IPv6"],
        "ipFamilyPolicy": "RequireDualStack",
        "selector": dict(service.selector),
        "ports": [port],
    }
    metadata = {"name": service.name, "namespace": service.namespace}
    return [{"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}, *slices]


def make_dns_service() -> list[Object]:
    """Cluster DNS: a Service without a selector, its endpoints outside the pod ranges."""
    ports = [
        {"name": name, "protocol": protocol, "port": 53} for name, protocol in (("dns", "UDP"), ("dns-tcp", "TCP"))
    ]
    spec_ports = [{**port, "targetPort": 53} for port in ports]
    spec = {
        "type": "ClusterIP",
        "clusterIP": topology.DNS_SERVICE,
        "clusterIPs": [topology.DNS_SERVICE, topology.DNS_SERVICE6],
        "ipFamilies": ["IPv4", "IPv6"],
        "ipFamilyPolicy": "RequireDualStack",
        "ports": spec_ports,
    }
    metadata = {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}}
    slices = [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"kube-dns-{family.lower()}",
                "namespace": "kube-system",
                "labels": {"kubernetes.io/service-name": "kube-dns"},
            },
            "addressType": family,
            "ports": ports,
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        }
        for family, address in (("IPv4", topology.FABRIC_DNS), ("IPv6", topology.FABRIC_DNS6))
    ]
    return [{"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}, *slices]


def make_cluster(pods: Iterable[Pod] = topology.PODS) -> list[Object]:
    """Everything that is there before the first step, but the settings."""
    objects = [make_node(node) for node in topology.NODES]
    objects += [make_namespace(name, labels) for name, labels in topology.NAMESPACES.items()]
    objects += [make_pod(pod) for pod in pods]
    objects += make_dns_service()
    for service in topology.SERVICES:
        if service.namespace in topology.NAMESPACES:
            objects += make_service(service)
    return objects


def make_late(namespace: str) -> list[Object]:
    """A namespace of ``LATE_NAMESPACES``, its pods and Services."""
    objects = [make_namespace(namespace, topology.LATE_NAMESPACES[namespace])]
    objects += [make_pod(pod) for pod in topology.LATE_PODS if pod.namespace == namespace]
    for service in topology.SERVICES:
        if service.namespace == namespace:
            objects += make_service(service)
    return objects
