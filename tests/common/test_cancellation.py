"""A cancellation is heeded, and one that was not meant is not."""

from __future__ import annotations

import asyncio

import pytest

from services.common.cancellation import heeding_cancellation


def test_a_swallowed_cancellation_is_raised_after_all() -> None:
    """Where a wait swallows the cancellation of its task, the task ends all the same."""

    async def swallow() -> None:
        with heeding_cancellation():
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                return

    async def scenario() -> None:
        task = asyncio.ensure_future(swallow())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())


def test_a_task_that_outlived_a_failed_group_is_not_taken_for_cancelled() -> None:
    """A task whose TaskGroup failed, and which went on, can wait again."""

    async def fail() -> None:
        raise ValueError

    async def scenario() -> str:
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
        with heeding_cancellation():
            await asyncio.sleep(0)
        return "went on"

    assert asyncio.run(scenario()) == "went on"
