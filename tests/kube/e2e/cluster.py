"""The demo's laboratory as a cluster: its objects on a real API server, its services as ``deploy/base`` has them.

Two controllers under the shipped role with a Lease; NATS with TLS, accounts and keys as ``yett keys`` makes them;
agents and recorders in their nodes with the capabilities of an installation, in strict mode. The test plays kubelet
(pods' sandboxes and status) and kube-proxy (nftables, as the demo).

What differs from an installation: the Service's address of NATS is the server's own, controllers run on the host and
use a kubeconfig with the ServiceAccount's name instead of its mounted token (which has ``test_inpod``), and their ports
differ.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvloop
import yaml
from rich.console import Console

from schemas.status import Problem
from services.access.folder import Folder
from services.common import nats
from services.common.bus import Bus
from services.common.settings import CommonSettings, load_settings
from services.demo import topology
from services.demo.app import owned_run
from services.demo.lab import Lab, in_namespace, list_interfaces, run_command
from services.demo.pipeline import CONTROLLER, METRICS_CONTROLLER, Pipeline, make_environment
from services.demo.runner import Demo, Options
from services.demo.servers import NATS_PORT, connects, start_process, wait_until
from services.demo.state import Process, Run
from services.demo.topology import Node, Pod
from tests.e2e.conftest import Running
from tests.e2e.onenode import allow_egress
from tests.kube.definitions import definition, open_definition
from tests.kube.e2e.apiobjects import ApiObjects
from tests.kube.e2e.shipped import READER, Shipped
from tests.kube.servers import CONTROLLER_TOKEN, KubeServer, kube_server

CONTROLLERS = ("yett-controller-one", "yett-controller-two")
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
NEWER_GROUPS = ("policy/v1",)
"""Of ``deploy/base``; this server does not know them."""
WATCH_SECONDS = "5"
"""A watch that is silent is given up ten seconds later; 60 is shipped."""


class ClusterPipeline(Pipeline):
    """The services of an installation."""

    controllers = CONTROLLERS

    def __init__(self, lab: Lab, kube: KubeServer, shipped: Shipped, *, mode: str) -> None:
        super().__init__(lab, mode=mode)
        self._run = lab.run
        self._fabric = lab.fabric
        self._kubeconfig = kube.kubeconfig("controller", CONTROLLER_TOKEN)
        self._shipped = shipped

    def start_nats(self, binary: Path) -> Process:
        run = self._run
        configuration = self._shipped.write_nats(run.folder / "nats")
        command = in_namespace(self._fabric, str(binary), "--config", str(configuration))
        process = start_process(run, "nats", command, {**os.environ, "POD_NAME": "yett-nats-0"})
        wait_until(run, process, lambda: connects(run.fabric_address, NATS_PORT))
        run.state.nats_url = f"tls://{run.fabric_address}:{NATS_PORT}"
        run.save()
        return process

    def reader(self) -> dict[str, str]:
        """The settings of somebody who may look."""
        own = Folder(self._shipped.keys).environment("readers", READER)
        shipped = self._shipped.environment(CONTROLLER)
        return own | {key: shipped[key] for key in ("YETT_NATS_URL", "YETT_NATS_TLS_NAME")}

    @property
    def reader_key(self) -> Path:
        """The file of that somebody's credential."""
        return self._shipped.keys / "readers" / f"{READER}.nk"

    async def open_bus(self) -> Bus:
        settings = load_settings(CommonSettings, self.reader())
        return await Bus.listen(await nats.connect(settings, "yett demo"))

    def start_controller(self, name: str = CONTROLLERS[0]) -> Process:
        own = {
            "YETT_KUBE_CONFIG": str(self._kubeconfig),
            "YETT_KUBE_WATCH_SECONDS": WATCH_SECONDS,
            "YETT_METRICS_PORT": str(METRICS_CONTROLLER + 10 * CONTROLLERS.index(name)),
            "YETT_METRICS_ADDRESS": self._run.host_address,
        }
        environment = make_environment(self._shipped.environment(CONTROLLER, pod=name) | own)
        return self.start_named(name, [sys.executable, "-m", "services.controller"], environment)

    def _access(self, service: str, node: Node | None = None) -> dict[str, str]:
        return self._shipped.environment(service, node=node.name if node else "")


class Unnamed(Pod):
    """A pod whose interface has a name that says nothing, as ptp gives it."""

    @property
    def interface(self) -> str:
        return f"podx{self.host}"


class Cluster(Running):
    """The whole, running; ``objects`` and ``kube`` are for the test's own deeds."""

    def __init__(self, demo: Demo, runner: asyncio.Runner, kube: KubeServer) -> None:
        super().__init__(demo, runner)
        self.kube = kube

    @property
    def objects(self) -> ApiObjects:
        assert isinstance(self.demo.folder, ApiObjects)
        return self.demo.folder

    def until(self, holds: Callable[[], object], seconds: float, what: str | Callable[[], str]) -> None:
        """Wait while the bus is heard; fails with ``what`` when the time is over. ``holds`` may use ``run``."""
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() >= deadline:
                pytest.fail(f"not within {seconds} s: {what if isinstance(what, str) else what()}")
            self.run(asyncio.sleep(0.02))

    def reaches(self, key: str, address: str, port: int = 443) -> bool:
        """Whether a connection out of the pod ``namespace/name`` comes about."""
        return self.run(self.demo.traffic.connect(topology.find_pod(key), address, port, address)).is_open

    def is_waiting(self, pod: Pod) -> bool:
        """Whether the agent knows the interface, and not whose it is."""
        status = self.demo.bus.agents.get(pod.node.name)
        states = {one.interface: one.state for one in status.endpoints} if status else {}
        return states.get(pod.interface) == "waiting"

    def problems(self) -> tuple[Problem, ...]:
        """What the leader has to complain of."""
        status = self.run(self.demo.bus.ask_controller())
        return status.problems if status else ()

    def end_pod(self, pod: Pod) -> None:
        """Its processes, its sandbox and its link are gone when this returns; its object stays."""
        lab = self.demo.lab
        for pid in run_command(["ip", "netns", "pids", lab.pod_namespace(pod)]).split():
            os.kill(int(pid), signal.SIGKILL)
        lab.remove_pod(pod)
        node = lab.node_namespace(pod.node)
        self.until(lambda: pod.interface not in list_interfaces(node), 20, f"{pod.interface} is gone")


def open_to(address: str, namespace: str = "switch") -> str:
    """A policy that lets the namespace's pods reach one address, and nothing else."""
    return allow_egress("open-to", f"{address}/32", namespace=namespace)


@contextmanager
def applied(whole: Cluster, name: str, text: str) -> Iterator[Cluster]:
    """Objects of which some policy governs pods: in force inside the block."""
    whole.apply(name, text)
    try:
        yield whole
    finally:
        before = whole.revision()
        whole.objects.remove(name)
        whole.settle(before)


def install(kube: KubeServer, shipped: Shipped) -> None:
    """As the README says: definitions, then everything of ``deploy/base`` and the keys, by kubectl."""
    kinds = ("ClusterNetworkPolicy", "ApplicationNetworkPolicy")
    text = [
        {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", **definition(k)} for k in kinds
    ]
    kube.kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(text))
    sent = [each for each in shipped.objects if each["apiVersion"] not in NEWER_GROUPS]
    kube.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(sent))
    classes = open_definition("eks.amazonaws.com", "v1", "NodeClass", "nodeclasses", scope="Cluster")
    kube.admin.create(DEFINITIONS, classes)
    for resource in ("clusternetworkpolicies.networking.k8s.aws", "nodeclasses.eks.amazonaws.com"):
        kube.kubectl("wait", "--for=condition=Established", f"crd/{resource}", "--timeout=30s")


@contextmanager
def prepare(folder: Path, *, mode: str = "strict") -> Iterator[tuple[Demo, KubeServer, asyncio.Runner]]:
    """The servers and the lab, nothing of Yett started; gone afterwards."""
    with (
        owned_run() as run,
        kube_server(folder, topology.SERVICE_CIDRS) as kube,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        kube.start_manager()
        demo = make_demo(run, kube, Shipped(folder, run.fabric_address), mode=mode)
        try:
            yield demo, kube, runner
        finally:
            runner.run(demo.close())


def make_demo(run: Run, kube: KubeServer, shipped: Shipped, *, mode: str) -> Demo:
    install(kube, shipped)
    return Demo(
        run,
        Console(stderr=True),
        Options(mode=mode),
        folder=ApiObjects(kube),
        make_pipeline=lambda lab: ClusterPipeline(lab, kube, shipped, mode=mode),
    )


@contextmanager
def cluster(folder: Path, *, mode: str = "strict") -> Iterator[Cluster]:
    """Everything running under default deny, every pod enforced."""
    with prepare(folder, mode=mode) as (demo, kube, runner):
        runner.run(demo.build())
        runner.run(demo.start_services())
        yield Cluster(demo, runner, kube)
