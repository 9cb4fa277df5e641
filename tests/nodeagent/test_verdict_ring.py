"""How the verdict bus reads its ring: at once, in bulk while it is written, and not at all once it has let go."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pytest

from schemas.terms import NodeName, Verdict
from services.common.bpf import RingBuffer
from services.nodeagent import verdictbus
from services.nodeagent.verdictbus import BATCH, VerdictBus
from services.nodeagent.verdicts import PodName, Storyteller
from tests.bus.harness import eventually
from tests.nodeagent.records import make_record

NODE = NodeName("node-a")


class PipeRing:
    """Readable while records wait, as the kernel's is. ``looks``: how often it was asked."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._records: list[bytes] = []
        self.looks = 0

    def fileno(self) -> int:
        return self._reader

    def write(self, count: int) -> None:
        self._records += [make_record(verdict=Verdict.ALLOW)] * count
        os.write(self._writer, bytes(1))

    def consume(self, limit: int) -> list[bytes]:
        self.looks += 1
        taken, self._records = self._records[:limit], self._records[limit:]
        if not self._records:
            with contextlib.suppress(BlockingIOError):
                os.read(self._reader, 1 << 16)
        return taken

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


@contextmanager
def opened() -> Iterator[tuple[PipeRing, VerdictBus]]:
    """A ring, and a bus that reads it; to be entered in a loop."""
    storyteller = Storyteller(NODE)
    storyteller.set_state(pods={4: PodName("app", "web")}, rulesets={}, patterns={}, owners={})
    ring, bus = PipeRing(), VerdictBus(NODE, storyteller)
    bus.attach(cast(RingBuffer, ring))
    try:
        yield ring, bus
    finally:
        bus.detach(cast(RingBuffer, ring))
        ring.close()


async def write_and_await(ring: PipeRing, bus: VerdictBus, count: int) -> None:
    """So many records more, and they are read."""
    total = bus.counters["verdicts"] + count
    ring.write(count)
    await eventually(lambda: bus.counters["verdicts"] == total, 5)


def test_what_follows_is_read_in_bulk_and_then_the_ring_is_listened_to_again() -> None:
    """One record at once; more than a batch while it is looked at; and after a rest another one wakes it."""

    async def scenario() -> None:
        with opened() as (ring, bus):
            for count in (1, 3 * BATCH, 1):
                await write_and_await(ring, bus, count)
                # The last look finds nothing; from then on nobody asks.
                looks = -1
                while looks != ring.looks:
                    looks = ring.looks
                    await asyncio.sleep(5 * verdictbus.LOOK_SECONDS)
            assert ring.looks <= 2 + 4 + 2 and bus.queued == 3 * BATCH + 2

    asyncio.run(scenario())


def test_records_that_follow_the_first_wake_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """They wait for the next look, which takes them all."""
    monkeypatch.setattr(verdictbus, "LOOK_SECONDS", 1.0)

    async def scenario() -> None:
        with opened() as (ring, bus):
            await write_and_await(ring, bus, 1)
            for _ in range(5):
                ring.write(1)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            assert ring.looks == 1
            await eventually(lambda: bus.counters["verdicts"] == 6, 5)
            assert ring.looks == 2

    asyncio.run(scenario())


def test_who_has_let_go_looks_no_more() -> None:
    """Between two looks the ring is given up: its records stay for the next."""

    async def scenario() -> None:
        with opened() as (ring, bus):
            await write_and_await(ring, bus, 1)
            bus.detach(cast(RingBuffer, ring))
            looks = ring.looks
            ring.write(5)
            await asyncio.sleep(5 * verdictbus.LOOK_SECONDS)
            assert ring.looks == looks and bus.counters["verdicts"] == 1
            assert len(ring.consume(10)) == 5

    asyncio.run(scenario())
