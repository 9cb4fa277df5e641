"""Publications on their way to YETT_RESOLUTION: kept until acknowledged, bounded while NATS is away.

A resolution is news for the subscribers the moment it is sent and history once the stream has it, so it is sent at
once and acknowledged behind its back; what was not acknowledged is sent again. Sending twice does no harm.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from nats.aio.client import Client

from services.common.log import get_logger
from services.common.window import Window, WindowError

QUIET_SECONDS = 0.02
"""Acknowledgements are waited for when nothing new has come for this long,"""
UNACKNOWLEDGED = 1_000
"""or when this many are on their way."""
RETRY_SECONDS = 0.25

_log = get_logger("outbox")


@dataclass(frozen=True, slots=True)
class Letter:
    """One message to be stored."""

    subject: str
    body: bytes
    headers: Mapping[str, str]


class Outbox:
    """``put`` never blocks; beyond ``limit`` the oldest letter is dropped, and counted in ``dropped``."""

    def __init__(self, connection: Client, *, limit: int) -> None:
        self._connection = connection
        self._limit = limit
        self._waiting: deque[Letter] = deque()
        self._sent: deque[Letter] = deque()
        self._arrived = asyncio.Event()
        self._emptied = asyncio.Event()
        self._said = False
        self.dropped = 0
        self.published = 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._sent)

    def put(self, letter: Letter) -> None:
        """Queue one letter."""
        self._waiting.append(letter)
        if len(self) > self._limit and self._waiting:
            self._waiting.popleft()
            self.dropped += 1
        self._arrived.set()

    async def run(self) -> None:
        """Send for ever."""
        while True:
            try:
                async with Window(self._connection, deadline_seconds=2.0) as window:
                    await self._send(window)
            except WindowError as error:
                self._take_back(error)
                await asyncio.sleep(RETRY_SECONDS)

    async def flush(self, timeout_seconds: float) -> None:
        """Wait until everything is acknowledged, or the time is over."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while len(self):
                    self._emptied.clear()
                    await self._emptied.wait()
        except TimeoutError:
            _log.warning("left unsent", letters=len(self))

    async def _send(self, window: Window) -> None:
        while True:
            while self._waiting and len(self._sent) < UNACKNOWLEDGED:
                letter = self._waiting[0]
                await self._wait_connected()
                await window.publish(letter.subject, letter.body, letter.headers)
                self._sent.append(self._waiting.popleft())
            if (not self._waiting and not await self._more_arrives()) or len(self._sent) >= UNACKNOWLEDGED:
                await window.drain()
                self._forget_sent()

    async def _more_arrives(self) -> bool:
        """Wait for more; with letters unacknowledged only a little while."""
        self._arrived.clear()
        if self._waiting:
            return True
        try:
            async with asyncio.timeout(QUIET_SECONDS if self._sent else None):
                await self._arrived.wait()
        except TimeoutError:
            return False
        return True

    async def _wait_connected(self) -> None:
        while not self._connection.is_connected:  # noqa: ASYNC110 - the client has no event for it
            await asyncio.sleep(RETRY_SECONDS)

    def _forget_sent(self) -> None:
        self.published += len(self._sent)
        self._sent.clear()
        self._emptied.set()
        if self._said:
            _log.info("publishing again")
            self._said = False

    def _take_back(self, error: WindowError) -> None:
        if not self._said:
            _log.warning("resolutions are not being stored, trying again", problem=str(error))
            self._said = True
        while self._sent:
            self._waiting.appendleft(self._sent.pop())
