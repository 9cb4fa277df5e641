"""A ring buffer that the learner writes to, wherever the agent has pinned it, for as long as it is the current one.

The agent pins it below ``pin_root`` in a folder named by the layout's hash; a new layout means a new folder, and the
capture moves on once the old ring is empty. Until there is one it waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from services.common.bpf import BpfError, RingBuffer
from services.common.log import get_logger

RING = "resolution_events"
HANDOVERS = "handovers"
"""Pieces of what the kernel could not read: a ring of their own, so that they cannot crowd out the news."""
BATCH = 256
"""Records taken at a wake-up, so that the loop goes round."""
LOOK_SECONDS = 0.5
"""How often a new pin is looked for."""

_log = get_logger("capture")


def find_ring(pin_root: Path, ring: str = RING) -> Path | None:
    """The ring pinned last; None if there is none yet."""
    found = [path for path in pin_root.glob(f"*/**/{ring}") if path.exists()]
    direct = pin_root / ring
    return max([*found, *([direct] if direct.exists() else [])], key=lambda path: path.stat().st_mtime_ns, default=None)


class Capture:
    """Batches of records, as ``async for``. ``moves``: how often it went on to another ring."""

    def __init__(self, pin_root: Path, ring: str = RING) -> None:
        self._pin_root = pin_root
        self._name = ring
        self._path: Path | None = None
        self._inode = 0
        self._ring: RingBuffer | None = None
        self.moves = 0

    async def batches(self) -> AsyncIterator[list[bytes]]:
        """For ever. Cancelling loses nothing that was not yielded."""
        try:
            while True:
                await self._settle()
                assert self._ring is not None
                batch = self._ring.consume(BATCH)
                if batch:
                    yield batch
                else:
                    await _wait_readable(self._ring, LOOK_SECONDS)
        finally:
            self.close()

    def count_waiting_bytes(self) -> int:
        """How far behind; 0 without a ring."""
        return self._ring.count_waiting_bytes() if self._ring else 0

    def close(self) -> None:
        """Let go of the ring; what waits in it stays for the next."""
        if self._ring is not None:
            self._ring.close()
        self._ring = None

    async def _settle(self) -> None:
        """Return with the current ring open; an old one is emptied first."""
        if self._ring is not None and self._ring.count_waiting_bytes():
            return
        said = False
        while not self._open_current():
            if not said:
                _log.info("waiting for the agent to pin the learner's ring", pin_root=str(self._pin_root))
                said = True
            await asyncio.sleep(LOOK_SECONDS)

    def _open_current(self) -> bool:
        try:
            path = find_ring(self._pin_root, self._name)
            if path is None:
                return self._ring is not None
            inode = path.stat().st_ino
            if self._ring is not None and (path, inode) == (self._path, self._inode):
                return True
            ring = RingBuffer(path)
        except (BpfError, FileNotFoundError) as error:
            _log.warning("the learner's ring cannot be opened", problem=str(error))
            return self._ring is not None
        self.close()
        self.moves += 1
        self._ring, self._path, self._inode = ring, path, inode
        _log.info("following", ring=str(path))
        return True


async def _wait_readable(ring: RingBuffer, timeout_seconds: float) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(ring.fileno(), ready.set)
    try:
        async with asyncio.timeout(timeout_seconds):
            await ready.wait()
    except TimeoutError:
        return
    finally:
        loop.remove_reader(ring.fileno())
