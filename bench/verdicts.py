"""What verdicts cost the agent: from the ring to NATS, in processor time of the process that reads it.

The programs run on frames of ours (BPF_PROG_TEST_RUN) and write the ring; a process of its own reads it as the agent
does and publishes to a real server; this process listens. Processor time is compared, not time on the wall, because
other work on the machine then counts for nothing: 20 us of it an event is 50,000 events a second on one core.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import uvloop
from nats.aio.client import Client
from nats.aio.msg import Msg
from opentelemetry.sdk.trace import TracerProvider

from bench.bounds import Measured
from bench.datapath import POD4, make_tables, tcp_frame
from schemas import wire
from schemas.terms import NodeName
from schemas.verdict import VerdictEvent
from services.common import bpf, nats
from services.common.exporting import add_exporter
from services.common.jetstream import JetStream
from services.common.settings import CommonSettings
from services.common.streams import ensure_stream, verdict_stream
from services.nodeagent.occupancy import Occupancy
from services.nodeagent.verdictbus import VerdictBus
from services.nodeagent.verdicts import PodName, Storyteller
from services.nodeagent.verdictspans import VerdictSpans
from tests.bpf import packets
from tests.bpf.prog_run import IFINDEX, Kernel
from tests.nats_server import NatsServer

ENDPOINT = 3
"""Of ``bench.datapath.make_tables``: the pod at IFINDEX."""
SIZES = {"ENDPOINT_SLOTS": 64, "VERDICT_PAGES": 1024, "RESOLUTION_PAGES": 64}
ALLOWED, DENIED_SECONDS, DENIED_RATE, LATENCIES = 100_000, 4, 10_000, 1_000
CHUNK = 500
"""Frames between two looks at the clock."""
ALLOWED_RATE = 25_000
FLOOD, FLOOD_RATE = 300_000, 100_000
"""More than the sender makes: as many as come while the reader and the server have what is left of two cores."""
SETTLE_SECONDS = 10.0


# ---------------------------------------------------------------------------------------------------------------------
# The process that is measured


async def read_ring(url: str, ring: Path, collector: str = "") -> None:
    """As the agent does, until standard input ends; a line in asks for a line out: counters, processor seconds.

    ``collector``: endpoint of a receiver of spans, which are made between the lines ``trace`` and ``quiet``.
    """
    storyteller = Storyteller(NodeName("node-a"))
    storyteller.set_state(pods={ENDPOINT: PodName("app", "web")}, rulesets={}, patterns={}, owners={})
    verdicts = VerdictBus(NodeName("node-a"), storyteller)
    client = await nats.connect(CommonSettings(nats_url=url, log_level="error"), "bench")
    emitter = add_exporter(TracerProvider(shutdown_on_exit=False), CommonSettings(otel_endpoint=collector))
    spans = VerdictSpans(emitter, 1.0) if emitter else None
    verdicts.attach(bpf.RingBuffer(ring))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(verdicts.run(client)), group.create_task(verdicts.tick())]
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        while line := await lines.readline():
            if line == b"drain\n":
                await verdicts.drain(client)
                await nats.flush(client)
            elif spans and line in (b"trace\n", b"quiet\n"):
                verdicts.sinks[:] = [spans] if line == b"trace\n" else []
            made = spans.counters["spans"] if spans else 0
            said = {**verdicts.counters, "spans": made, "queued": verdicts.queued, "cpu": time.process_time()}
            sys.stdout.write(json.dumps(said) + "\n")
            sys.stdout.flush()
        for task in tasks:
            task.cancel()


class Reader:
    """The process, and what it says of itself."""

    def __init__(self, url: str, ring: Path, collector: str = "") -> None:
        command = [sys.executable, "-m", "bench.verdicts", "--read", url, str(ring), collector]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def trace(self, *, is_on: bool) -> None:
        """Let what is told from now on become spans, or not."""
        self.ask("trace" if is_on else "quiet")

    def ask(self, command: str = "") -> dict[str, float]:
        """Counters and processor seconds so far; of a ``command`` once it is carried out."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        while not (line := self._process.stdout.readline()).startswith("{"):
            if not line:
                raise RuntimeError("the reader of verdicts has ended")
        return {name: float(value) for name, value in json.loads(line).items()}

    def await_taken(self, events: float) -> dict[str, float]:
        """What it says once it has taken so many events in and has published them."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while (said := self.ask()).get("verdicts", 0) < events or said["queued"]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{events:.0f} events were made, and the reader says {said}")
            time.sleep(0.02)
        return said

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


@contextmanager
def laboratory() -> Iterator[tuple[Kernel, str]]:
    """Programs that judge, and a server."""
    kernel = Kernel(Path("/sys/fs/bpf"), SIZES)
    try:
        tables = make_tables()
        kernel.fill(replace(tables, config=replace(tables.config, events_per_second=1 << 30)))
        with tempfile.TemporaryDirectory() as folder:
            server = NatsServer(Path(folder))
            server.start()
            try:
                yield kernel, server.url
            finally:
                server.stop()
    finally:
        kernel.close()


@asynccontextmanager
async def listener(url: str) -> AsyncIterator[Client]:
    """A connection, and the stream of denials."""
    client = await nats.connect(CommonSettings(nats_url=url, log_level="error"), "listener")
    await ensure_stream(JetStream(client), verdict_stream(max_bytes=1 << 28, max_age_seconds=600))
    yield client
    await client.close()


def send(kernel: Kernel, frames: Iterator[bytes], count: int, rate: float) -> float:
    """So many frames from the pod, at a rate a second as far as this process keeps up; the rate that it kept."""
    program = bpf.open_object(kernel.loaded.programs["from_pod"])
    started = time.monotonic()
    for first in range(0, count, CHUNK):
        time.sleep(max(0.0, started + first / rate - time.monotonic()))
        for frame in itertools.islice(frames, min(CHUNK, count - first)):
            bpf.run_program(program, frame, ingress_ifindex=IFINDEX, name="from_pod")
    return count / (time.monotonic() - started)


def make_frames(port: int) -> Iterator[bytes]:
    """New flows for ever, to a few addresses: 80 is allowed, 81 is not."""
    for number in itertools.count():
        base = bytearray(tcp_frame(POD4, f"192.0.2.{number // 60000 % 200 + 1}", port, packets.SYN))
        yield _with_source_port(base, 1024 + number % 60000)


def _with_source_port(frame: bytearray, port: int) -> bytes:
    frame[34:36] = port.to_bytes(2, "big")
    return bytes(frame)


def measure_allowed(kernel: Kernel, reader: Reader) -> list[Measured]:
    """Every event is told, encoded and published."""
    frames = list(itertools.islice(make_frames(80), ALLOWED))
    before = reader.ask()
    send(kernel, iter(frames), ALLOWED, ALLOWED_RATE)
    after = reader.await_taken(before.get("verdicts", 0) + ALLOWED)
    micros = (after["cpu"] - before["cpu"]) / ALLOWED * 1e6
    seen = _difference(before, after, "verdicts_published", "verdicts_left_out_busy", "verdicts_sampled_out")
    return [
        Measured("a verdict from the ring to NATS, processor time", round(micros, 2), "us", 20.0, f"{ALLOWED} flows"),
        Measured("verdicts lost unseen", ALLOWED - seen, f"of {ALLOWED}", 0),
    ]


def measure_flood(kernel: Kernel, reader: Reader) -> list[Measured]:
    """New flows as fast as they can be made: what is not published is counted, by the reader or by the ring."""
    frames = list(itertools.islice(make_frames(80), ALLOWED, ALLOWED + FLOOD))
    occupancy = Occupancy(kernel.loaded.maps)
    lost_before, before = count_lost(occupancy), reader.ask()
    rate = send(kernel, iter(frames), FLOOD, FLOOD_RATE)
    lost = count_lost(occupancy) - lost_before
    occupancy.close()
    after = reader.await_taken(before["verdicts"] + FLOOD - lost)
    published, busy = (_difference(before, after, name) for name in ("verdicts_published", "verdicts_left_out_busy"))
    unseen = FLOOD - published - busy - lost - _difference(before, after, "verdicts_sampled_out")
    told = f"{published:.0f} published, {busy:.0f} left out by the reader, {lost} by the ring, all of them counted"
    spread = f"{rate:.0f} a second for {FLOOD / rate:.0f} s: {told}"
    return [Measured("verdicts lost unseen, as many as can be made", unseen, f"of {FLOOD}", 0, spread)]


def count_lost(occupancy: Occupancy) -> int:
    """Verdicts that their ring did not take."""
    return occupancy.read({}, {}, 0).lost["verdicts"]


def measure_denied(kernel: Kernel, reader: Reader) -> list[Measured]:
    """Half of them like one another, half a scan of ports."""
    count = DENIED_RATE * DENIED_SECONDS
    same = make_frames(81)
    scan = (tcp_frame(POD4, f"198.51.100.{port % 250 + 1}", 1 + port % 60000, packets.SYN) for port in range(count))
    frames = [frame for pair in zip(same, scan, strict=False) for frame in pair][:count]
    before = reader.ask()
    send(kernel, iter(frames), count, DENIED_RATE)
    after = reader.await_taken(before["verdicts"] + count)
    cores = (after["cpu"] - before["cpu"]) / DENIED_SECONDS
    told = _difference(before, after, "verdicts_published")
    share = Measured("10,000 denials a second, share of a core", round(cores, 3), "cores", 0.5, f"{told:.0f} told")
    return [share]


def _difference(before: dict[str, float], after: dict[str, float], *names: str) -> float:
    return sum(after.get(name, 0) - before.get(name, 0) for name in names)


async def measure_latency(kernel: Kernel, client: Client) -> list[Measured]:
    """Allowed flows, one at a time. A denial waits up to 10 ms more where its name may be on its way."""
    arrived: asyncio.Queue[float] = asyncio.Queue()

    async def on_verdict(message: Msg) -> None:
        event = wire.decode(message.subject, message.data)
        assert isinstance(event, VerdictEvent)
        arrived.put_nowait((time.time_ns() - event.unix_nanos) / 1e6)

    await client.subscribe("yett.verdict.>", cb=on_verdict)
    await nats.flush(client)
    program = bpf.open_object(kernel.loaded.programs["from_pod"])
    millis = []
    for number in range(LATENCIES):
        frame = tcp_frame(POD4, f"192.0.2.{250 + number % 4}", 80, packets.SYN)
        bpf.run_program(program, _with_source_port(bytearray(frame), 2000 + number), ingress_ifindex=IFINDEX)
        async with asyncio.timeout(2):
            millis.append(await arrived.get())
    cuts = statistics.quantiles(millis, n=100)
    spread = f"p50 {statistics.median(millis):.2f} ms of {LATENCIES}"
    return [Measured("a verdict from packet to NATS' subscriber, p99", round(cuts[98], 2), "ms", 20.0, spread)]


async def measure() -> list[Measured]:
    """All rows."""
    with laboratory() as (kernel, url):
        async with listener(url) as client:
            reader = Reader(url, kernel.loaded.maps["verdicts"])
            try:
                reader.ask()
                rows = await measure_latency(kernel, client)
                await client.close()
                rows += await asyncio.to_thread(measure_allowed, kernel, reader)
                rows += await asyncio.to_thread(measure_flood, kernel, reader)
                rows += await asyncio.to_thread(measure_denied, kernel, reader)
            finally:
                reader.stop()
    return rows


def measure_verdicts() -> list[Measured]:
    """All rows, on a loop of its own."""
    return uvloop.run(measure())


def main(arguments: list[str]) -> None:
    """Print the rows as JSON; ``--read URL RING [COLLECTOR]``: be the process that is measured."""
    if arguments[:1] == ["--read"]:
        uvloop.run(read_ring(arguments[1], Path(arguments[2]), *arguments[3:]))
        return
    print(json.dumps([row.to_json() for row in measure_verdicts()], indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
