"""Run a service: uvloop, SIGTERM and SIGINT end it within five seconds.

``main`` is cancelled by the first signal and cleans up in its ``finally`` blocks. What has not ended when the time is
over is left: the process exits, and pinned maps go on enforcing.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable

import uvloop

from services.common.log import get_logger

DRAIN_SECONDS = 4.5
"""Below the five seconds promised, so that the exit itself has time."""

_log = get_logger("run")


def run(main: Callable[[], Awaitable[None]]) -> int:
    """Run ``main`` to its end or to a signal; the process's exit status. What ``main`` raises propagates."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_supervise(main))


async def _supervise(main: Callable[[], Awaitable[None]]) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    task = asyncio.ensure_future(main())
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if stop.is_set() and not task.done():
        _log.info("stopping")
        task.cancel()
        await asyncio.wait({task}, timeout=DRAIN_SECONDS)
        if not task.done():
            _log.error("did not drain in time", seconds=DRAIN_SECONDS)
            os._exit(1)
    if task.cancelled():
        return 0
    task.result()
    return 0
