"""One node with real packets: the fabric, a node, pods of the test's own making, NATS, a controller and an agent.

Smaller than the demo's world: a test may have one of its own, start pods by the hundred, and kill what it likes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import select
import selectors
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import nats
import uvloop
from nats.js.errors import NotFoundError

from schemas import wire
from schemas.status import AgentStatus
from schemas.terms import NodeName
from schemas.verdict import VerdictEvent
from services.common.bus import Bus
from services.demo import objects, servers
from services.demo.app import owned_run
from services.demo.convergence import START_SECONDS, read_revision, wait_enforced
from services.demo.folder import ManifestFolder
from services.demo.lab import Lab, in_namespace
from services.demo.netns import open_socket
from services.demo.pipeline import Pipeline, agent_name
from services.demo.state import Process, Run, is_alive
from services.demo.topology import NODE_A, Pod
from services.nodeagent import sourcecheck

ALLOWED, DENIED = "203.0.113.10", "203.0.113.66"
ALLOWED6, DENIED6 = "2001:db8:1::10", "2001:db8:1::66"
"""Two addresses of the fabric in each family, as most tests judge them."""
PORT = 9000
_SO_RCVBUFFORCE = 33
_IP_TRANSPARENT, _IPV6_TRANSPARENT = 19, 75
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_ETH_P_IP, _ETH_P_IPV6 = 0x0800, 0x86DD
_SYN, _SYN_ACK = 0x02, 0x12


def make_pod(host: int, namespace: str = "t", **labels: str) -> Pod:
    """A pod of the node, by its number in the node's range."""
    return Pod(namespace, f"p{host}", NODE_A, host, tuple(sorted({"app": f"p{host}", **labels}.items())))


def until(holds: Callable[[], object], seconds: float, what: str) -> None:
    """Returns when it holds; fails with ``what`` when the time is over."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        pause.wait(0.01)


def is_enforced(status: AgentStatus, pod: Pod) -> bool:
    """At the address that is sent from: the host's routes are read family by family, while they come into being."""
    found = (each for each in status.endpoints if each.pod == pod.key and each.state == "enforced")
    return any(pod.address in each.addresses for each in found)


class OneNode:
    """``start`` builds; everything is gone when ``one_node`` is left."""

    def __init__(self, run: Run, runner: asyncio.Runner, *, mode: str) -> None:
        self.run = run
        self.lab = Lab(run, (NODE_A,))
        self.pipeline = Pipeline(self.lab, mode=mode)
        self.folder = ManifestFolder(run.folder / "manifests")
        self.mode = mode
        self._runner = runner
        self._bus: Bus | None = None
        self.own: dict[str, str] = {}
        """Settings of every agent that is started from now on."""

    @property
    def bus(self) -> Bus:
        assert self._bus is not None, "start first"
        return self._bus

    @property
    def namespace(self) -> str:
        """The node's network namespace."""
        return self.lab.node_namespace(NODE_A)

    def start(
        self, pods: Iterable[Pod] = (), *, default: str = "deny", config: Mapping[str, str] | None = None
    ) -> None:
        """The lab, NATS, controller and agent; everything enforced when it returns."""
        self.build(pods, default=default, config=config)
        self.start_agent()
        self.settle(0, seconds=START_SECONDS)

    def build(
        self, pods: Iterable[Pod] = (), *, default: str = "deny", config: Mapping[str, str] | None = None
    ) -> None:
        """All but the agent."""
        self.lab.build(())
        self.start_nats()
        settings = {"default": default, "resolvers": "", "ttl-min": "30", "grace": "60", **(config or {})}
        self.folder.write("00-config.yaml", objects.render([objects.make_config(settings)]))
        namespaces = [objects.make_namespace(name, {}) for name in ("t", "u", "kube-system", "yett-system")]
        self.folder.write("01-cluster.yaml", objects.render([objects.make_node(NODE_A), *namespaces]))
        for pod in pods:
            self.lab.add_pod(pod)
        self.announce(self.lab.pods.values())
        self._bus = self._runner.run(Bus.open(self.run.state.nats_url))
        self.pipeline.start_controller()

    def start_nats(self) -> None:
        """The server, in the fabric."""
        servers.start_nats(self.lab, servers.find_nats_server())

    def close(self) -> None:
        """The bus; processes and namespaces end with the run."""
        if self._bus is not None:
            self._runner.run(self._bus.close())

    def announce(self, pods: Iterable[Pod]) -> None:
        """These are the pods that the cluster has on this node."""
        self.folder.write("02-pods.yaml", objects.render([objects.make_pod(pod) for pod in pods]))

    def start_agent(self, **own: str) -> Process:
        """A new agent, with ``YETT_`` settings of its own; see ``own``."""
        return self.pipeline.start_agent(NODE_A, {**self.own, **own})

    @property
    def agent(self) -> Process:
        """The newest agent."""
        return self.pipeline.processes[agent_name(NODE_A)]

    def end_agent(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Kills the agent, and returns when it is gone."""
        os.kill(self.agent.pid, number)
        until(lambda: not is_alive(self.agent), 10, "the agent ends")

    def read_agent_log(self) -> str:
        return servers.read_log_end(self.run, agent_name(NODE_A))

    def revision(self) -> int:
        """The newest published one."""
        return self._runner.run(read_revision(self.bus))

    def settle(self, above: int, *, seconds: float = 30.0) -> int:
        """A revision newer than ``above`` that the agent enforces on every pod of the lab."""
        waiting = wait_enforced(self.bus, self.lab.pods.values(), above=above, seconds=seconds, nodes=(NODE_A,))
        return self._runner.run(waiting)

    def apply(self, name: str, text: str) -> int:
        """A manifest into the folder; the revision that enforces it."""
        before = self.revision()
        self.folder.write(name, text)
        return self.settle(before)

    def remove(self, name: str) -> int:
        """A manifest out of the folder; the revision that enforces that."""
        before = self.revision()
        self.folder.remove(name)
        return self.settle(before)

    def status(self, pid: int = 0) -> AgentStatus | None:
        """The newest status of the agent, or of the one with this pid, heard up to now."""
        self._runner.run(asyncio.sleep(0.02))
        found = self.bus.agents.get(NODE_A.name)
        return found if found is None or not pid or found.pid == pid else None

    def await_status(self, holds: Callable[[AgentStatus], object], what: str, seconds: float = 20.0) -> AgentStatus:
        """The first status heard of which it holds."""
        found: list[AgentStatus] = []

        def look() -> bool:
            status = self.status()
            if status is not None and holds(status):
                found.append(status)
            return bool(found)

        until(look, seconds, f"{what}; last: {self.status()}\n{self.read_agent_log()[-1500:]}")
        return found[0]

    def await_verdict(self, since: float, matches: Callable[[VerdictEvent], bool], what: str) -> VerdictEvent:
        """The first verdict heard after ``since`` (monotonic seconds) that is so."""
        found: list[VerdictEvent] = []

        def look() -> bool:
            self._runner.run(asyncio.sleep(0.02))
            found.extend(self.bus.find_verdicts(since, matches)[:1])
            return bool(found)

        until(look, 20, what)
        return found[0]

    def is_published(self, name: str) -> bool:
        """Whether the stream has an address of the name, as this node was told it."""

        async def ask() -> bool:
            connection = await nats.connect(self.run.state.nats_url)
            subject = wire.subject_resolution(NodeName(NODE_A.name), name)
            try:
                await connection.jetstream().get_last_msg(wire.STREAM_RESOLUTION, subject)
            except NotFoundError:
                return False
            finally:
                await connection.close()
            return True

        return self._runner.run(ask())

    def await_agent(self, seconds: float = START_SECONDS) -> AgentStatus:
        """The newest agent enforces something on every pod."""
        pid = self.agent.pid
        pods = {pod.key for pod in self.lab.pods.values()}

        def is_ready(status: AgentStatus) -> bool:
            enforced = {one.pod for one in status.endpoints if one.state == "enforced"}
            return status.pid == pid and status.revision > 0 and pods <= enforced

        return self.await_status(is_ready, "the new agent enforces", seconds)

    def in_node(self, *command: str, given: str = "", check: bool = True) -> str:
        """A command in the node's network namespace, with the host's mounts; its output."""
        done = subprocess.run(
            in_namespace(self.namespace, *command), input=given, capture_output=True, text=True, check=False, timeout=60
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
        return done.stdout

    def in_pod(self, pod: Pod, *command: str, check: bool = True) -> str:
        """A command in a pod's network namespace; its output."""
        done = subprocess.run(
            in_namespace(self.lab.pod_namespace(pod), *command), capture_output=True, text=True, check=False, timeout=60
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
        return done.stdout

    def open(self, pod: Pod, kind: int = socket.SOCK_DGRAM, family: int = socket.AF_INET) -> socket.socket:
        """A socket in the pod."""
        return open_socket(self.lab.pod_namespace(pod), family, kind)

    def listen(self, port: int = PORT) -> Listener:
        """A UDP socket of the fabric on every address of both families."""
        return Listener(open_socket(self.lab.fabric, socket.AF_INET6, socket.SOCK_DGRAM), port)

    def reaches(self, pod: Pod, address: str, port: int, seconds: float = 1.0) -> bool:
        """Whether a TCP connection out of the pod comes about."""
        with contextlib.closing(self.open(pod, socket.SOCK_STREAM)) as connection:
            connection.settimeout(seconds)
            return connection.connect_ex((address, port)) == 0


N = TypeVar("N", bound=OneNode)


class Listener:
    """What arrives at one port, over IPv4 and IPv6, by destination address and content. ``opened``: of AF_INET6."""

    def __init__(self, opened: socket.socket, port: int) -> None:
        self.socket = opened
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 * 1024 * 1024)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        opened.bind(("::", port))
        opened.setblocking(False)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def receive(self) -> Iterator[tuple[str, bytes]]:
        """(address it was sent to, content) of all that waits."""
        while True:
            try:
                data, control, _, _ = self.socket.recvmsg(2048, 64)
            except BlockingIOError:
                return
            (information,) = (value for *kind, value in control if kind == [socket.IPPROTO_IPV6, socket.IPV6_PKTINFO])
            found = ipaddress.IPv6Address(information[:16])
            yield str(found.ipv4_mapped or found), data

    def wait(self, seconds: float) -> bool:
        """Whether something waits, within the time."""
        return bool(select.select([self.socket], [], [], max(0.0, seconds))[0])


class Openings:
    """TCP connections that are asked for at one port, by whom and of whom: what comes in at an interface, answered or
    not. IPv4 without options, IPv6 without extension headers."""

    def __init__(self, namespace: str, interface: str, port: int) -> None:
        self._port = port.to_bytes(2, "big")
        self._sockets = {
            kind: open_socket(namespace, socket.AF_PACKET, socket.SOCK_DGRAM) for kind in (_ETH_P_IP, _ETH_P_IPV6)
        }
        for kind, opened in self._sockets.items():
            opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 * 1024 * 1024)
            opened.bind((interface, kind))
            opened.setblocking(False)

    def __enter__(self) -> Openings:
        return self

    def __exit__(self, *_: object) -> None:
        for opened in self._sockets.values():
            opened.close()

    def receive(self) -> Iterator[tuple[str, str]]:
        """(source, destination) of each SYN that waits; fails if one was lost here."""
        for kind, opened in self._sockets.items():
            protocol, source, size = (9, 12, 4) if kind == _ETH_P_IP else (6, 8, 16)
            segment = source + 2 * size
            with contextlib.suppress(BlockingIOError):
                while True:
                    packet = opened.recv(64)
                    if packet[protocol] != socket.IPPROTO_TCP or packet[segment + 2 : segment + 4] != self._port:
                        continue
                    if packet[segment + 13] & _SYN_ACK == _SYN:
                        ends = packet[source : source + size], packet[source + size : segment]
                        yield str(ipaddress.ip_address(ends[0])), str(ipaddress.ip_address(ends[1]))
            _, dropped = struct.unpack("II", opened.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
            assert not dropped, f"{dropped} packets found no room"


@contextlib.contextmanager
def one_node(kind: type[N] = OneNode, *, mode: str = "standard") -> Iterator[N]:  # type: ignore[assignment]
    """A node that is gone afterwards with all that was started."""
    with owned_run() as run, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        made = kind(run, runner, mode=mode)
        try:
            yield made
        finally:
            made.close()


ALLOW_EXAMPLE = """\
apiVersion: networking.k8s.aws/v1alpha1
kind: ApplicationNetworkPolicy
metadata: {name: names, namespace: t}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
  - to: [{domainNames: ["*.example.com"]}]
"""
"""The names below example.com, to the pods of the namespace that pods are in by default."""


def allow_egress(
    name: str,
    *cidrs: str,
    namespace: str = "t",
    ports: Iterable[Mapping[str, Any]] = (),
    pods: Mapping[str, str] | None = None,
) -> str:
    """A NetworkPolicy that isolates the namespace's pods, or those with these labels, in egress and allows these."""
    rule: dict[str, Any] = {"to": [{"ipBlock": {"cidr": cidr}} for cidr in cidrs]}
    if ports:
        rule["ports"] = [dict(port) for port in ports]
    return objects.render(
        [
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": {"name": name, "namespace": namespace},
                "spec": {
                    "podSelector": {"matchLabels": dict(pods)} if pods else {},
                    "policyTypes": ["Egress"],
                    "egress": [rule],
                },
            }
        ]
    )


@contextlib.contextmanager
def echo_server(namespace: str, kind: int = socket.SOCK_STREAM, port: int = 0) -> Iterator[int]:
    """Sends back what it is sent, over TCP or UDP, on every address of a namespace; its port."""
    opened = open_socket(namespace, socket.AF_INET, kind)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.bind(("0.0.0.0", port))
    over = threading.Event()
    if kind == socket.SOCK_STREAM:
        opened.listen(4096)
    work = _echo_streams if kind == socket.SOCK_STREAM else _echo_datagrams
    thread = threading.Thread(target=work, args=(opened, over), daemon=True)
    thread.start()
    try:
        yield opened.getsockname()[1]
    finally:
        over.set()
        thread.join()
        opened.close()


def _echo_datagrams(opened: socket.socket, over: threading.Event) -> None:
    while not over.is_set():
        if select.select([opened], [], [], 0.1)[0]:
            data, source = opened.recvfrom(2048)
            opened.sendto(data, source)


def _echo_streams(listener: socket.socket, over: threading.Event) -> None:
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        selector.register(listener, selectors.EVENT_READ)
        while not over.is_set():
            for key, _ in selector.select(0.1):
                if key.fileobj is listener:
                    selector.register(stack.enter_context(listener.accept()[0]), selectors.EVENT_READ)
                    continue
                assert isinstance(key.fileobj, socket.socket)
                try:
                    data = key.fileobj.recv(64)
                    key.fileobj.sendall(data)
                except OSError:
                    data = b""
                if not data:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()


def list_checked(node: OneNode) -> str:
    """The node's table against forged sources, as nft tells it; nothing where there is none."""
    return node.in_node("nft", "list", "table", "inet", sourcecheck.TABLE, check=False)


def forge(namespace: str, source: str, message: bytes, whom: tuple[str, int]) -> None:
    """The message to address and port from there, as if ``source`` had sent it from port 53."""
    family, level, transparent = (
        (socket.AF_INET6, socket.IPPROTO_IPV6, _IPV6_TRANSPARENT)
        if ":" in source
        else (socket.AF_INET, socket.IPPROTO_IP, _IP_TRANSPARENT)
    )
    with contextlib.closing(open_socket(namespace, family, socket.SOCK_DGRAM)) as opened:
        opened.setsockopt(level, transparent, 1)
        opened.bind((source, 53))
        opened.sendto(message, whom)


def hears(opened: socket.socket, seconds: float) -> bytes:
    """What comes within the time."""
    return opened.recv(4096) if select.select([opened], [], [], seconds)[0] else b""


def passes(node: OneNode, pod: Pod, address: str, seconds: float) -> bool:
    """Whether a datagram of a new flow of the pod's arrives there within the time."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with node.listen() as listener, contextlib.closing(node.open(pod, family=family)) as opened:
        opened.sendto(b"x", (address, PORT))
        return listener.wait(seconds) and (address, b"x") in list(listener.receive())


def count_live(connections: Iterable[socket.socket], seconds: float) -> int:
    """Of how many a line comes back within the time, which is one for all: to wait for each would take as many."""
    live = 0
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(b"x\n")
                selector.register(connection, selectors.EVENT_READ)
        deadline = time.monotonic() + seconds
        # What waits when the time is over came in time: who gets no processor reads it late.
        while selector.get_map() and (found := selector.select(max(deadline - time.monotonic(), 0))):
            for key, _ in found:
                assert isinstance(key.fileobj, socket.socket)
                selector.unregister(key.fileobj)
                with contextlib.suppress(OSError):
                    live += key.fileobj.recv(8).endswith(b"x\n")
    return live


def is_live(connection: socket.socket, seconds: float = 5.0) -> bool:
    """Whether a line comes back."""
    connection.settimeout(seconds)
    try:
        connection.sendall(b"x\n")
        return connection.recv(8) == b"x\n"
    except OSError:
        return False
