"""The window: every refusal, silence and failure is heard, named, and final."""

from __future__ import annotations

import asyncio

import pytest

from schemas import wire
from services.common.window import FencedError, Window, WindowError
from tests.bus.harness import connected, run
from tests.nats_server import NatsServer

pytestmark = pytest.mark.nats


def test_everything_is_acknowledged_within_the_limit(nats_server: NatsServer) -> None:
    """Never more in flight than the limit; after a drain the last sequence is the stream's."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, jetstream), Window(client, limit=50) as window:
            most = 0
            for number in range(2_000):
                await window.publish(f"yett.policy.identity.{number}", b"{}", {})
                most = max(most, window.in_flight)
            await window.drain()
            assert most <= 50 and window.in_flight == 0 and window.acknowledged == 2_000
            assert window.last_sequence == (await jetstream.read_stream(wire.STREAM_POLICY)).last_sequence == 2_000

    run(scenario())


def test_a_wrong_fence_is_a_fenced_error_that_names_the_row(nats_server: NatsServer) -> None:
    """Error 10071 ends the window; the exception names the first row refused, and nothing is accepted after it."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, jetstream), Window(client) as window:
            fence = {wire.HEADER_FENCE_SEQUENCE: "7", wire.HEADER_FENCE_SUBJECT: wire.SUBJECT_LEADER}
            await window.publish("yett.policy.identity.1", b"{}", {})
            await window.publish("yett.policy.identity.2", b"{}", fence)
            with pytest.raises(FencedError) as raised:
                await window.drain()
            assert raised.value.subject == "yett.policy.identity.2" and raised.value.error_code == 10071
            with pytest.raises(FencedError):
                await window.publish("yett.policy.identity.3", b"{}", {})
            assert (await jetstream.read_stream(wire.STREAM_POLICY)).last_sequence == 1

    run(scenario())


def test_a_subject_of_no_stream_fails(nats_server: NatsServer) -> None:
    """A row that no stream takes is an error at once, not a silence."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, _), Window(client) as window:
            await window.publish("nobody.listens", b"{}", {})
            with pytest.raises(WindowError, match="no stream takes this subject"):
                await window.drain()

    run(scenario())


def test_a_refusal_of_any_other_kind_ends_it_too(nats_server: NatsServer) -> None:
    """A message larger than the stream takes is refused by the server; the error carries the server's number."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, _), Window(client) as window:
            await window.publish("yett.policy.identity.1", b"x" * 500_000, {})
            with pytest.raises(WindowError) as raised:
                await window.drain()
            assert raised.value.error_code == 10054 and not isinstance(raised.value, FencedError)
            await client.flush()

    run(scenario())


@pytest.mark.parametrize(
    "answer",
    [
        b'{"error":{"code":429,"err_code":10167,"description":"too many requests"},"stream":"YETT_POLICY","seq":0}',
        b"not json",
    ],
    ids=["too many requests", "unreadable"],
)
def test_a_shed_or_unreadable_answer_ends_it(nats_server: NatsServer, answer: bytes) -> None:
    """An answer of "too many requests", or one that does not decode, ends the window as a refusal does."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, _), Window(client) as window:

            async def shed(message: object) -> None:
                await message.respond(answer)  # type: ignore[attr-defined]

            await client.subscribe("shedding.server", cb=shed)
            await window.publish("shedding.server", b"{}", {})
            with pytest.raises(WindowError):
                await window.drain()

    run(scenario())


def test_silence_ends_it_at_the_deadline(nats_server: NatsServer) -> None:
    """A server that stops answering: within the deadline the oldest unanswered row is named."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, _), Window(client, deadline_seconds=0.3) as window:
            await client.subscribe("deaf.server")
            await window.publish("deaf.server", b"{}", {})
            started = asyncio.get_running_loop().time()
            with pytest.raises(WindowError, match=r"deaf\.server: no acknowledgement within 0\.3 s"):
                await window.drain()
            assert asyncio.get_running_loop().time() - started < 2

    run(scenario())


def test_a_server_that_dies_ends_it(nats_server: NatsServer) -> None:
    """Rows under way when the server is killed are not believed to be stored."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, _), Window(client, deadline_seconds=0.5) as window:
            nats_server.kill()
            with pytest.raises(WindowError):
                while True:
                    await window.publish("yett.policy.identity.1", b"{}", {})
                    await window.drain()

    run(scenario())
