"""An event loop whose clock leaps: what waits a minute waits no time, and comes in the order of its due time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    """Where a loop would sleep, its clock goes on instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now_seconds = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("everybody waits, and nothing is due")
        self.now_seconds += max(0.0, timeout)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._leaping = _Selector()
        super().__init__(self._leaping)

    def time(self) -> float:
        return self._leaping.now_seconds


def run_leaping(scenario: Coroutine[Any, Any, T]) -> T:
    """As ``asyncio.run``; for what has no file, socket or thread."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(scenario)
