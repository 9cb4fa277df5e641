"""An agent is replaced under load: with changed programs, with changed maps. No verdict differs.

The load is a compiled generator (``tests/e2e/connections.c``): so many TCP connections a second, each with an exchange,
out of several pods at once, to what policy allows and to what it denies.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Self

import pytest

from services.common import bpf
from services.demo.lab import in_namespace
from services.demo.topology import NODE_A
from services.nodeagent.loader import find_sources
from tests.e2e.onenode import (
    ALLOWED,
    DENIED,
    PORT,
    OneNode,
    allow_egress,
    count_live,
    echo_server,
    make_pod,
    one_node,
    until,
)
from tests.generators import compile_generator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

PODS = [make_pod(host) for host in range(10, 14)]
LOAD_PORT = 9100
WANTED_RATE, OFFERED_RATE = 10_000, 11_000
"""Connections a second over all pods: made at the least, and asked for, so that a moment's lag is no failure."""
FIRST = ("chrt", "--rr", "1")
"""The generator runs before the machine's other work, the agents and their compiler among it, at a real-time priority:
what is asked for is then what is offered. At the rates wanted it leaves them most of a processor.
"""
CONTROL_RATE, CONTROL_SECONDS = 25_000, 4.0
"""More than is wanted: what the machine makes without an upgrade."""
LIVE = 200


@pytest.fixture(scope="module", params=["standard", "strict"])
def node(request: pytest.FixtureRequest) -> Iterator[OneNode]:
    with one_node(mode=request.param) as made:
        made.folder.write("10-allow.yaml", allow_egress("only", f"{ALLOWED}/32"))
        made.own["YETT_ALLOW_RATIO"] = "0"  # the generator needs the processors more than the story of its flows
        made.start(PODS)
        yield made


@pytest.fixture(scope="session")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled load generator."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to compile the load generator with")
    return compile_generator(Path(__file__).with_name("connections.c"), tmp_path_factory.mktemp("load"))


class Load:
    """Server in the fabric, clients in the pods; ``stop`` gives what each counted."""

    def __init__(self, node: OneNode, generator: Path, rate: int) -> None:
        self._since = time.monotonic()
        fabric = in_namespace(node.lab.fabric, *FIRST, str(generator), "serve", str(LOAD_PORT))
        self._server = subprocess.Popen(fabric, stdout=subprocess.PIPE)
        assert self._server.stdout is not None and self._server.stdout.readline() == b"ready\n"
        self._clients = [
            subprocess.Popen(
                in_namespace(
                    node.lab.pod_namespace(pod),
                    *(*FIRST, str(generator), "connect", ALLOWED, DENIED, str(LOAD_PORT), str(rate // len(PODS))),
                ),
                stdout=subprocess.PIPE,
                text=True,
            )
            for pod in PODS
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing of it outlives a test that failed."""
        for process in (*self._clients, self._server):
            process.kill()
            process.wait(timeout=10)

    def seconds(self) -> float:
        """How long it runs."""
        return time.monotonic() - self._since

    def stop(self) -> dict[str, float]:
        """What the clients counted, summed up over the pods; see ``connections.c``."""
        counts = []
        for client in self._clients:
            client.send_signal(signal.SIGTERM)
        for client in self._clients:
            counts.append(json.loads(client.communicate(timeout=20)[0]))
        self._server.kill()
        self._server.communicate(timeout=10)
        return {name: sum(one[name] for one in counts) for name in counts[0]}


class Numbered:
    """Numbered datagrams out of every pod, each third by a new flow, until ``stop``: which were lost, which leaked."""

    def __init__(self, node: OneNode) -> None:
        self._node = node
        self._listener = node.listen()
        self._sent: set[bytes] = set()
        self._arrived: set[bytes] = set()
        self._leaked = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def stop(self) -> tuple[int, int, int]:
        """(sent, lost, leaked); a datagram that did not arrive within a second was lost."""
        self._over.set()
        self._thread.join()
        return len(self._sent), len(self._sent - self._arrived), self._leaked

    def _work(self) -> None:
        with ExitStack() as stack:
            kept = {pod.name: stack.enter_context(closing(self._node.open(pod))) for pod in PODS}
            number = 0
            while not self._over.wait(0.002):
                number += 1
                for pod in PODS:
                    if number % 3:
                        self._send(kept[pod.name], pod.name, number)
                    else:
                        with closing(self._node.open(pod)) as fresh:
                            self._send(fresh, pod.name, number)
                self._take()
            while self._listener.wait(1.0):
                self._take()
        self._listener.close()

    def _send(self, opened: socket.socket, pod: str, number: int) -> None:
        content = f"{pod} {number}".encode()
        opened.sendto(content, (ALLOWED, PORT))
        opened.sendto(content, (DENIED, PORT))
        self._sent.add(content)

    def _take(self) -> None:
        for address, content in self._listener.receive():
            if address == ALLOWED:
                self._arrived.add(content)
            else:
                self._leaked += 1


def change_programs(folder: Path, number: int) -> str:
    """A copy of the programs' sources that compiles to other instructions over the same maps; its path."""
    changed = folder / f"bpf-{number}"
    shutil.copytree(find_sources(), changed)
    text = (changed / "pod_tc.c").read_text()
    before = "#define ICMP_ERRORS_PER_TICK 100"
    assert before in text
    (changed / "pod_tc.c").write_text(text.replace(before, f"#define ICMP_ERRORS_PER_TICK {100 + number}"))
    return str(changed)


def read_layouts(node: OneNode) -> dict[str, str]:
    """Layout folder -> the kernel's tag of its ``to_pod``."""
    found = {}
    for path in (node.run.pins / NODE_A.key).glob("*/program-to_pod"):
        fd = bpf.open_object(path)
        found[path.parent.name] = bpf.read_program_tag(fd, "to_pod")[1]
        os.close(fd)
    return found


def list_programs(node: OneNode) -> set[str]:
    """Ids of all programs of all loads; tail calls differ where the entries do not."""
    tails = [path.name for path in (node.run.pins / NODE_A.key).glob("*/tails-*")]
    return set(tails)


def test_replacing_the_agent_under_load_changes_no_verdict(node: OneNode, generator: Path, tmp_path: Path) -> None:
    """Two builds, after SIGTERM and after SIGKILL, under 10,000 connections a second and no fewer: all allowed ones are
    made, no more of them late than without, no denied one is, and of numbered datagrams not one is lost."""
    with Load(node, generator, CONTROL_RATE) as quiet:
        until(lambda: quiet.seconds() > CONTROL_SECONDS, 60, "the control run ends")
        control = quiet.stop()
    with Load(node, generator, OFFERED_RATE) as load, Numbered(node) as numbered:
        builds = [list_programs(node)]
        for number in range(1, 3):
            node.end_agent(signal.SIGTERM if number % 2 else signal.SIGKILL)
            node.start_agent(YETT_BPF_SOURCES=change_programs(tmp_path, number))
            node.await_agent()
            until(lambda: len(list_programs(node)) == 1, 20, "the pins of the build before are gone")
            builds.append(list_programs(node))
        sent, lost, leaked = numbered.stop()
        counted = load.stop()
    rates = [run["made"] / run["seconds"] * len(PODS) for run in (control, counted)]
    print(f"\n{node.mode}: {rates[0]:.0f} connections/s without, {rates[1]:.0f} with 2 upgrades; {sent} datagrams")
    print(f"without: {control}; with: {counted}")
    assert len({frozenset(build) for build in builds}) == 3
    assert (counted["failed"], counted["leaked"], control["leaked"]) == (0, 0, 0)
    assert (lost, leaked) == (0, 0) and sent > 1000
    assert counted["refused"] > 0
    assert counted["late"] / counted["made"] <= (control["late"] + 1) / control["made"]  # none is fewer than one
    assert min(rates) >= WANTED_RATE, (
        f"{rates[0]:.0f} connections a second without an upgrade and {rates[1]:.0f} with: the promise is about"
        f" {WANTED_RATE} of them, which this machine, as busy as it is, does not make"
    )


@pytest.mark.parametrize("change", ["sizes", "structs"])
def test_a_changed_layout_is_filled_beside_the_old_one(node: OneNode, tmp_path: Path, change: str) -> None:
    """Live connections go on and stay judged, nothing denied passes, no datagram is lost, and no old pin stays."""
    before = read_layouts(node)
    with ExitStack() as stack:
        echo = stack.enter_context(echo_server(node.lab.fabric))
        live = [stack.enter_context(closing(node.open(PODS[n % len(PODS)], socket.SOCK_STREAM))) for n in range(LIVE)]
        for connection in live:
            connection.settimeout(5)
            connection.connect((ALLOWED, echo))
        assert count_live(live, 5) == LIVE
        numbered = stack.enter_context(Numbered(node))
        node.end_agent(signal.SIGTERM)
        if change == "sizes":
            node.start_agent(YETT_MAP_FLOWS="65536", YETT_MAP_RESOLUTIONS="4096")
        else:
            node.start_agent(YETT_BPF_SOURCES=change_structs(tmp_path))
        node.await_agent()
        until(lambda: len(read_layouts(node)) == 1, 20, "the old layout's pins are gone")
        assert read_layouts(node).keys() != before.keys()
        sent, lost, leaked = numbered.stop()
        assert count_live(live, 5) == LIVE
        print(f"\n{node.mode}, {change}: {LIVE} connections live on, {sent} datagrams, {lost} lost, {leaked} leaked")
        assert (lost, leaked) == (0, 0) and sent > 100
        node.await_status(lambda status: status.counters.get("layouts_swapped") == 1, "the swap is counted")
        node.apply("10-allow.yaml", allow_egress("only", "203.0.113.99/32"))
        assert count_live(live, 1) == 0, "a change of policy reaches adopted flows"
        node.apply("10-allow.yaml", allow_egress("only", f"{ALLOWED}/32"))


def change_structs(folder: Path) -> str:
    """A copy of the sources in which a flow has one field more: another layout, and flows that cannot be read."""
    changed = folder / "bpf"
    shutil.copytree(find_sources(), changed)
    text = (changed / "types.h").read_text()
    head, rest = text.split("struct flow {\n", 1)
    (changed / "types.h").write_text(f"{head}struct flow {{\n    __u64 added;\n{rest}")
    return str(changed)
