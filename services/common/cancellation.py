"""Cancellation that is not lost.

``asyncio.wait_for`` of Python 3.11 swallows a cancellation that meets its result in one turn of the loop, and the NATS
client waits with it. A task that was cancelled there would go on for ever, and its process would not drain.
Source: https://github.com/python/cpython/issues/86296 (mended in 3.12).
"""

from __future__ import annotations

import asyncio


def heed_cancellation() -> None:
    """Raise CancelledError if this task has been asked to end; call it after awaiting the client's requests."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
