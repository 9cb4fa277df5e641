"""An API server that answers by a script, for what a source and a writer do without one."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from services.controller.kube_api import Api, KubeError, Query

Obj = dict[str, Any]
BOUND_SECONDS = 20.0


def line(kind: str, obj: Any) -> bytes:
    """One line of a watch."""
    return json.dumps({"type": kind, "object": obj}).encode()


def listed(*items: Obj, version: str = "1") -> Obj:
    """A list's only page."""
    return {"metadata": {"resourceVersion": version}, "items": list(items)}


class ScriptedApi(Api):
    """``answers``: what a path gives; any other is a 404. ``watches``: the lines of one watch after another, each of
    which then ends; when none is left, a watch says nothing until ``end_watch``."""

    def __init__(self, answers: dict[str, Obj], watches: Iterable[list[bytes]] = ()) -> None:
        self.answers = answers
        self.watches = deque(watches)
        self.asked: list[str] = []
        self.watched: list[tuple[str, str]] = []
        """(path, resourceVersion)."""
        self.sent: list[tuple[str, str, Any]] = []
        self._moved = asyncio.Event()
        self._ended = asyncio.Event()

    async def get(self, path: str, query: Query | None = None) -> bytes:
        self.asked.append(path)
        self.wake()
        await asyncio.sleep(0)
        if path not in self.answers:
            raise KubeError(f"GET {path}: 404", code=404)
        return json.dumps(self.answers[path]).encode()

    async def send(
        self, method: str, path: str, *, query: Query | None = None, body: Any = None, content_type: str = ""
    ) -> bytes:
        self.sent.append((method, path, body))
        self.wake()
        return b"{}"

    @asynccontextmanager
    async def lines(self, path: str, query: Query, *, silence_seconds: float) -> AsyncIterator[AsyncIterator[bytes]]:
        self.watched.append((path, query["resourceVersion"]))
        self.wake()
        yield self._lines()

    async def _lines(self) -> AsyncIterator[bytes]:
        if not self.watches:
            await self._ended.wait()
            self._ended.clear()
            return
        for each in self.watches.popleft():
            yield each

    def end_watch(self) -> None:
        """The one that says nothing."""
        self._ended.set()

    def wake(self) -> None:
        """Whoever waits looks again."""
        self._moved.set()

    async def until(self, is_true: Callable[[], object]) -> None:
        """Wait for what requests, or ``wake``, make true; TimeoutError."""
        async with asyncio.timeout(BOUND_SECONDS):
            while not is_true():
                self._moved.clear()
                await self._moved.wait()
