"""One thing broken on purpose, so that the rows which depend on it must fail: proof that the demo can see a fault.

Deliberately absent: how rows are judged; a sabotaged run is judged like any other.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from services.demo import objects, topology
from services.demo.folder import Objects
from services.demo.lab import Lab
from services.demo.pipeline import Pipeline, agent_name, recorder_name
from services.demo.state import is_alive
from services.demo.topology import NODES, Pod

VICTIM = "app/curl-frontend"
"""The pod whose filters are taken off by ``detach``: the one that the seed's leak is about."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What a sabotage may lay hands on."""

    lab: Lab
    pipeline: Pipeline
    folder: Objects


class Sabotage:
    """Nothing is broken. Subclasses break one thing at one of these moments."""

    settings: dict[str, str] = {}
    """Win over every setting of the demo."""

    def after_start(self, stage: Stage) -> None:
        """The services run and both nodes enforce the first revision."""

    def manifests_for(self, step: int) -> dict[str, str]:
        """Files that go into the folder together with those of the step."""
        return {}

    def before_probes(self, stage: Stage) -> None:
        """The change is enforced; the traffic of a phase comes next."""

    def after_probes(self, stage: Stage) -> None:
        """The traffic of a phase is over; its verdicts are collected next."""


class Detach(Sabotage):
    """The TC filters of one pod are gone while traffic flows; its agent is held, or it would put them back at once."""

    def before_probes(self, stage: Stage) -> None:
        pod = topology.find_pod(VICTIM)
        _signal(stage.pipeline, agent_name(pod.node), signal.SIGSTOP)
        _remove_filters(stage.lab, pod)

    def after_probes(self, stage: Stage) -> None:
        _signal(stage.pipeline, agent_name(topology.find_pod(VICTIM).node), signal.SIGCONT)


class Open(Sabotage):
    """The default is allow, whatever the demo asks for."""

    settings = {"default": "allow"}


class NoBus(Sabotage):
    """No resolution travels between nodes: the recorders are killed, and each node keeps what it learns to itself."""

    def after_start(self, stage: Stage) -> None:
        for node in NODES:
            _signal(stage.pipeline, recorder_name(node), signal.SIGKILL)


class NodeScope(Sabotage):
    """The seed's defect: what a neighbour's rule and question opened is open to every pod of that node."""

    def manifests_for(self, step: int) -> dict[str, str]:
        leaks = {3: ("app", ["example.com"]), 6: ("default", [topology.SEEN_ELSEWHERE])}
        if step not in leaks:
            return {}
        namespace, names = leaks[step]
        addresses = [address for name in names for address in topology.OUTSIDE[name]]
        return {f"{step}-node-scope.yaml": objects.render([_allow_node(namespace, addresses)])}


def _allow_node(namespace: str, addresses: Iterable[str]) -> objects.Object:
    peers = [{"ipBlock": {"cidr": f"{address}/{128 if ':' in address else 32}"}} for address in addresses]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "node-scope", "namespace": namespace},
        "spec": {
            "podSelector": {"matchLabels": {objects.NODE_LABEL: topology.NODE_A.key}},
            "policyTypes": ["Egress"],
            "egress": [{"to": peers}],
        },
    }


def _signal(pipeline: Pipeline, name: str, number: signal.Signals) -> None:
    process = pipeline.processes[name]
    if is_alive(process):
        os.kill(process.pid, number)


def _remove_filters(lab: Lab, pod: Pod) -> None:
    """Deletes clsact and every filter under it; fine if there is none."""
    command = ["tc", "-n", lab.node_namespace(pod.node), "qdisc", "del", "dev", pod.interface, "clsact"]
    subprocess.run(command, capture_output=True, check=False)


SABOTAGES: dict[str, Callable[[], Sabotage]] = {
    "detach": Detach,
    "open": Open,
    "no-bus": NoBus,
    "node-scope": NodeScope,
}
