"""The default of a pod: what happens where no rule decides; and the settings as agents are told them.

A namespace's setting, else the node's (its own setting, its annotation, its NodeClass), else the cluster's.
A namespace's annotation may only tighten what comes out: a tenant who may label a namespace must not open it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from schemas.policy import Config, Resolver
from schemas.terms import Default, NodeName
from services.controller.policy.model import Namespace, Node, NodeClass, Pod, Settings, World

ZONE_LABEL = "topology.kubernetes.io/zone"
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


def default_of(pod: Pod, world: World, settings: Settings) -> Default:
    """``pod_default`` of a pod where it is."""
    node = world.nodes.get(pod.node)
    node_class = world.node_classes.get(node.node_class) if node is not None else None
    of_node = node_default(settings, node, node_class, pod.node)
    return pod_default(settings, world.namespaces.get(pod.namespace), pod.namespace, of_node)


def make_config(settings: Settings, world: World, resolvers: Sequence[Resolver]) -> Config:
    """What agents are told of the settings, completed by what the world knows: resolvers, the nodes' defaults."""
    defaults = dict(settings.config.node_defaults)
    for name, node in world.nodes.items():
        default = node_default(settings, node, world.node_classes.get(node.node_class), node.name)
        if default is not None:
            defaults[NodeName(name)] = default
    zones = {node.name: node.labels[ZONE_LABEL] for node in world.nodes.values() if ZONE_LABEL in node.labels}
    return msgspec.structs.replace(
        settings.config,
        resolvers=tuple(resolvers),
        node_defaults=defaults,
        zones=zones if settings.config.share == "zone" else {},
    )
