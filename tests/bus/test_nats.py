"""The connection: what a flush promises, and how it ends."""

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


class Listening:
    """A server that only takes down what clients say, line by line."""

    INFO = b'INFO {"server_id":"x","version":"2.11.0","proto":1,"headers":true,"max_payload":1048576}\r\n'

    def __init__(self) -> None:
        self.said: list[bytes] = []

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self.INFO)
        while line := await reader.readline():
            self.said.append(line.strip())
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
        writer.close()


def test_when_a_flush_returns_the_server_knows_a_subscription_made_before_it() -> None:
    """The last PING stands behind the SUB, whose PONG is then its acknowledgement: what is published next is heard."""

    async def scenario() -> None:
        listening = Listening()
        server = await asyncio.start_server(listening.talk, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = await nats.connect(CommonSettings(nats_url=f"nats://127.0.0.1:{port}"), "test")
        await client.subscribe("test.subject")
        await nats.flush(client)
        (subscribed,) = [place for place, line in enumerate(listening.said) if line.startswith(b"SUB test.subject")]
        assert b"PING" in listening.said[subscribed:]
        await client.close()
        server.close()

    asyncio.run(scenario())
