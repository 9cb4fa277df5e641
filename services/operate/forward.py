"""A port of a pod on this machine: a listener on loopback, and a websocket to the API server for each connection.

The kubelet's protocol ``v4.channel.k8s.io``: a message's first byte is its channel, 0 data and 1 error; the first
message on each is the port, two bytes, little-endian. Servers of every version pass it on, and it takes the verb
``get`` on ``pods/portforward`` (newer ones ask for ``create`` as well).
Source: pkg/kubelet/cri/streaming/portforward/websocket.go.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from services.common.log import get_logger
from services.controller.kube_api import Api, KubeError

PROTOCOL = "v4.channel.k8s.io"
DATA, ERROR = b"\x00", 1
CHUNK_BYTES = 64 * 1024
PORT_BYTES = 2

_log = get_logger("forward")


@asynccontextmanager
async def forwarded(api: Api, namespace: str, pod: str, port: int) -> AsyncIterator[int]:
    """The port on loopback that leads to the pod's, for as long as the block lasts."""
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/portforward"
    busy: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with api.websocket(path, {"ports": str(port)}, PROTOCOL) as socket:
                await _relay(reader, writer, socket)
        except (KubeError, aiohttp.ClientError, OSError) as error:
            _log.info("connection not forwarded", pod=f"{namespace}/{pod}", reason=str(error))
        finally:
            writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        busy.add(task)
        task.add_done_callback(busy.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)


async def _relay(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, socket: aiohttp.ClientWebSocketResponse
) -> None:
    """Both ways, until either end is over."""
    ways = [asyncio.create_task(_send(reader, socket)), asyncio.create_task(_receive(writer, socket))]
    try:
        ended, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ended:
            way.result()
    finally:
        for way in ways:
            way.cancel()
        with contextlib.suppress(OSError, aiohttp.ClientError):
            await asyncio.gather(*ways, return_exceptions=True)


async def _send(reader: asyncio.StreamReader, socket: aiohttp.ClientWebSocketResponse) -> None:
    while data := await reader.read(CHUNK_BYTES):
        await socket.send_bytes(DATA + data)


async def _receive(writer: asyncio.StreamWriter, socket: aiohttp.ClientWebSocketResponse) -> None:
    ports_due = {0, 1}
    async for message in socket:
        body = message.data
        if message.type is not aiohttp.WSMsgType.BINARY or not body:
            continue
        channel, content = body[0], body[1:]
        if channel in ports_due:
            ports_due.discard(channel)
            content = content[PORT_BYTES:]
        if channel == ERROR and content:
            raise KubeError(f"port-forward: {content.decode(errors='replace').strip()}")
        writer.write(content)
        await writer.drain()
