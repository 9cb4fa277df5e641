"""A cluster and probes for tests of scenarios, short to write."""

from __future__ import annotations

from typing import Any

from services.scenario.model import Scenario, read_scenario
from tests import builders as k8s

Obj = dict[str, Any]

WEB, API, DB = "10.0.0.1", "10.0.0.2", "10.0.1.1"
NODE, OTHER_NODE = "192.168.0.1", "192.168.0.2"
CLUSTER: list[Obj] = [
    k8s.namespace("app", team="x"),
    k8s.namespace("data"),
    k8s.node("node-a", NODE),
    k8s.node("node-b", OTHER_NODE),
    k8s.pod("app/web", WEB, "fd00::1", app="web"),
    k8s.pod("app/api", API, app="api"),
    k8s.pod("data/db", DB, node="node-b", app="db"),
]


def scenario(*objects: Obj, probes: list[Obj] | None = None, **fields: Any) -> Scenario:
    """A scenario over ``CLUSTER`` and more objects."""
    return read_scenario({"name": "test", "objects": [*CLUSTER, *objects], "probes": probes or [], **fields})


def probe(source: Obj, destination: Obj, port: int | None = 80, **fields: Any) -> Obj:
    return {"from": source, "to": destination, "port": port, **fields}


def pod(name: str, **fields: Any) -> Obj:
    return {"pod": name, **fields}


def address(text: str) -> Obj:
    return {"address": text}


def service(name: str) -> Obj:
    return {"service": name}


def name(text: str, **fields: Any) -> Obj:
    return {"name": text, **fields}
