"""Whether tracing is felt where packets are: the datapath's rows with spans made and exported meanwhile, and without.

A process reads the ring as the agent does and publishes to a real server. Before each timing so many new flows are
told; while tracing is on each of them becomes a span that is sent to a receiver. Off and on take turns, row by row, and
the difference of the medians is given in spreads: the distance of the quartiles of the turns without.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from bench.bounds import Measured
from bench.datapath import SIZES, make_tables, prepare
from bench.verdicts import Reader, make_frames, measure_denied, send
from tests.bpf.prog_run import Kernel
from tests.nats_server import NatsServer

TURNS = 15
TOLD = 512
"""Flows told before each timing: a batch of spans."""
RATE = 1 << 30


class _UnreadRing:
    """In place of the kernel's ring of verdicts, which the other process reads."""

    def consume(self, limit: int) -> list[bytes]:
        return []

    def close(self) -> None:
        pass


@contextlib.contextmanager
def receiver() -> Iterator[str]:
    """The endpoint of one that takes everything, in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "services.story.receiver", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    drain = subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
        drain.wait(10)


@contextlib.contextmanager
def laboratory() -> Iterator[tuple[Kernel, Reader]]:
    """Programs that judge, a server, a receiver, and the process between."""
    with contextlib.ExitStack() as stack:
        kernel = Kernel(Path("/sys/fs/bpf"), SIZES)
        stack.callback(kernel.close)
        kernel.verdicts.close()
        kernel.verdicts = _UnreadRing()  # type: ignore[assignment]
        server = NatsServer(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        server.start()
        stack.callback(server.stop)
        reader = Reader(server.url, kernel.loaded.maps["verdicts"], stack.enter_context(receiver()))
        stack.callback(reader.stop)
        yield kernel, reader


def measure_tracing(turns: int = TURNS) -> list[Measured]:
    """A row for each of the datapath's, and what 10,000 denials a second cost with tracing on."""
    with laboratory() as (kernel, reader):
        made = make_tables()
        todo = prepare(kernel, replace(made, config=replace(made.config, events_per_second=RATE)))
        frames = make_frames(80)
        found: dict[tuple[str, bool], list[int]] = {}
        reader.ask()
        for _, (name, turn), is_on in itertools.product(range(turns), todo.items(), (False, True)):
            reader.trace(is_on=is_on)
            before = reader.ask().get("verdicts", 0.0)
            send(kernel, frames, TOLD, RATE)
            found.setdefault((name, is_on), []).append(turn())
            reader.await_taken(before + TOLD)
        reader.trace(is_on=True)
        (denied,) = measure_denied(kernel, reader)
        spans = reader.ask()["spans"]
    rows = [compare(name, found[name, False], found[name, True]) for name in todo]
    return [*rows, replace(denied, what=f"{denied.what}, with tracing", spread=f"{denied.spread}; {spans:.0f} spans")]


def compare(name: str, off: Sequence[int], on: Sequence[int]) -> Measured:
    """The difference that tracing makes, in spreads."""
    quarters = statistics.quantiles(off, n=4)
    spread = max(quarters[2] - quarters[0], 1)
    apart = abs(statistics.median(on) - statistics.median(off)) / spread
    said = f"{statistics.median(off):.0f} ns off, {statistics.median(on):.0f} ns on, spread {spread:.0f} ns"
    return Measured(f"{name}: tracing on against off", round(apart, 2), "spreads", 1.0, said)
