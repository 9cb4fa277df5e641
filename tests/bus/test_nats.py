"""The connection: how it ends."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from services.common import nats
from services.common.settings import CommonSettings
from tests.bus.harness import eventually
from tests.nats_server import NatsServer

pytestmark = pytest.mark.nats


def test_closing_while_the_server_is_away_is_no_error(
    nats_server: NatsServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A connection that lost its server with messages waiting is closed all the same, and says that they are unsent."""

    async def scenario() -> None:
        client = await nats.connect(CommonSettings(nats_url=nats_server.url), "test")
        nats_server.stop()
        await eventually(lambda: client.is_reconnecting)
        await client.publish("test.waiting", b"x")
        assert client.pending_data_size
        async with asyncio.timeout(5):
            await nats.close(client)
        assert client.is_closed

    # As the services run: the transports of asyncio's own loop would drop what is written to them.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())
    output = capsys.readouterr()
    assert "closed with messages unsent" in output.out + output.err
