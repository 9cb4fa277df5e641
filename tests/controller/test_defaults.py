"""What agents are told of the settings, completed by what the world knows."""

from __future__ import annotations

import msgspec
import pytest

from schemas.policy import Config
from schemas.terms import NodeName
from services.controller.policy.defaults import ZONE_LABEL, make_config
from services.controller.policy.model import Node, Settings, World


@pytest.mark.parametrize("share", ["cluster", "zone", "node", "off"])
def test_zones_are_told_only_where_they_count(share: str) -> None:
    """Else a node's new label would be a change of settings for everybody; a node without the label has no zone."""
    nodes = {
        "a": Node(name=NodeName("a"), uid="1", labels={ZONE_LABEL: "one"}),
        "b": Node(name=NodeName("b"), uid="2"),
    }
    config = make_config(Settings(config=Config(share=share)), World(nodes=nodes), ())
    assert config.zones == ({"a": "one"} if share == "zone" else {})
    assert ("zones" in msgspec.to_builtins(config)) == (share == "zone")
