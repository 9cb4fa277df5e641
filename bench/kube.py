"""A real API server beside a real pipeline: how long from kubectl to packets, what a restart costs, what rest costs.

On the cluster of ``tests/kube/e2e`` (TLS, accounts and signatures, two controllers under the shipped role, strict
mode), with 1,000 pods more than it has: those are on nodes that do not exist here. Then, without a lab, a controller
that starts again on 10,000 pods.

Deliberately absent: kubectl's own time, which is printed beside, and a kubelet's.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from bench.bounds import (
    APPLY_P50_MILLIS,
    APPLY_P99_MILLIS,
    ENFORCED_P99_MILLIS,
    LIST_MEGABYTES,
    LIST_SECONDS,
    RESTART_SECONDS,
    Measured,
)
from bench.cluster import Size, make_cluster
from bench.fleet import read_process
from schemas import wire
from services.demo import objects, topology
from services.demo.figures import REST_SECONDS, SWITCH_PROBE_SECONDS, SWITCH_TARGET, Sink, open_sender, summarise
from services.demo.folder import read_manifest
from services.demo.topology import NODE_A
from tests.bus.controllers import ask
from tests.bus.harness import connected, stored
from tests.kube.definitions import definition
from tests.kube.e2e.cluster import Cluster, Unnamed, cluster
from tests.kube.servers import ADMIN_TOKEN, KubeServer, kube_server
from tests.kube.test_lease import moved, reading
from tests.nats_server import NatsServer

MORE_PODS = 1_000
MORE_RANGE = "10.244.64.0/20"
APPLIES, STARTS = 100, 60
OTHER_TARGET = "203.0.113.201"
REST_WINDOW_SECONDS = 20.0
RESTART_PODS = 10_000
AT_ONCE = 24
"""Requests to the API server that fill it."""
MERGE = "application/merge-patch+json"
START_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds of each sample; counts of requests at rest, by verb and resource."""

    applies: list[float]
    kubectl: list[float]
    starts: list[float]
    rest: dict[str, int]


def measure_kube() -> list[Measured]:
    """Every row."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure_cluster(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        restart = uvloop.run(measure_restart(Path(folder)))
    return [*judge_cluster(found), *judge_restart(restart)]


# ---------------------------------------------------------------------------------------------------------------------
# On the laboratory


def measure_cluster(folder: Path) -> Figures:
    with cluster(folder) as whole:
        whole.run(fill(whole.kube, make_more_pods()))
        whole.settle(0)
        applies, kubectl = measure_applies(whole)
        starts = measure_starts(whole)
        return Figures(applies, kubectl, starts, count_at_rest(whole))


def make_more_pods() -> list[dict[str, Any]]:
    """Running pods of ten namespaces, on nodes of which nobody hears here."""
    hosts = ipaddress.ip_network(MORE_RANGE).hosts()
    made: list[dict[str, Any]] = [objects.make_namespace(f"more-{number}", {}) for number in range(10)]
    container = {"name": "main", "image": "none"}
    for number in range(MORE_PODS):
        address = str(next(hosts))
        made.append(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": f"pod-{number}", "namespace": f"more-{number % 10}", "labels": {"app": "more"}},
                "spec": {"nodeName": f"elsewhere-{number % 20}", "containers": [container]},
                "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
            }
        )
    return made


def measure_applies(whole: Cluster) -> tuple[list[float], list[float]]:
    """From kubectl's return to the changed verdict on both nodes; and kubectl's own time."""
    opening = read_manifest("figures-switch.yaml")
    shutting = opening.replace(SWITCH_TARGET, OTHER_TARGET)
    samples, own = [], []
    with ExitStack() as opened:
        sink = opened.enter_context(Sink(whole.demo.lab, probe_seconds=SWITCH_PROBE_SECONDS))
        pods = [topology.find_pod(key) for key in ("figures/prober", "figures/prober-b")]
        senders = [opened.enter_context(open_sender(whole.demo.lab, pod)) for pod in pods]
        whole.objects.write("switch.yaml", opening)
        sink.await_arrivals(senders, SWITCH_TARGET)
        for index in range(APPLIES):
            threading.Event().wait(REST_SECONDS)
            began = time.monotonic()
            whole.kube.kubectl("apply", "-f", "-", stdin=opening if index % 2 else shutting)
            returned = time.monotonic()
            await_change = sink.await_arrivals if index % 2 else sink.await_silence
            samples.append(max(0.0, await_change(senders, SWITCH_TARGET) - returned))
            own.append(returned - began)
    return samples, own


def measure_starts(whole: Cluster) -> list[float]:
    """From the status that carries the address, stored, to the first datagram that strict mode lets out.

    Under the policy that the edits end with, which is open.
    """
    samples = []
    lab = whole.demo.lab
    for number in range(STARTS):
        pod = Unnamed("figures", f"start-{number}", NODE_A, 120 + number)
        obj = objects.make_pod(pod)
        whole.objects.put({**obj, "status": {"phase": "Pending"}})
        lab.add_pod(pod)
        whole.until(lambda pod=pod: whole.is_waiting(pod), 20, f"{pod.key} is seen")  # type: ignore[misc]
        with Sink(lab, probe_seconds=SWITCH_PROBE_SECONDS) as sink, open_sender(lab, pod) as sender:
            path = f"/api/v1/namespaces/figures/pods/{pod.name}/status"
            whole.kube.admin.call("PATCH", path, {"status": obj["status"]}, content_type=MERGE)
            stored_at = time.monotonic()
            samples.append(max(0.0, sink.await_arrivals([sender], SWITCH_TARGET) - stored_at))
    return samples


def count_at_rest(whole: Cluster) -> dict[str, int]:
    """Requests of both controllers in a window in which nothing changes, by verb and resource."""
    whole.settle(0)
    whole.run(asyncio.sleep(5.0))  # the status of what was measured before has been written
    before = len(whole.kube.audit())
    whole.run(asyncio.sleep(REST_WINDOW_SECONDS))
    return count_requests(whole.kube.audit()[before:])


def count_requests(entries: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Those of our controllers that began, by verb and resource."""
    counts: dict[str, int] = {}
    for entry in entries:
        is_ours = str(entry.get("userAgent", "")).startswith("yett-controller")
        if is_ours and (entry["verb"] != "watch" or entry["stage"] == "ResponseStarted"):
            what = f"{entry['verb']} {entry['objectRef']['resource'] if 'objectRef' in entry else entry['requestURI']}"
            counts[what] = counts.get(what, 0) + 1
    return counts


def judge_cluster(found: Figures) -> list[Measured]:
    applied, started = summarise(found.applies), summarise(found.starts)
    own = f"kubectl itself {statistics.median(found.kubectl) * 1000:.0f} ms"
    what = f"kubectl apply returned to verdict changed on both nodes, {MORE_PODS} pods more"
    watches = sum(count for name, count in found.rest.items() if name.startswith("watch "))
    renewals = found.rest.get("update leases", 0)
    others = sum(found.rest.values()) - watches - renewals
    return [
        Measured(f"{what}, p50", applied["p50_ms"], "ms", APPLY_P50_MILLIS, own),
        Measured(f"{what}, p99", applied["p99_ms"], "ms", APPLY_P99_MILLIS, f"{applied['samples']} samples"),
        Measured(
            "pod status carries an address to its first packet in strict mode, p99",
            started["p99_ms"],
            "ms",
            ENFORCED_P99_MILLIS,
            f"p50 {started['p50_ms']:g} ms, {started['samples']} samples",
        ),
        Measured(
            "API requests at rest, but for watches and the Lease",
            others,
            f"in {REST_WINDOW_SECONDS:.0f} s",
            0,
            f"{watches} watches began, {renewals} renewals; {json.dumps(found.rest)}"
            if others
            else f"{watches} watches",
        ),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# A restart


async def measure_restart(folder: Path) -> dict[str, Any]:
    """Seconds on the wall from the start of a controller, whose predecessor ended, to its answer with the revision."""
    with kube_server(folder) as kube:
        for kind in ("ClusterNetworkPolicy", "ApplicationNetworkPolicy"):
            kube.admin.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition(kind))
        kube.until(lambda: kube.admin.request("GET", POLICY_PATHS["ClusterNetworkPolicy"])[0] == 200, 30)
        kube.until(
            lambda: kube.admin.request("GET", "/apis/networking.k8s.aws/v1alpha1/applicationnetworkpolicies")[0] == 200,
            30,
        )
        kube.admin.create_namespace("yett-system")
        began = time.perf_counter()
        await fill(kube, make_cluster(Size(RESTART_PODS)))
        filled = time.perf_counter() - began
        (folder / "nats").mkdir()
        server = NatsServer(folder / "nats")
        server.start()
        try:
            async with connected(server) as (client, jetstream):
                async with reading(server, kube, "first") as first:
                    await first.until_said("published")
                    revision = (await ask(client)).revision
                    before = await stored(client, jetstream)
                    first.signal(signal.SIGTERM)
                    await first.process.wait()
                started = time.perf_counter()
                async with reading(server, kube, "second") as second:
                    async with asyncio.timeout(START_SECONDS):
                        listed = await second.until_said("cluster listed")
                        held = read_process(second.process.pid)["peak"]
                        while not await is_serving(client, "second", revision):  # noqa: ASYNC110  another process's deed
                            await asyncio.sleep(0.02)
                    seconds = time.perf_counter() - started
                    used = read_process(second.process.pid)
                    said = moved(before, await stored(client, jetstream))
                return {"seconds": seconds, "said": sorted(said), "rows": len(before), "filled": filled} | {
                    "cpu": used["cpu"],
                    "peak": used["peak"],
                    "listed": listed["millis"],
                    "held": held,
                }
        finally:
            server.stop()


async def is_serving(client: Any, name: str, revision: int) -> bool:
    """It leads, and answers with what is in force."""
    try:
        status = await ask(client)
    except Exception as error:  # nobody answers yet
        if "no responders" not in str(error) and not isinstance(error, TimeoutError):
            raise
        return False
    return status.holder == name and status.revision == revision


def judge_restart(found: dict[str, Any]) -> list[Measured]:
    spread = f"{found['rows']} rows; {found['cpu']:.1f} s of processor time, at most {found['peak']:.0f} MB"
    own = [subject for subject in found["said"] if subject != wire.SUBJECT_LEADER]
    what = f"{RESTART_PODS} pods and all else of their cluster listed and decoded"
    return [
        Measured(what, found["listed"] / 1e3, "s", LIST_SECONDS),
        Measured("the controller's memory at its peak until then", found["held"], "MB", LIST_MEGABYTES),
        Measured(
            f"controller restart with {RESTART_PODS} pods of an API server to serving",
            found["seconds"],
            "s",
            RESTART_SECONDS,
            spread,
        ),
        Measured("published by it beside its mark", len(own), "messages", 0, ", ".join(own[:5])),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Filling an API server

POLICY_PATHS = {
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "ClusterNetworkPolicy": "/apis/networking.k8s.aws/v1alpha1/clusternetworkpolicies",
    "ApplicationNetworkPolicy": "/apis/networking.k8s.aws/v1alpha1/namespaces/{}/applicationnetworkpolicies",
}
FACT_PATHS = {
    "Namespace": "/api/v1/namespaces",
    "Node": "/api/v1/nodes",
    "Pod": "/api/v1/namespaces/{}/pods",
    "Service": "/api/v1/namespaces/{}/services",
}


async def fill(kube: KubeServer, objs: Sequence[dict[str, Any]]) -> None:
    """Create them, namespaces first, with the status that they have."""
    server = f"https://127.0.0.1:{kube.port}"
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    slots = asyncio.Semaphore(AT_ONCE)
    async with aiohttp.ClientSession(server, headers=headers, connector=aiohttp.TCPConnector(ssl=False)) as session:

        async def create(obj: dict[str, Any]) -> None:
            path = (POLICY_PATHS | FACT_PATHS)[obj["kind"]].format(obj["metadata"].get("namespace", ""))
            async with slots:
                async with session.post(path, json=in_full(obj)) as answer:
                    assert answer.status == 201, await answer.text()
                if obj["kind"] == "Pod":
                    body = json.dumps({"status": obj["status"]})
                    status = f"{path}/{obj['metadata']['name']}/status"
                    async with session.patch(status, data=body, headers={"Content-Type": MERGE}) as answer:
                        assert answer.status == 200, await answer.text()

        for first in (True, False):
            await asyncio.gather(*(create(obj) for obj in objs if (obj["kind"] == "Namespace") is first))


def in_full(obj: dict[str, Any]) -> dict[str, Any]:
    """A pod with what a server asks of its containers."""
    if obj["kind"] != "Pod":
        return obj
    containers = [{"name": "main", "image": "none", **each} for each in obj["spec"].get("containers") or [{}]]
    return {**obj, "spec": {**obj["spec"], "containers": containers}}
