"""What the figures are made of."""

from __future__ import annotations

import asyncio
import threading

import pytest

from services.demo.figures import LONG, SHORT, FreshNames, count_samples, in_thread, summarise
from services.demo.state import DemoError


def test_a_summary_has_median_and_tail_in_milliseconds() -> None:
    """Of samples in seconds, however they are ordered."""
    assert summarise([number / 1000 for number in range(100, -1, -1)]) == {"p50_ms": 50, "p99_ms": 99, "samples": 101}


@pytest.mark.parametrize("counts", [SHORT, LONG], ids=["demo", "bench"])
def test_there_are_samples_enough_and_names_few_enough(counts: object) -> None:
    """200 for a median, a thousand first connections, fewer names than an endpoint's quota."""
    assert isinstance(counts, type(SHORT))
    assert min(counts.switches, counts.resolutions, counts.round_trips) >= 200
    assert counts.connections >= 1000
    assert counts.resolutions + counts.connections < 4096


def test_a_fresh_name_is_never_taken_twice() -> None:
    """Neither the name nor the address."""
    names = FreshNames()
    taken = [names.take() for _ in range(3000)]
    assert len({name for name, _ in taken}) == len({address for _, address in taken}) == len(taken)


def test_a_thread_ends_when_nobody_waits_for_it() -> None:
    """Ctrl-C in the middle of a figure does not have to wait for its last sample."""
    begun, ended = threading.Event(), threading.Event()

    def work(halt: threading.Event) -> None:
        try:
            for _ in count_samples(1_000_000, halt):
                begun.set()
                halt.wait(0.001)
        finally:
            ended.set()

    async def cancel_it() -> None:
        task = asyncio.create_task(in_thread(work))
        await asyncio.to_thread(begun.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_it())
    assert ended.wait(5)


def test_samples_are_counted_to_their_end() -> None:
    """All of them, unless halted."""
    assert list(count_samples(3, threading.Event())) == [0, 1, 2]
    halted = threading.Event()
    halted.set()
    with pytest.raises(DemoError, match="interrupted"):
        list(count_samples(3, halted))
