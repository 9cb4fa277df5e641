"""What becomes of an answer: one that the kernel cannot read in one piece, and one whose time is over."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import dns.message
import dns.query
import dns.rdatatype
import pytest

from schemas import wire
from services.common.bpf import BpfMap
from services.demo import topology
from services.demo.actions import EXPIRY_SECONDS
from services.demo.lab import UPLINK, in_namespace, run_command
from services.demo.netns import open_socket
from services.demo.pipeline import agent_name
from services.demo.state import is_alive
from services.demo.topology import FRESH_ZONE, NODE_A
from services.demo.zones import render_zone
from tests.e2e.conftest import Running
from tests.e2e.onenode import START_SECONDS, count_live, echo_server, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

POD = "figures/prober"
NAMES = {
    f"long-{number}": [f"198.19.{200 + 4 * number + n // 250}.{n % 250 + 1}" for n in range(1000)]
    for number in range(3)
}
"""Name below the zone -> its addresses, which no other name has."""
SHORT = {f"short-{number}": f"198.19.250.{number + 1}" for number in range(20)}
"""The same, one address each, told for a second: the least life of a name and the grace are what is left."""
LASTING, DONE = (
    {f"{name}-{number}": f"198.19.251.{first + number}" for number in range(10)}
    for name, first in (("lasting", 1), ("done", 101))
)
"""The same, for connections that last and for some that are over at once."""
CARRIED = {f"carried-{number}": f"198.19.252.{number + 1}" for number in range(10)}
"""The same, told for a minute."""
EXPIRED_SECONDS = 3
"""How long the agent keeps a name whose time is over, where nothing lives at its address."""
DATAGRAMS = {
    name: [f"198.19.{220 + 2 * number + n // 250}.{n % 250 + 1}" for n in range(300)]
    for number, name in enumerate(("in-fragments", "in-one-piece-and-longer"))
}
"""Of 300 addresses each: more than 4,095 bytes, which is what the kernel reads. No two are of one length."""
ETHERNET_MTU, LARGE_MTU = 1500, 9000
DEADLINE_SECONDS = 10.0
CLEANED_SECONDS = 90.0
"""The least life of a name, its grace, the end of a closed flow, and two of the agent's clean-ups."""
SHUT_INGRESS = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: shut, namespace: figures}
spec: {podSelector: {}, policyTypes: [Ingress]}
"""


@pytest.fixture(scope="module")
def prober(running: Running) -> topology.Pod:
    """A pod that may use any name of the zone; three names have 1,000 addresses each, twenty are soon over."""
    running.apply("figures.yaml")
    folder = running.demo.run.folder / "knot"
    records = [f"{name} 60 A {address}" for name, addresses in (NAMES | DATAGRAMS).items() for address in addresses]
    records += [f"{name} 60 A {address}" for name, address in CARRIED.items()]
    records += [f"{name} 1 A {address}" for name, address in (SHORT | LASTING | DONE).items()]
    zone = folder / f"{FRESH_ZONE}.zone"
    zone.write_text("\n".join([render_zone(FRESH_ZONE, {}).replace("hostmaster 1 ", "hostmaster 2 "), *records, ""]))
    reload = ["knotc", "-b", "-s", str(folder / "knot.sock"), "zone-reload", FRESH_ZONE]
    subprocess.run(reload, check=True, capture_output=True, timeout=60)
    return topology.find_pod(POD)


@contextmanager
def resolver_connection(running: Running, pod: topology.Pod) -> Iterator[socket.socket]:
    """The pod's TCP connection to the cluster's DNS."""
    with open_socket(running.demo.lab.pod_namespace(pod), socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.settimeout(DEADLINE_SECONDS)
        connection.connect((topology.DNS_SERVICE, 53))
        yield connection


def ask(connection: socket.socket, name: str) -> list[str]:
    """The addresses that one question over TCP brings."""
    until = time.time() + DEADLINE_SECONDS
    dns.query.send_tcp(connection, dns.message.make_query(f"{name}.{FRESH_ZONE}", "A"), until)
    answer, _ = dns.query.receive_tcp(connection, until)
    return [rdata.address for rrset in answer.answer for rdata in rrset if rrset.rdtype == dns.rdatatype.A]


def connect(running: Running, pod: topology.Pod, address: str) -> bool:
    with open_socket(running.demo.lab.pod_namespace(pod), socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.settimeout(0.02)
        try:
            connection.connect((address, 80))
        except TimeoutError:
            return False
    return True


def await_connection(running: Running, pod: topology.Pod, address: str) -> float:
    """Seconds until a new connection is let through."""
    began = time.monotonic()
    while not connect(running, pod, address):
        assert time.monotonic() - began < DEADLINE_SECONDS, f"{address} stays shut"
    return time.monotonic() - began


def read_counters(running: Running) -> dict[str, int]:
    """What the recorder of the pod's node last said; nothing yet is no counters."""
    status = running.demo.bus.recorders.get(NODE_A.name)
    return status.counters if status else {}


async def _await_status(running: Running, count: int) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while read_counters(running).get("handover_learned", 0) < count:  # noqa: ASYNC110 - sent once a second
            await asyncio.sleep(0.1)


def test_a_thousand_addresses_over_tcp_open_after_the_recorder_read_them(
    running: Running, prober: topology.Pod, record_property
) -> None:
    """Shut before; the answer itself is not held up; then each of the thousand opens, and status says how late."""
    delays = []
    with resolver_connection(running, prober) as resolver:
        for name, addresses in NAMES.items():
            assert not connect(running, prober, addresses[-1])
            assert sorted(ask(resolver, name)) == sorted(addresses)
            delays.append(await_connection(running, prober, addresses[-1]))
            assert all(connect(running, prober, address) for address in addresses[::97])
    running.run(_await_status(running, len(NAMES)))
    counted = read_counters(running)
    assert counted["handover_messages"] == len(NAMES) and counted.get("handover_abandoned", 0) == 0
    assert 0 < counted["handover_delay_micros_max"] < DEADLINE_SECONDS * 1e6
    for number, seconds in enumerate(delays):
        record_property(f"open_after_ms_{number}", round(seconds * 1000, 1))
    record_property("recorder_delay_ms_max", counted["handover_delay_micros_max"] / 1000)
    print(
        f"open after {[round(one * 1000, 1) for one in delays]} ms; recorder {counted['handover_delay_micros_max']} us"
    )


def reaches(running: Running, pod: topology.Pod, address: str, port: int) -> bool:
    """Whether a new connection comes about."""
    with open_socket(running.demo.lab.pod_namespace(pod), socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.settimeout(0.05)
        return connection.connect_ex((address, port)) == 0


def list_entries(running: Running, name: str, names: Mapping[str, str] = SHORT) -> list[bytes]:
    """Keys of what is known of these names' addresses in a map of the pod's node."""
    wanted = {wire.pack_address(address) for address in names.values()}
    with BpfMap(find_map(running, name)) as entries:
        return [key for key in entries.keys() if key[:16] in wanted]  # noqa: SIM118 - no mapping


def find_map(running: Running, name: str) -> Path:
    (path,) = (running.demo.run.pins / NODE_A.key).glob(f"*/{name}")
    return path


def forget(running: Running, name: str, names: Mapping[str, str] = SHORT) -> int:
    """Takes what is known of these names' addresses out of a map of the pod's node; how many entries."""
    gone = list_entries(running, name, names)
    with BpfMap(find_map(running, name)) as entries:
        entries.delete_many(gone)
    return len(gone)


def test_a_name_that_expires_cuts_none_of_its_connections(running: Running, prober: topology.Pod) -> None:
    """Twenty live ones go on when the names' time is over, when their flows are pushed out of the kernel's table, and
    when the names are too and policy changes; from the first of these on no new one comes about."""
    with ExitStack() as stack:
        port = stack.enter_context(echo_server(running.demo.lab.fabric))
        resolver = stack.enter_context(resolver_connection(running, prober))
        live = []
        for name, address in SHORT.items():
            assert ask(resolver, name) == [address]
            opened = open_socket(running.demo.lab.pod_namespace(prober), socket.AF_INET, socket.SOCK_STREAM)
            live.append(stack.enter_context(closing(opened)))
            opened.settimeout(DEADLINE_SECONDS)
            opened.connect((address, port))
        last = list(SHORT.values())[-1]

        def is_untouched() -> bool:
            return count_live(live, DEADLINE_SECONDS) == len(SHORT) and not reaches(running, prober, last, port)

        assert count_live(live, DEADLINE_SECONDS) == len(SHORT) and reaches(running, prober, last, port)
        until(lambda: not reaches(running, prober, last, port), 2 * EXPIRY_SECONDS, "new connections are refused")
        assert is_untouched()
        assert forget(running, "flows") >= len(SHORT)
        assert is_untouched()
        assert forget(running, "resolutions") >= len(SHORT)
        running.apply("50-shut.yaml", SHUT_INGRESS)
        assert is_untouched()


def set_mtu(running: Running, pod: topology.Pod, mtu: int) -> None:
    """Of every link between the cluster's DNS and the pod."""
    lab = running.demo.lab
    node, namespace = lab.node_namespace(pod.node), lab.pod_namespace(pod)
    for where, link in (
        (lab.fabric, f"node-{pod.node.key}"),
        (node, UPLINK),
        (node, pod.interface),
        (namespace, "eth0"),
    ):
        run_command(["ip", "-n", where, "link", "set", "dev", link, "mtu", str(mtu)])


def ask_datagram(running: Running, pod: topology.Pod, name: str) -> tuple[int, list[str]]:
    """The bytes and the addresses of the answer to one question over UDP."""
    question = dns.message.make_query(f"{name}.{FRESH_ZONE}", "A", use_edns=0, payload=65535)
    with open_socket(running.demo.lab.pod_namespace(pod), socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.settimeout(DEADLINE_SECONDS)
        connection.connect((topology.DNS_SERVICE, 53))
        connection.send(question.to_wire())
        message = connection.recv(65535)
    answer = dns.message.from_wire(message)
    return len(message), [rdata.address for rrset in answer.answer for rdata in rrset]


def count_fragments(running: Running, pod: topology.Pod) -> int:
    """Fragments that the pod's own stack has put together, by its count."""
    said = run_command(in_namespace(running.demo.lab.pod_namespace(pod), "cat", "/proc/net/snmp"))
    names, values = (line.split() for line in said.splitlines() if line.startswith("Ip:"))
    return int(dict(zip(names, values, strict=True))["ReasmReqds"])


@pytest.mark.parametrize(
    ("name", "mtu", "fragments"),
    [("in-fragments", ETHERNET_MTU, 4), ("in-one-piece-and-longer", LARGE_MTU, 0)],
    ids=["fragments", "one piece"],
)
def test_a_datagram_that_the_kernel_cannot_read_opens_after_the_recorder_did(
    running: Running, prober: topology.Pod, name: str, mtu: int, fragments: int
) -> None:
    """Over 4,095 bytes, as IP fragments or whole: it reaches the pod complete, and every address opens."""
    addresses = DATAGRAMS[name]
    assert not connect(running, prober, addresses[-1])
    before = count_fragments(running, prober)
    set_mtu(running, prober, mtu)
    try:
        size, told = ask_datagram(running, prober, name)
    finally:
        set_mtu(running, prober, ETHERNET_MTU)
    assert size > 4095 and sorted(told) == sorted(addresses)
    assert count_fragments(running, prober) - before == fragments
    await_connection(running, prober, addresses[-1])
    assert all(connect(running, prober, address) for address in addresses[::37])


def test_a_connection_outlives_its_name_by_more_than_names_are_kept(running: Running, prober: topology.Pod) -> None:
    """Ten live ones go on when an agent has cleaned up after their names' time and their flows are pushed out then, and
    when the next agent begins with another layout, without flows; a new one does not come about. Names without a
    connection go, and names that live are carried over."""
    restart_agent(running, YETT_NAMES_EXPIRED_SECONDS=str(EXPIRED_SECONDS))
    with ExitStack() as stack:
        port = stack.enter_context(echo_server(running.demo.lab.fabric))
        resolver = stack.enter_context(resolver_connection(running, prober))
        live = []
        for name, address in (LASTING | DONE).items():
            assert ask(resolver, name) == [address]
            opened = open_socket(running.demo.lab.pod_namespace(prober), socket.AF_INET, socket.SOCK_STREAM)
            live.append(stack.enter_context(closing(opened)))
            opened.settimeout(DEADLINE_SECONDS)
            opened.connect((address, port))
        assert count_live(live, DEADLINE_SECONDS) == len(live)
        for opened in live[len(LASTING) :]:
            opened.close()
        kept = live[: len(LASTING)]
        last = list(LASTING.values())[-1]

        def is_untouched() -> bool:
            return not reaches(running, prober, last, port) and count_live(kept, DEADLINE_SECONDS) == len(kept)

        until(lambda: not list_entries(running, "resolutions", DONE), CLEANED_SECONDS, "names of what is over go")
        assert len({key[:16] for key in list_entries(running, "resolutions", LASTING)}) == len(LASTING)
        assert forget(running, "flows", LASTING) == len(LASTING)
        assert is_untouched()
        for name, address in CARRIED.items():
            assert ask(resolver, name) == [address]
        before = find_map(running, "flows").parent
        restart_agent(running, YETT_MAP_FLOWS="65536", YETT_MAP_RESOLUTIONS="32768")
        until(lambda: not before.exists(), START_SECONDS, "the layout before is gone")
        assert is_untouched()
        assert all(reaches(running, prober, address, port) for address in CARRIED.values())


def restart_agent(running: Running, **own: str) -> None:
    """The agent of the pod's node is another, with these settings; returns when it enforces."""
    pipeline = running.demo.pipeline
    before = pipeline.processes[agent_name(NODE_A)]
    os.kill(before.pid, signal.SIGTERM)
    until(lambda: not is_alive(before), START_SECONDS, "the agent ends")
    started = pipeline.start_agent(NODE_A, own)
    running.run(_await_agent(running, started.pid))


async def _await_agent(running: Running, pid: int) -> None:
    async with asyncio.timeout(START_SECONDS):
        while not _is_enforcing(running, pid):  # noqa: ASYNC110 - sent once a second
            await asyncio.sleep(0.1)


def _is_enforcing(running: Running, pid: int) -> bool:
    status = running.demo.bus.agents.get(NODE_A.name)
    return status is not None and status.pid == pid and status.revision > 0
