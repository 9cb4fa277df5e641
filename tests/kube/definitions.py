"""The definitions that are shipped, as a server of 1.20 takes them: it knows no validation expressions."""

from __future__ import annotations

from typing import Any

PLURALS = {
    "ClusterNetworkPolicy": ("clusternetworkpolicies", "Cluster"),
    "ApplicationNetworkPolicy": ("applicationnetworkpolicies", "Namespaced"),
}


def definition(kind: str) -> dict[str, Any]:
    """A CustomResourceDefinition of the AWS group that takes anything."""
    plural, scope = PLURALS[kind]
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1alpha1", "served": True, "storage": True, "schema": schema, "subresources": {"status": {}}}
    return {
        "metadata": {"name": f"{plural}.networking.k8s.aws"},
        "spec": {
            "group": "networking.k8s.aws",
            "scope": scope,
            "names": {"plural": plural, "kind": kind, "listKind": f"{kind}List", "singular": kind.lower()},
            "versions": [version],
        },
    }
