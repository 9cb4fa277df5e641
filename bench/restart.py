"""``python -m bench.restart [PODS]``: a controller that starts again, on a cluster's manifests, with a real server.

First to its first revision, then, started again, to its mark: it has read its manifests by then, but compiles them only
after that, which these seconds leave out. ``said``: what it has published the second time; the mark alone is right.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop
from nats.aio.client import Client

from bench.cluster import Size, make_cluster
from bench.fleet import read_process
from schemas import wire
from services.common.follow import Follower
from services.common.jetstream import JetStream
from services.common.messages import Message
from tests.bus.harness import connected, stored
from tests.nats_server import NatsServer

PODS = 10_000
START_SECONDS = 120.0
QUIET_SECONDS = 2.0
"""After the mark: long enough for a first revision, had it one to publish."""


async def measure(pods: int) -> dict[str, Any]:
    """Seconds on the wall and of the controller's processor time to its mark, at its first start and at its second."""
    with tempfile.TemporaryDirectory() as folder:
        manifests = Path(folder) / "manifests"
        manifests.mkdir()
        listed = {"apiVersion": "v1", "kind": "List", "items": make_cluster(Size(pods))}
        (manifests / "cluster.json").write_text(json.dumps(listed))
        server = NatsServer(Path(folder))
        server.start()
        try:
            async with connected(server) as (client, jetstream):
                async with _controller(server.url, manifests) as process:
                    first = await _until(client, process, wire.SUBJECT_REVISION)
                before = await stored(client, jetstream)
                async with _controller(server.url, manifests) as process:
                    again = await _until(client, process, wire.SUBJECT_LEADER, after=_last(before))
                    await asyncio.sleep(QUIET_SECONDS)
                said = await _said_since(client, jetstream, before)
                return {"pods": pods, "rows": len(before), "first": first, "again": again, "said": said}
        finally:
            server.stop()


@asynccontextmanager
async def _controller(url: str, folder: Path) -> AsyncIterator[subprocess.Popen[bytes]]:
    environment = os.environ | {"YETT_NATS_URL": url, "YETT_MANIFESTS": str(folder), "YETT_LOG_LEVEL": "error"}
    process = subprocess.Popen([sys.executable, "-m", "services.controller"], env=environment)
    try:
        yield process
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 20)


def _last(messages: dict[str, Message]) -> int:
    return max(message.sequence for message in messages.values())


async def _until(client: Client, process: subprocess.Popen[bytes], subject: str, after: int = 0) -> dict[str, float]:
    """Wait for a message on a subject that is newer than a sequence."""
    started = time.perf_counter()
    async with asyncio.timeout(START_SECONDS), Follower(client, wire.STREAM_POLICY, [subject]) as follower:
        async for item in follower:
            if isinstance(item, list) and any(message.sequence > after for message in item):
                break
    return {"wall": time.perf_counter() - started, "cpu": read_process(process.pid)["cpu"]}


async def _said_since(client: Client, jetstream: JetStream, before: dict[str, Message]) -> list[str]:
    """The subjects of what is newer."""
    last, now = _last(before), await stored(client, jetstream)
    return sorted(subject for subject, message in now.items() if message.sequence > last)


if __name__ == "__main__":
    print(json.dumps(uvloop.run(measure(int(sys.argv[1]) if sys.argv[1:] else PODS)), indent=1))
