"""The figures: how long from a manifest to a changed verdict, from an answer on one node to its use on the other, and
whether a first SYN is ever lost; beside the bare round trip through NATS of the same run.

Every sample is taken on packets: a datagram that arrives is an allowed verdict, one that does not is a denied one.

Rules of this module:

* Times are of one process's monotonic clock; its sockets live in the pods' namespaces, so no clock is compared.
* A sample that does not come in time is a failure of the run, never left out.
* The listening side is the outside itself: the datagram carries its number, so late ones are told from new ones.

Deliberately absent: bounds (``bench``), printing (``report``).
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import dns.message
import dns.rdatatype
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from services.demo import topology
from services.demo.convergence import read_revision
from services.demo.folder import read_manifest
from services.demo.lab import Lab
from services.demo.netns import open_socket
from services.demo.runner import Demo
from services.demo.state import DemoError
from services.demo.topology import Pod

SINK_PORT = 9
SWITCH_TARGET = "203.0.113.200"
"""What ``figures-switch.yaml`` allows."""
OTHER_TARGET = "203.0.113.201"
SAMPLE_SECONDS = 5.0
PROBE_SECONDS = 0.0005
"""Between two datagrams of one pod, where a name is awaited: the resolution of a sample."""
SWITCH_PROBE_SECONDS = 0.001
"""The same where a policy is: every denied datagram costs its node a verdict event, so that a finer resolution would
measure its own load."""
QUIET_SECONDS = 0.05
"""A hundred datagrams in a row that do not pass: the verdict has changed for good."""
REST_SECONDS = 0.06
"""Longer than revisions are coalesced for: each sample is a change on its own, after a quiet time."""
ASKER, USER = "figures/prober", "figures/prober-b"
"""Pods under ``figures.yaml``, one a node."""
SO_TIMESTAMPNS = 35
"""asm-generic/socket.h; the option's number is also the control message's type."""
_TCP_INFO_TOTAL_RETRANS = 100
"""Offset of tcpi_total_retrans in struct tcp_info, linux/tcp.h."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Counts:
    """How many samples of each figure. Those of a median are at least 200."""

    switches: int
    resolutions: int
    round_trips: int
    connections: int


SHORT = Counts(switches=200, resolutions=200, round_trips=500, connections=1000)
LONG = Counts(switches=1000, resolutions=1000, round_trips=5000, connections=2000)
"""Fresh names in all stay below the 4,096 that one endpoint may teach its node: beyond it nothing is learned."""
FAILED_MAX = 5
"""First connections that may fail before the figure is given up: each costs its whole timeout."""


def summarise(samples: Sequence[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds of samples in seconds, and how many there were."""
    cuts = statistics.quantiles(samples, n=100, method="inclusive")
    return {"p50_ms": round(cuts[49] * 1e3, 3), "p99_ms": round(cuts[98] * 1e3, 3), "samples": len(samples)}


async def in_thread(work: Callable[..., T], *arguments: object) -> T:
    """``work`` in a thread, which ends at its next sample where this task is cancelled: a thread cannot be."""
    halt = threading.Event()
    try:
        return await asyncio.to_thread(work, *arguments, halt)
    finally:
        halt.set()


def count_samples(count: int, halt: threading.Event) -> Iterator[int]:
    """0, 1, 2, ...; DemoError once nobody waits for them any more."""
    for index in range(count):
        if halt.is_set():
            raise DemoError("interrupted")
        yield index


async def measure(demo: Demo, counts: Counts) -> dict[str, object]:
    """All figures, by name; the demo must have both nodes enforcing. DemoError if a sample does not come."""
    before = await read_revision(demo.bus)
    demo.folder.write_policy("figures.yaml")
    await demo.settle(before)
    names = FreshNames()
    # The same stretch of time for the bare round trip as for what is compared with it.
    round_trips = await measure_round_trips(demo.run.state.nats_url, counts.round_trips // 2)
    shared = await in_thread(measure_sharing, demo.lab, names, counts.resolutions)
    round_trips += await measure_round_trips(demo.run.state.nats_url, counts.round_trips - counts.round_trips // 2)
    bare, across = summarise(round_trips), summarise(shared)
    demo.say(f"figures: {len(shared)} names shared between nodes")
    connections = await in_thread(measure_first_connections, demo.lab, names, counts.connections)
    demo.say(f"figures: {counts.connections} first connections")
    switches = await in_thread(measure_switches, demo, counts.switches)
    return {
        "nats_round_trip": bare,
        "answer_to_other_node": across
        | {
            "p50_ratio": round(across["p50_ms"] / bare["p50_ms"], 2),
            "p99_ratio": round(across["p99_ms"] / bare["p50_ms"], 2),
        },
        "manifest_to_verdict": summarise(switches),
        "first_connections": connections,
    }


class FreshNames:
    """Names that nobody has asked for, each with an address that no other name has."""

    def __init__(self) -> None:
        self._next = 256

    def take(self) -> tuple[str, str]:
        """The next name and its address."""
        self._next += 1
        return topology.fresh_name(self._next)


# ---------------------------------------------------------------------------------------------------------------------
# The bare bus


async def measure_round_trips(url: str, count: int) -> list[float]:
    """Seconds from publish, acknowledged by JetStream, to the consumer's callback, ``count`` times, one at a time."""
    client = await _connect(url)
    stream, subject = "DEMO_ROUND_TRIP", "demo.roundtrip"
    context = client.jetstream()
    try:
        await context.add_stream(name=stream, subjects=[subject])
        arrived: asyncio.Queue[float] = asyncio.Queue()

        async def take(message: Msg) -> None:
            arrived.put_nowait(time.monotonic())

        subscription = await context.subscribe(subject, cb=take, ordered_consumer=True)
        samples = []
        for _ in range(count):
            started = time.monotonic()
            await context.publish(subject, b"x" * 200)
            samples.append(await asyncio.wait_for(arrived.get(), SAMPLE_SECONDS) - started)
        await subscription.unsubscribe()
        await context.delete_stream(stream)
    except (nats.errors.Error, TimeoutError) as error:
        raise DemoError(f"the bare round trip through NATS failed: {error!r}") from error
    finally:
        await client.close()
    return samples


async def _connect(url: str) -> Client:
    client = Client()
    await client.connect(url, name="yett demo figures")
    return client


# ---------------------------------------------------------------------------------------------------------------------
# Datagrams from pods to the outside


class Sink:
    """The outside's UDP port. A datagram's content is its number, which tells whose it is."""

    def __init__(self, lab: Lab, *, probe_seconds: float) -> None:
        self._probe_seconds = probe_seconds
        self._socket = open_socket(lab.fabric, socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("0.0.0.0", SINK_PORT))
        self._socket.setblocking(False)
        self._number = 0

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def await_arrivals(self, senders: Iterable[socket.socket], target: str) -> float:
        """Every sender sends until one of its datagrams has arrived: when the last sender's did. DemoError if not."""
        waiting = set(senders)
        owners: dict[int, socket.socket] = {}
        deadline = time.monotonic() + SAMPLE_SECONDS
        while time.monotonic() < deadline:
            for sender in waiting:
                owners[self._send(sender, target)] = sender
            for number in self._receive(time.monotonic() + self._probe_seconds):
                waiting.discard(owners[number]) if number in owners else None
                if not waiting:
                    return time.monotonic()
        raise DemoError(f"no datagram to {target} passed within {SAMPLE_SECONDS:.0f} s")

    def await_silence(self, senders: Sequence[socket.socket], target: str) -> float:
        """Every sender sends until none of its datagrams arrives any more: when the last one did. DemoError if not."""
        last = time.monotonic()
        deadline = last + SAMPLE_SECONDS
        while (now := time.monotonic()) < deadline:
            if now - last > QUIET_SECONDS:
                return last
            for sender in senders:
                self._send(sender, target)
            for _ in self._receive(now + self._probe_seconds):
                last = time.monotonic()
        raise DemoError(f"datagrams to {target} still pass after {SAMPLE_SECONDS:.0f} s")

    def _send(self, sender: socket.socket, target: str) -> int:
        self._number += 1
        with contextlib.suppress(BlockingIOError, PermissionError):  # a full queue drops it, as a network would
            sender.sendto(struct.pack("!Q", self._number), (target, SINK_PORT))
        return self._number

    def _receive(self, until: float) -> Iterator[int]:
        """Numbers of datagrams as they arrive, up to the instant ``until``; sleeps between them."""
        while (left := until - time.monotonic()) > 0:
            if select.select([self._socket], [], [], left)[0]:
                yield struct.unpack("!Q", self._socket.recv(64))[0]


def open_sender(lab: Lab, pod: Pod) -> socket.socket:
    """A UDP socket in the pod: a new source port, hence a new flow."""
    opened = open_socket(lab.pod_namespace(pod), socket.AF_INET, socket.SOCK_DGRAM)
    opened.setblocking(False)
    return opened


# ---------------------------------------------------------------------------------------------------------------------
# From a manifest to a verdict


def measure_switches(demo: Demo, count: int, halt: threading.Event) -> list[float]:
    """Seconds from an edited manifest's appearance in the folder to the changed verdict on *both* nodes.

    The edit points one rule at another address and back, so that every second sample opens and every other one shuts.
    A file that vanishes is not measured: the controller waits for 10 ms whether it comes back, on purpose.
    """
    name = "figures-switch.yaml"
    opening = read_manifest(name)
    shutting = opening.replace(SWITCH_TARGET, OTHER_TARGET)
    samples = []
    with contextlib.ExitStack() as opened:
        sink = opened.enter_context(Sink(demo.lab, probe_seconds=SWITCH_PROBE_SECONDS))
        pods = [topology.find_pod(key) for key in (ASKER, USER)]
        senders = [opened.enter_context(open_sender(demo.lab, pod)) for pod in pods]
        opened.callback(demo.folder.remove, name)
        demo.folder.write(name, opening)
        sink.await_arrivals(senders, SWITCH_TARGET)
        for index in count_samples(count, halt):
            time.sleep(REST_SECONDS)
            started = time.monotonic()
            if index % 2:
                demo.folder.write(name, opening)
                ended = sink.await_arrivals(senders, SWITCH_TARGET)
            else:
                demo.folder.write(name, shutting)
                ended = sink.await_silence(senders, SWITCH_TARGET)
            samples.append(ended - started)
    return samples


# ---------------------------------------------------------------------------------------------------------------------
# From an answer on one node to its use on the other


def measure_sharing(lab: Lab, names: FreshNames, count: int, halt: threading.Event) -> list[float]:
    """Seconds from an answer's arrival at a pod's interface to the first datagram out of the other node's pod."""
    samples = []
    with Sink(lab, probe_seconds=PROBE_SECONDS) as sink, open_questions(lab, topology.find_pod(ASKER)) as questions:
        for _ in count_samples(count, halt):
            name, address = names.take()
            started = ask(questions, name)
            with open_sender(lab, topology.find_pod(USER)) as sender:
                samples.append(sink.await_arrivals([sender], address) - started)
    return samples


def open_questions(lab: Lab, pod: Pod) -> socket.socket:
    """A UDP socket in the pod, connected to cluster DNS, whose answers carry the time of their arrival."""
    opened = open_socket(lab.pod_namespace(pod), socket.AF_INET, socket.SOCK_DGRAM)
    opened.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    opened.settimeout(SAMPLE_SECONDS)
    opened.connect((topology.DNS_SERVICE, 53))
    return opened


def ask(questions: socket.socket, name: str) -> float:
    """One question for A: when its answer reached the interface, monotonic seconds. DemoError if none comes."""
    query = dns.message.make_query(name, dns.rdatatype.A)
    questions.send(query.to_wire())
    while True:
        try:
            answer, control, _, _ = questions.recvmsg(4096, 128)
        except OSError as error:
            raise DemoError(f"no answer for {name}: {error}") from error
        if int.from_bytes(answer[:2], "big") == query.id:
            break
    seconds, nanos = next(struct.unpack("=qq", data) for _, kind, data in control if kind == SO_TIMESTAMPNS)
    arrived: float = seconds + nanos / 1e9
    return time.monotonic() - (time.time() - arrived)


# ---------------------------------------------------------------------------------------------------------------------
# First connections


def measure_first_connections(lab: Lab, names: FreshNames, count: int, halt: threading.Event) -> dict[str, int]:
    """Connections each to a name never seen before, right after its answer; how many, and how often a SYN was lost."""
    pod = topology.find_pod(ASKER)
    retransmitted = failed = 0
    with open_questions(lab, pod) as questions:
        for _ in count_samples(count, halt):
            name, address = names.take()
            with open_socket(lab.pod_namespace(pod), socket.AF_INET, socket.SOCK_STREAM) as connection:
                connection.settimeout(SAMPLE_SECONDS)
                ask(questions, name)
                try:
                    connection.connect((address, topology.WEB_PORTS[0]))
                except OSError as error:
                    failed += 1
                    if failed > FAILED_MAX:
                        raise DemoError(f"{failed} first connections failed, the last to {name}: {error}") from error
                    continue
                retransmitted += read_total_retransmits(connection) > 0
    return {"count": count, "retransmitted": retransmitted, "failed": failed}


def read_total_retransmits(connection: socket.socket) -> int:
    """tcpi_total_retrans of a TCP socket, SYNs included."""
    information = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int(struct.unpack_from("=I", information, _TCP_INFO_TOTAL_RETRANS)[0])
