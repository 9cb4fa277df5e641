"""A stand-in for the kubelet's port-forward: the API server's own proxy in front, a real server behind.

As the kubelet does by websocket (``v4.channel.k8s.io``): first each channel bears the port, then bytes go both ways.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web


@asynccontextmanager
async def forwarding_kubelet(folder: Path, target: int) -> AsyncIterator[tuple[int, list[str]]]:
    """Its port, and the paths that were asked for. Every connection leads to ``target`` on loopback."""
    asked: list[str] = []

    async def forward(request: web.Request) -> web.StreamResponse:
        asked.append(request.path_qs)
        socket = web.WebSocketResponse(protocols=("v4.channel.k8s.io",), max_msg_size=0)
        await socket.prepare(request)
        port = struct.pack("<H", int(request.query["port"]))
        for channel in (b"\x00", b"\x01"):
            await socket.send_bytes(channel + port)
        reader, writer = await asyncio.open_connection("127.0.0.1", target)
        ways = [asyncio.create_task(_out(socket, writer)), asyncio.create_task(_back(reader, socket))]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        with contextlib.suppress(Exception):
            await asyncio.gather(*ways, return_exceptions=True)
        writer.close()
        return socket

    app = web.Application()
    app.router.add_get("/portForward/{namespace}/{pod}", forward)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    try:
        yield runner.addresses[0][1], asked
    finally:
        await runner.cleanup()


async def _out(socket: web.WebSocketResponse, writer: asyncio.StreamWriter) -> None:
    async for message in socket:
        if message.type is aiohttp.WSMsgType.BINARY and message.data[:1] == b"\x00":
            writer.write(message.data[1:])
            await writer.drain()


async def _back(reader: asyncio.StreamReader, socket: web.WebSocketResponse) -> None:
    while data := await reader.read(65536):
        await socket.send_bytes(b"\x00" + data)
