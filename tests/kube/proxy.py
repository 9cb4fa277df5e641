"""A wire between a client and a server that can be cut, or go silent without being cut."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

CHUNK_BYTES = 65536


class Wire:
    """Passes bytes on until told otherwise. ``made``: connections so far. ``trusted``: the target speaks TLS."""

    def __init__(self, target_port: int, trusted: ssl.SSLContext | None = None) -> None:
        self.port = 0
        self.made = 0
        self._target_port = target_port
        self._trusted = trusted
        self._is_cut = False
        self._left = -1
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Every connection ends now, and every new one at once."""
        self._is_cut = True
        for writer in self._writers:
            _abort(writer)

    def hush(self) -> None:
        """Connections stay, and nothing passes: a server that hangs."""
        self._flowing.clear()

    def hush_after(self, count: int) -> None:
        """Go silent once the client has sent this many bytes more, wherever that falls."""
        self._left = count

    @property
    def is_hushed(self) -> bool:
        return not self._flowing.is_set()

    def mend(self) -> None:
        """As at the beginning; what was held back by ``hush`` passes now."""
        self._is_cut = False
        self._flowing.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.made += 1
        if self._is_cut:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port, ssl=self._trusted)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        for source, sink, is_up in ((reader, far_writer, True), (far_reader, writer, False)):
            task = asyncio.create_task(self._pass_on(source, sink, is_up=is_up))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, is_up: bool) -> None:
        try:
            while data := await source.read(CHUNK_BYTES):
                await self._flowing.wait()
                if is_up and 0 <= self._left < len(data):
                    sink.write(data[: self._left])
                    data, self._left = data[self._left :], -1
                    self.hush()
                    await self._flowing.wait()
                elif is_up and self._left >= 0:
                    self._left -= len(data)
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            _abort(sink) if self._is_cut else sink.close()

    async def close(self) -> None:
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _abort(writer: asyncio.StreamWriter) -> None:
    # Python 3.11 fails on a TLS transport that is closed already.
    if not writer.transport.is_closing():
        writer.transport.abort()


@asynccontextmanager
async def wire_to(
    target_port: int, *, served: ssl.SSLContext | None = None, trusted: ssl.SSLContext | None = None
) -> AsyncIterator[Wire]:
    """A wire that stands, to a port on loopback. With both contexts TLS ends here and begins anew."""
    wire = Wire(target_port, trusted)
    server = await asyncio.start_server(wire.serve, "127.0.0.1", 0, ssl=served)
    wire.port = server.sockets[0].getsockname()[1]
    try:
        yield wire
    finally:
        server.close()
        await wire.close()
