"""Sabotage breaks one thing, and says which."""

from __future__ import annotations

import yaml

from services.cli.demo import SabotageName
from services.demo import topology
from services.demo.sabotage import SABOTAGES, NodeScope, Open, Sabotage


def test_the_command_line_offers_every_sabotage() -> None:
    """By the same names."""
    assert {name.value for name in SabotageName} == set(SABOTAGES)


def test_without_sabotage_nothing_is_changed() -> None:
    """No setting, no file."""
    assert Sabotage.settings == {}
    assert [Sabotage().manifests_for(step) for step in range(1, 11)] == [{}] * 10


def test_open_holds_the_default_open() -> None:
    """Whatever a step asks for."""
    assert Open.settings == {"default": "allow"}


def test_node_scope_opens_what_a_neighbour_resolved_to_every_pod_of_that_node() -> None:
    """The seed's defect: by node, not by the pod's own rule."""
    (text,) = NodeScope().manifests_for(3).values()
    policy = yaml.safe_load(text)
    cidrs = {peer["ipBlock"]["cidr"] for peer in policy["spec"]["egress"][0]["to"]}
    assert cidrs == {"192.0.2.10/32", "2001:db8:1::10/128"}
    assert policy["spec"]["podSelector"]["matchLabels"] == {"demo.yett/node": topology.NODE_A.key}
