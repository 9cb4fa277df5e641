"""What the tests of the bus share: a connection, the streams, a leader in one call, a deadline for every test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from nats.aio.client import Client

from schemas import wire
from schemas.policy import Revision
from services.common import nats, streams
from services.common.follow import Follower, Pace
from services.common.jetstream import JetStream
from services.common.messages import Message
from services.common.settings import CommonSettings, load_settings
from services.common.window import Window
from services.controller.leader import Term, read_stream_rows, take_term
from services.controller.ledger import Ledger
from services.controller.policy.diff import diff
from services.controller.publisher import Publisher
from tests.nats_server import NatsServer

QUICK = Pace(heartbeat=0.2, deadline=0.6, check=0.5, poll=0.05)
"""A follower's pace for tests: the same machinery, less waiting."""


def run(scenario: Awaitable[None], seconds: float = 60.0) -> None:
    """Run a test's coroutine with a deadline."""

    async def bounded() -> None:
        await asyncio.wait_for(scenario, seconds)

    asyncio.run(bounded())


async def eventually(is_true: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for a condition; TimeoutError if it does not come."""
    async with asyncio.timeout(seconds):
        while not is_true():  # noqa: ASYNC110  any condition, not an event of our own
            await asyncio.sleep(0.005)


async def restart(
    server: NatsServer, client: Client, *, kill: bool = False, while_down: Callable[[], None] | None = None
) -> None:
    """Stop (or kill) the server, start it again, and wait until the client has noticed both."""
    before = client.stats["reconnects"]
    server.kill() if kill else server.stop()
    if while_down:
        while_down()
    server.start()
    await eventually(lambda: client.is_connected and client.stats["reconnects"] > before)


@asynccontextmanager
async def connected(server: NatsServer, *, with_streams: bool = True) -> AsyncIterator[tuple[Client, JetStream]]:
    """A connection, and the policy stream on its server."""
    client = await nats.connect(load_settings(CommonSettings, server.controller_environment()), "test")
    jetstream = JetStream(client)
    try:
        if with_streams:
            await streams.ensure_stream(jetstream, streams.policy_stream())
        yield client, jetstream
    finally:
        await client.close()


@dataclass
class Lead:
    """A term with its publisher and its window."""

    term: Term
    ledger: Ledger
    publisher: Publisher
    window: Window

    async def publish(self, rows: dict[str, bytes], *, trace: str = "") -> Revision | None:
        """Bring the stream to these rows."""
        return await self.publisher.publish(diff(self.ledger.rows, rows), trace=trace)


@asynccontextmanager
async def leading(client: Client, jetstream: JetStream, holder: str = "test") -> AsyncIterator[Lead]:
    """Take a term and be ready to publish."""
    term = await take_term(jetstream, holder)
    ledger = Ledger(await read_stream_rows(client, term), epoch=term.epoch)
    async with Window(client) as window:
        yield Lead(term, ledger, Publisher(window, term, ledger), window)


async def stored(client: Client, jetstream: JetStream) -> dict[str, Message]:
    """Every message of the policy stream, by subject."""
    found: dict[str, Message] = {}
    async with Follower(client, wire.STREAM_POLICY, [wire.POLICY_PREFIX + ">"], jetstream=jetstream) as follower:
        async for item in follower:
            if not isinstance(item, list):
                break
            found |= {message.subject: message for message in item}
    return found
