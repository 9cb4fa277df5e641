"""The follower: nothing lost, nothing twice, and never deaf."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest
from nats.aio.client import Client

from schemas import wire
from services.common import streams
from services.common.follow import Follower
from services.common.jetstream import JetStream, JetStreamError
from services.common.messages import CaughtUp, Item, Message, Position, Reset
from services.common.window import Window
from tests.bus.harness import QUICK, connected, restart, run
from tests.nats_server import NatsServer

pytestmark = pytest.mark.nats

ALL = [wire.POLICY_PREFIX + ">"]


async def _put(client: Client, numbers: Sequence[int], body: bytes = b"{}") -> None:
    async with Window(client) as window:
        for number in numbers:
            await window.publish(f"yett.policy.identity.{number}", body, {})
        await window.drain()


async def _until_caught_up(follower: Follower) -> tuple[list[Message], CaughtUp]:
    messages: list[Message] = []
    async for item in follower:
        assert not isinstance(item, Reset), item
        if isinstance(item, CaughtUp):
            return messages, item
        messages += item
    raise AssertionError("a follower never ends")


async def _next_messages(follower: Follower, count: int) -> list[Message]:
    messages: list[Message] = []
    while len(messages) < count:
        item = await anext(follower)
        assert isinstance(item, list), item
        messages += item
    return messages


async def _recreate(jetstream: JetStream) -> None:
    await jetstream.call(f"STREAM.DELETE.{wire.STREAM_POLICY}")
    await streams.ensure_stream(jetstream, streams.policy_stream())


def test_the_backlog_then_the_tail_in_order(nats_server: NatsServer) -> None:
    """A backlog larger than a pull comes whole and in order, then CaughtUp, then each new message as it is stored."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, _):
            await _put(client, range(3_500))
            async with Follower(client, wire.STREAM_POLICY, ALL, pace=QUICK) as follower:
                messages, caught_up = await _until_caught_up(follower)
                assert [m.sequence for m in messages] == list(range(1, 3_501)) and caught_up.sequence == 3_500
                await _put(client, range(5_000, 5_010))
                assert [m.sequence for m in await _next_messages(follower, 10)] == list(range(3_501, 3_511))

    run(scenario())


def test_an_empty_stream_is_caught_up_at_once(nats_server: NatsServer) -> None:
    """Where there is nothing to deliver, CaughtUp comes first."""

    async def scenario() -> None:
        async with (
            connected(nats_server) as (client, _),
            Follower(client, wire.STREAM_POLICY, ALL, pace=QUICK) as follower,
        ):
            assert await anext(follower) == CaughtUp(0)

    run(scenario())


def test_only_what_the_filters_name(nats_server: NatsServer) -> None:
    """Several filters are one consumer; what none of them names does not come."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, _):
            await client.publish("yett.policy.namespace.a", b"{}")
            await client.publish("yett.policy.config", b"{}")
            await _put(client, range(3))
            filters = ["yett.policy.config", "yett.policy.identity.>"]
            async with Follower(client, wire.STREAM_POLICY, filters, pace=QUICK) as follower:
                messages, _ = await _until_caught_up(follower)
            assert messages[0].subject == "yett.policy.config" and len(messages) == 4

    run(scenario())


def test_a_message_carries_what_its_headers_say(nats_server: NatsServer) -> None:
    """Removal, owner, trace, schema, sequence and the server's time are read from the message."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, jetstream):
            headers = {
                wire.HEADER_OPERATION: wire.OPERATION_DELETE,
                wire.HEADER_TTL: wire.DELETE_TTL,
                wire.HEADER_UID: "u",
                wire.HEADER_TRACE: "t",
                wire.HEADER_SCHEMA: "AddressRow/1",
            }
            await client.publish("yett.policy.address.x", b"", headers=headers)
            async with Follower(client, wire.STREAM_POLICY, ALL, pace=QUICK) as follower:
                [message], _ = await _until_caught_up(follower)
            assert (message.is_delete, message.uid, message.trace, message.schema) == (True, "u", "t", "AddressRow/1")
            assert message == await jetstream.read_last(wire.STREAM_POLICY, "yett.policy.address.x")
            assert message.unix_nanos > 1_700_000_000_000_000_000

    run(scenario())


def test_going_on_where_another_stopped(nats_server: NatsServer) -> None:
    """Started at a position, a follower delivers that sequence and what follows, and nothing before."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, _):
            await _put(client, range(20))
            async with Follower(client, wire.STREAM_POLICY, ALL, pace=QUICK) as first:
                await _until_caught_up(first)
                position = first.position
            assert position.sequence == 21
            start = Position(position.created, 15)
            async with Follower(client, wire.STREAM_POLICY, ALL, start=start, pace=QUICK) as second:
                messages, _ = await _until_caught_up(second)
            assert [m.sequence for m in messages] == list(range(15, 21))

    run(scenario())


@pytest.mark.parametrize("which", ["another stream", "a stream that is behind"])
def test_a_position_that_is_not_the_streams_starts_over(nats_server: NatsServer, which: str) -> None:
    """Where the stream was made again, or is at a lower sequence than was seen, Reset comes first, then everything."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, jetstream):
            await _put(client, range(8))
            created = (await jetstream.read_stream(wire.STREAM_POLICY)).created
            start = Position("2020-01-01T00:00:00Z", 3) if which == "another stream" else Position(created, 5_000)
            async with Follower(client, wire.STREAM_POLICY, ALL, start=start, pace=QUICK) as follower:
                assert isinstance(await anext(follower), Reset)
                messages, _ = await _until_caught_up(follower)
            assert len(messages) == 8

    run(scenario())


def test_a_stream_made_again_under_a_follower(nats_server: NatsServer) -> None:
    """The stream is deleted and made again: the follower says Reset, and delivers the new stream from its start. That
    is not always 1: of a stream made right after its deletion the server may find the messages still (2.15)."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, jetstream):
            await _put(client, range(4))
            async with Follower(client, wire.STREAM_POLICY, ALL, pace=QUICK) as follower:
                await _until_caught_up(follower)
                for _ in range(30):
                    await _recreate(jetstream)
                    await _put(client, range(4))
                    assert isinstance(await _drop_batches_until_reset(follower), Reset)
                    messages, caught_up = await _until_caught_up(follower)
                    state = await jetstream.read_stream(wire.STREAM_POLICY)
                    assert [m.sequence for m in messages] == list(range(state.first_sequence, state.last_sequence + 1))
                    assert len(messages) == 4 and caught_up.sequence == state.last_sequence

    run(scenario())


async def _drop_batches_until_reset(follower: Follower) -> Item:
    item = await anext(follower)
    while isinstance(item, list):
        item = await anext(follower)
    return item


def test_a_stream_that_lost_messages_starts_over(nats_server: NatsServer) -> None:
    """A server that comes back with a stream behind what was seen (its last writes were not synced, or an older copy
    was restored) makes the follower start over, although the stream was not made again."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, _):
            await _put(client, range(10))
            await restart(nats_server, client, while_down=nats_server.save_store)
            async with Follower(client, wire.STREAM_POLICY, ALL, pace=QUICK) as follower:
                messages, _ = await _until_caught_up(follower)
                assert messages[-1].sequence == 10
                await _put(client, range(10, 15))
                await _next_messages(follower, 5)
                await restart(nats_server, client, while_down=nats_server.restore_store)
                assert isinstance(await anext(follower), Reset)
                messages, _ = await _until_caught_up(follower)
                assert [m.sequence for m in messages] == list(range(1, 11))

    run(scenario())


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_across_a_server_restart_nothing_is_lost_or_twice(nats_server: NatsServer, how: str) -> None:
    """The server is stopped or killed and started again: the follower goes on with the next sequence, without Reset."""

    async def scenario() -> None:
        async with (
            connected(nats_server) as (client, _),
            Follower(client, wire.STREAM_POLICY, ALL, pace=QUICK) as follower,
        ):
            await anext(follower)
            expected = 1
            for _ in range(3):
                await _put(client, range(expected, expected + 5))
                messages = await _next_messages(follower, 5)
                assert [m.sequence for m in messages] == list(range(expected, expected + 5))
                expected += 5
                await restart(nats_server, client, kill=how == "kill")
                await _put(client, [expected])
                assert [m.sequence for m in await _next_messages(follower, 1)] == [expected]
                expected += 1

    run(scenario())


def test_a_consumer_that_vanishes_is_made_again(nats_server: NatsServer) -> None:
    """Whoever deletes the follower's consumer does not stop it."""

    async def scenario() -> None:
        async with (
            connected(nats_server) as (client, jetstream),
            Follower(client, wire.STREAM_POLICY, ALL, pace=QUICK) as follower,
        ):
            await anext(follower)
            names = (await jetstream.call(f"CONSUMER.NAMES.{wire.STREAM_POLICY}"))["consumers"]
            for name in names:
                await jetstream.call(f"CONSUMER.DELETE.{wire.STREAM_POLICY}.{name}")
            await _put(client, [1, 2])
            assert [m.sequence for m in await _next_messages(follower, 2)] == [1, 2]

    run(scenario())


def test_a_process_without_a_processor_keeps_its_consumer(nats_server: NatsServer) -> None:
    """The loop stands still for longer than the deadline, between a wait and its end: the server was not silent."""

    async def scenario() -> None:
        async with (
            connected(nats_server) as (client, jetstream),
            Follower(client, wire.STREAM_POLICY, ALL, pace=QUICK) as follower,
        ):
            await anext(follower)
            before = (await jetstream.call(f"CONSUMER.NAMES.{wire.STREAM_POLICY}"))["consumers"]
            waiting = asyncio.create_task(_next_messages(follower, 1))
            for _ in range(3):
                await asyncio.sleep(QUICK.poll / 2)
                time.sleep(2 * QUICK.deadline)  # noqa: ASYNC251  on purpose
            await _put(client, [1])
            assert [m.sequence for m in await waiting] == [1]
            assert (await jetstream.call(f"CONSUMER.NAMES.{wire.STREAM_POLICY}"))["consumers"] == before

    run(scenario())


def test_a_stream_that_does_not_exist_yet_is_waited_for(nats_server: NatsServer) -> None:
    """A follower started before anybody made the stream follows it once it is there."""

    async def scenario() -> None:
        async with (
            connected(nats_server, with_streams=False) as (client, jetstream),
            Follower(client, wire.STREAM_POLICY, ALL, pace=QUICK) as follower,
        ):
            first = asyncio.ensure_future(anext(follower))
            await asyncio.sleep(0.1)
            assert not first.done()
            await streams.ensure_stream(jetstream, streams.policy_stream())
            assert await first == CaughtUp(0)

    run(scenario())


def test_a_restart_that_was_asked_for(nats_server: NatsServer) -> None:
    """``restart`` yields a Reset with the reason, then everything again."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, _):
            await _put(client, range(5))
            async with Follower(client, wire.STREAM_POLICY, ALL, pace=QUICK) as follower:
                await _until_caught_up(follower)
                follower.restart("doubt")
                assert await anext(follower) == Reset("doubt")
                messages, _ = await _until_caught_up(follower)
                assert len(messages) == 5

    run(scenario())


def test_a_wait_that_is_cancelled_loses_nothing(nats_server: NatsServer) -> None:
    """Waiting with a timeout, over and over, while messages arrive: every one of them comes, once."""

    async def scenario() -> None:
        async with (
            connected(nats_server) as (client, _),
            Follower(client, wire.STREAM_POLICY, ALL, pace=QUICK) as follower,
        ):
            writing = asyncio.ensure_future(_put(client, range(2_000)))
            seen: list[int] = []
            while len(seen) < 2_000:
                try:
                    async with asyncio.timeout(0.001):
                        item = await anext(follower)
                except TimeoutError:
                    continue
                seen += [m.sequence for m in item] if isinstance(item, list) else []
            await writing
            assert seen == list(range(1, 2_001))

    run(scenario())


def test_a_closed_follower_leaves_no_consumer(nats_server: NatsServer) -> None:
    """A follower that is closed takes its consumer with it; on a closed connection it raises instead of waiting."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, jetstream):
            async with Follower(client, wire.STREAM_POLICY, ALL, pace=QUICK) as follower:
                await anext(follower)
            assert (await jetstream.read_stream(wire.STREAM_POLICY)).consumers == 0
            await client.close()
            with pytest.raises(JetStreamError):
                await anext(follower)

    run(scenario())


def test_a_follower_that_ticks_yields_while_nothing_comes(nats_server: NatsServer) -> None:
    """With ``tick_seconds`` an idle follower yields empty batches, so that doubt can be timed; messages still come."""

    async def scenario() -> None:
        async with (
            connected(nats_server) as (client, _),
            Follower(client, wire.STREAM_POLICY, ALL, pace=QUICK, tick_seconds=0.1) as follower,
        ):
            assert await anext(follower) == CaughtUp(0)
            assert [await anext(follower) for _ in range(3)] == [[], [], []]
            await _put(client, [1])
            assert [m.sequence for m in await _next_messages(follower, 1)] == [1]

    run(scenario())
