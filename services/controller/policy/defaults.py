"""The default of a pod: what happens where no rule decides.

A namespace's setting, else the node's (its own setting, its annotation, its NodeClass), else the cluster's.
A namespace's annotation may only tighten what comes out: a tenant who may label a namespace must not open it.
"""

from __future__ import annotations

from schemas.terms import Default, NodeName
from services.controller.policy.model import Namespace, Node, NodeClass, Settings

STRICTNESS = {Default.ALLOW: 0, Default.AUDIT: 1, Default.DENY: 2}


def node_default(settings: Settings, node: Node | None, node_class: NodeClass | None, name: NodeName) -> Default | None:
    """What a node says, or None where it says nothing."""
    if name in settings.config.node_defaults:
        return settings.config.node_defaults[name]
    if node is not None and node.default is not None:
        return node.default
    return node_class.default if node_class is not None else None


def pod_default(settings: Settings, namespace: Namespace | None, name: str, of_node: Default | None) -> Default:
    """The default that a ruleset of pods in this namespace on this node is compiled with."""
    chosen = settings.namespace_defaults.get(name)
    if chosen is None:
        chosen = of_node if of_node is not None else settings.config.default
    asked = namespace.default if namespace is not None else None
    if asked is not None and STRICTNESS[asked] > STRICTNESS[chosen]:
        return asked
    return chosen
