"""A scene as a scenario: what a difference is printed as, and what ``yett test`` replays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from services.controller.policy.model import Answer, Packet
from services.scenario.model import Scenario, read_scenario
from tests.strategies import AT, Scene

Document = dict[str, Any]


def make_document(scene: Scene, name: str) -> Document:
    """Every packet is a probe between two addresses."""
    return {
        "name": name,
        "objects": [*scene.cluster, *scene.policies],
        "resolutions": [_make_resolution(answer) for answer in scene.answers],
        "probes": make_probes(scene.packets),
    }


def _make_resolution(answer: Answer) -> Document:
    return {"name": answer.name, "addresses": list(answer.addresses), "ttl": answer.ttl_seconds, "at": answer.at}


def make_probes(packets: Iterable[Packet]) -> list[Document]:
    """``from_own_node`` cannot be said: it follows from whose address the source is."""
    return [
        {
            "id": index,
            "from": {"address": packet.source},
            "to": {"address": packet.destination},
            "protocol": packet.protocol,
            **({"port": packet.port} if packet.port else {}),
            "at": AT,
        }
        for index, packet in enumerate(packets)
    ]


def read_document(document: Document) -> Scenario:
    """As ``yett test`` reads it. ScenarioError."""
    return read_scenario(document)


def format_document(document: Document) -> str:
    """YAML, in the order in which it was made."""
    return yaml.dump(document, Dumper=_Plain, sort_keys=False, width=120)


class _Plain(yaml.SafeDumper):
    """Without anchors: what is the same twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
