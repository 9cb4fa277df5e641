"""A scenario that waits for minutes, beside the tests: on a thread and a loop of its own, from the ring's beginning."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

END_SECONDS = 120.0
"""A server that is being started is waited for."""


@contextmanager
def beside(scenario: Coroutine[Any, Any, T]) -> Iterator[Future[T]]:
    """Runs from now on; what still runs at the end of the block is cancelled, and has cleaned up when it is left."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="beside")
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(scenario, loop)
    finally:
        try:
            asyncio.run_coroutine_threadsafe(_end(), loop).result(END_SECONDS)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(END_SECONDS)
            loop.close()


async def _end() -> None:
    running = asyncio.all_tasks() - {asyncio.current_task()}
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
