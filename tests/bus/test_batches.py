"""The policy stream on three real servers: rows behind a fence, in batches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager

import pytest
from nats.aio.client import Client

from schemas import wire
from services.common.batches import BATCH_BYTES, BATCH_ROWS, Batches
from services.common.jetstream import JetStream, Message
from services.common.window import FencedError, Window, WindowError
from tests.bus.harness import run, stored
from tests.nats_cluster import NatsCluster, joined, nats_cluster

pytestmark = pytest.mark.nats


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    with nats_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


async def write_mark(client: Client) -> dict[str, str]:
    """A leader's mark, and what the rows of its term carry."""
    async with Window(client) as window:
        await window.publish(wire.SUBJECT_LEADER, b"{}", {})
        await window.drain()
        return {wire.HEADER_FENCE_SEQUENCE: str(window.last_sequence), wire.HEADER_FENCE_SUBJECT: wire.SUBJECT_LEADER}


@asynccontextmanager
async def led(cluster: NatsCluster) -> AsyncIterator[tuple[Client, JetStream, dict[str, str]]]:
    async with joined(cluster) as (client, jetstream):
        yield client, jetstream, await write_mark(client)


def row(number: int) -> str:
    return f"yett.policy.identity.{number}"


async def stored_whole(client: Client, jetstream: JetStream, wanted: Mapping[str, bytes]) -> dict[str, Message]:
    """The stream, once it has these bodies: the copy that a reader meets may be behind what most servers have."""
    while True:
        found = await stored(client, jetstream)
        if all(subject in found and found[subject].body == body for subject, body in wanted.items()):
            return found


def test_a_replicated_stream_takes_no_pipeline_behind_a_fence(cluster: NatsCluster) -> None:
    """Why there are batches: of rows sent one behind the other the second is refused, though nobody else leads."""

    async def scenario() -> None:
        async with led(cluster) as (client, _, fence), Window(client) as window:
            with pytest.raises(FencedError, match="10164"):
                for number in range(200):
                    await window.publish(row(number), b"{}", fence)
                await window.drain()

    run(scenario())


def test_rows_are_stored_in_their_order_whatever_their_number(cluster: NatsCluster) -> None:
    """One row, a batch, and more than a batch takes: all there, each after the one before it."""

    async def scenario() -> None:
        async with led(cluster) as (client, jetstream, fence), Batches(client) as batches:
            for count in (1, 2, BATCH_ROWS, 2 * BATCH_ROWS + 1):
                for number in range(count):
                    await batches.publish(row(number), f"{count}".encode(), fence)
                await batches.drain()
                found = await stored_whole(
                    client, jetstream, {row(number): f"{count}".encode() for number in range(count)}
                )
                rows = [found[row(number)] for number in range(count)]
                sequences = [message.sequence for message in rows]
                assert sequences == sorted(sequences)

    run(scenario(), 120)


def test_large_rows_are_several_batches(cluster: NatsCluster) -> None:
    """Peer sets of a quarter of a megabyte each: more than one batch may hold, and all are stored."""

    async def scenario() -> None:
        async with led(cluster) as (client, jetstream, fence), Batches(client) as batches:
            body = b"x" * 250_000
            for number in range(BATCH_BYTES // len(body) + 5):
                await batches.publish(row(number), body, fence)
            await batches.drain()
            await stored_whole(client, jetstream, {row(number): body for number in range(BATCH_BYTES // len(body) + 5)})

    run(scenario(), 120)


def test_of_a_deposed_leader_s_batch_nothing_is_stored(cluster: NatsCluster) -> None:
    """Another has written its mark: not one row gets in, and the error says that it was the fence."""

    async def scenario() -> None:
        async with led(cluster) as (client, jetstream, old), Batches(client) as batches:
            await write_mark(client)
            before = await stored(client, jetstream)
            for number in range(500):
                await batches.publish(row(number), b"stale", old)
            with pytest.raises(FencedError):
                await batches.drain()
            after = await stored(client, jetstream)
            assert {s: m.sequence for s, m in after.items()} == {s: m.sequence for s, m in before.items()}

    run(scenario())


def test_one_row_that_the_stream_refuses_refuses_its_batch(cluster: NatsCluster) -> None:
    """A row that is too large: nothing of its batch is there, and the term ends as it would with a pipeline."""

    async def scenario() -> None:
        async with led(cluster) as (client, jetstream, fence), Batches(client) as batches:
            before = await stored(client, jetstream)
            for body in (b"a", b"x" * 500_000, b"b"):
                await batches.publish(row(7_000), body, fence)
            with pytest.raises(WindowError):
                await batches.drain()
            assert row(7_000) not in before and row(7_000) not in await stored(client, jetstream)

    run(scenario())
