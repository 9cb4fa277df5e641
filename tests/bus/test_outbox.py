"""A recorder's publications where the stream is slow to store them."""

from __future__ import annotations

import asyncio

import pytest
from nats.aio.msg import Msg

from services.common import nats
from services.dnsrecorder.outbox import UNACKNOWLEDGED, Letter, Outbox
from tests.bus.harness import connected, eventually, run
from tests.nats_server import NatsServer

pytestmark = pytest.mark.nats

LETTERS = 3 * UNACKNOWLEDGED + 1


def test_a_slow_disk_is_not_given_more_than_it_was(nats_server: NatsServer) -> None:
    """A stand-in for the stream that answers nothing for a while: so many letters and no more reach it, and when it
    does answer each comes once."""

    async def scenario() -> None:
        heard: list[Msg] = []
        is_slow = True

        async def store(message: Msg) -> None:
            heard.append(message)
            if not is_slow:
                await message.respond(b'{"stream":"x","seq":1}')

        async with connected(nats_server, with_streams=False) as (client, _):
            await client.subscribe("yett.resolution.>", cb=store)
            await nats.flush(client)
            outbox = Outbox(client, limit=LETTERS)
            for number in range(LETTERS):
                outbox.put(Letter(f"yett.resolution.node.x{number}", b"{}", {}))
            sending = asyncio.create_task(outbox.run())
            await eventually(lambda: len(heard) >= UNACKNOWLEDGED)
            await nats.flush(client)
            assert (len(heard), outbox.published) == (UNACKNOWLEDGED, 0)
            is_slow = False
            for message in list(heard):
                await message.respond(b'{"stream":"x","seq":1}')
            await eventually(lambda: outbox.published == LETTERS)
            assert len({message.subject for message in heard}) == len(heard) == LETTERS
            sending.cancel()

    run(scenario())
