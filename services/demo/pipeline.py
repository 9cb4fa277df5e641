"""Yett's own processes: one controller, and a nodeagent and a dnsrecorder a node, each as users start them.

They are configured by environment alone. An agent and a recorder run in their node's network namespace and in the
host's mount namespace, because the pinned maps are there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from services.common.bus import Bus
from services.common.cache import PROGRAMS, find_cache
from services.demo import servers, topology
from services.demo.lab import UPLINK, Lab, in_namespace
from services.demo.servers import start_process
from services.demo.state import Process, Run, is_alive
from services.demo.topology import NODES, Node

CONTROLLER, AGENT, RECORDER = "controller", "nodeagent", "dnsrecorder"
METRICS_CONTROLLER, METRICS_AGENT, METRICS_RECORDER = 9470, 9471, 9472
CAPABILITIES = ("bpf", "net_admin", "perfmon")
"""All that an agent and a recorder have here, and in an installation (``deploy/base``), of what root may do."""
INHERITED = frozenset({"YETT_BPF_SOURCES", "YETT_LOG_LEVEL", "YETT_OTEL_EXPORTER", "YETT_SPAN_ALLOW_RATIO"})
"""What a user may want to say to every service; the rest would lead them out of the lab."""


def agent_name(node: Node) -> str:
    """The name of a node's agent among the processes."""
    return f"{AGENT}-{node.key}"


def recorder_name(node: Node) -> str:
    """The name of a node's recorder among the processes."""
    return f"{RECORDER}-{node.key}"


def cni_results(run: Run, node: Node) -> Path:
    """Where a node's agent looks for CNI plugins' answers."""
    return run.folder / f"cni-{node.key}"


def confine(*command: str) -> list[str]:
    """The command with the capabilities of an installation, and no way to others."""
    kept = ",".join(["-all", *(f"+{each}" for each in CAPABILITIES)])
    return ["setpriv", f"--bounding-set={kept}", f"--inh-caps={kept}", "--no-new-privs", *command]


class Pipeline:
    """Starts the services, and starts them again; the newest process of each name is the one that counts."""

    controllers: tuple[str, ...] = (CONTROLLER,)

    def __init__(self, lab: Lab, *, mode: str = "standard") -> None:
        self._lab = lab
        self._mode = mode
        self.processes: dict[str, Process] = {}

    def start_nats(self, binary: Path) -> Process:
        """The server that they speak on, or the same again on its old store."""
        return servers.start_nats(self._lab, binary)

    async def open_bus(self) -> Bus:
        """A listener on it."""
        return await Bus.open(self._lab.run.state.nats_url)

    def start(self) -> None:
        """All of them, in no order that matters: each waits for what it needs."""
        for name in self.controllers:
            self.start_controller(name)
        for node in NODES:
            self.start_agent(node)
            self.start_recorder(node)

    def start_controller(self, name: str = CONTROLLER) -> Process:
        """A controller, on the host, reading the run's folder of manifests."""
        run = self._lab.run
        manifests = {"YETT_MANIFESTS": str(run.folder / "manifests")}
        # On the host's end of the run's own link, so that parallel runs may have the same port.
        page = {"YETT_METRICS_PORT": str(METRICS_CONTROLLER), "YETT_METRICS_ADDRESS": run.host_address}
        environment = make_environment(self._access(CONTROLLER) | manifests | page)
        return self.start_named(name, [sys.executable, "-m", "services.controller"], environment)

    def start_agent(self, node: Node, own: Mapping[str, str] | None = None) -> Process:
        """A node's agent; ``own``: settings of this one alone."""
        command = self._confined(node, "services.nodeagent")
        return self.start_named(
            agent_name(node), command, {**self.node_environment(node, METRICS_AGENT), **(own or {})}
        )

    def start_recorder(self, node: Node) -> Process:
        """A node's recorder."""
        command = self._confined(node, "services.dnsrecorder")
        environment = self.node_environment(node, METRICS_RECORDER, RECORDER)
        return self.start_named(recorder_name(node), command, environment)

    def find_dead(self) -> list[Process]:
        """Services whose newest process has ended."""
        return [process for process in self.processes.values() if not is_alive(process)]

    def _confined(self, node: Node, module: str) -> list[str]:
        return in_namespace(self._lab.node_namespace(node), *confine(sys.executable, "-m", module))

    def start_named(self, name: str, command: list[str], environment: Mapping[str, str]) -> Process:
        """One more process, or the next of its name."""
        self.processes[name] = start_process(self._lab.run, name, command, environment)
        return self.processes[name]

    def node_environment(self, node: Node, metrics_port: int = 0, service: str = AGENT) -> dict[str, str]:
        """What a node's agent, or its recorder, is told."""
        run = self._lab.run
        pins, state = run.pins / node.key, run.folder / f"state-{node.key}"
        for folder in (pins, state, cni_results(run, node)):
            folder.mkdir(parents=True, exist_ok=True)
        return make_environment(
            self._access(service, node)
            | {
                "YETT_NODE": node.name,
                "YETT_PIN_ROOT": str(pins),
                "YETT_STATE_DIR": str(state),
                "YETT_MODE": self._mode,
                "YETT_METRICS_PORT": str(metrics_port),
                "YETT_DENIAL_SECONDS": "1",  # a probe that is tried again waits for its verdict no longer
                "YETT_PROGRAMS": os.environ.get("YETT_PROGRAMS") or str(find_cache() / PROGRAMS),
                "YETT_INTERFACES": "pod*",
                "YETT_UPLINKS": UPLINK,
                "YETT_CNI_RESULTS": str(cni_results(run, node)),
            }
        )

    def _access(self, service: str, node: Node | None = None) -> dict[str, str]:
        """Where a service finds NATS, and by what right."""
        return {"YETT_NATS_URL": self._lab.run.state.nats_url}


def make_environment(own: Mapping[str, str]) -> dict[str, str]:
    """A service's environment: ours, of its ``YETT_`` variables only those in ``INHERITED``, and ``own``."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("YETT_") or key in INHERITED}
    return inherited | dict(own)


def node_by_name(name: str) -> Node | None:
    """The demo's node that Kubernetes calls ``name``."""
    return next((node for node in topology.NODES if node.name == name), None)
