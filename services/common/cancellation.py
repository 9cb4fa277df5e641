"""Cancellation that is not lost.

``asyncio.wait_for`` of Python 3.11 swallows a cancellation that meets its result in one turn of the loop, and the NATS
client waits with it. A task that was cancelled there would go on for ever, and its process would not drain.
Source: https://github.com/python/cpython/issues/86296 (mended in 3.12).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


def heed_cancellation() -> None:
    """Raise CancelledError if this task has been asked to end; call it after awaiting the client's requests."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


@contextmanager
def heeding_cancellation() -> Iterator[None]:
    """Raise CancelledError at the end if this task was asked to end in between.

    Compares counts: a task that outlived a failed ``asyncio.TaskGroup`` is left with a count above zero (3.11 cancels
    the parent while it waits for the children, and does not take that back), and is not being cancelled for it.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        yield
    finally:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError
