"""The streams are what was asked for, or somebody hears of it."""

from __future__ import annotations

import pytest

from schemas import wire
from services.common import streams
from services.common.jetstream import JetStream
from services.common.streams import StreamError, ensure_stream
from tests.bus.harness import connected, run
from tests.nats_server import NatsServer

pytestmark = pytest.mark.nats

CONFIGS = [
    streams.policy_stream(),
    streams.resolution_stream(max_bytes=1 << 28),
    streams.verdict_stream(max_bytes=1 << 28, max_age_seconds=3600),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config["name"])
def test_made_once_and_then_left_alone(nats_server: NatsServer, config: streams.Config) -> None:
    """A stream is made with every field honoured; asked for again it is the same stream, untouched."""

    async def scenario() -> None:
        async with connected(nats_server, with_streams=False) as (_, jetstream):
            await ensure_stream(jetstream, config)
            first = await jetstream.read_stream(config["name"])
            await ensure_stream(jetstream, config)
            assert await jetstream.read_stream(config["name"]) == first
            assert streams.find_differences(config, first.config) == []
            assert first.config["max_consumers"] == 20_000

    run(scenario())


def test_a_stream_that_differs_is_brought_to_what_is_wanted(nats_server: NatsServer) -> None:
    """A stream that somebody made with other limits gets ours, and keeps its messages."""

    async def scenario() -> None:
        async with connected(nats_server, with_streams=False) as (client, jetstream):
            subjects = [wire.POLICY_PREFIX + ">"]
            await jetstream.call(
                f"STREAM.CREATE.{wire.STREAM_POLICY}", {"name": wire.STREAM_POLICY, "subjects": subjects}
            )
            await client.publish("yett.policy.config", b"{}")
            await ensure_stream(jetstream, streams.policy_stream())
            state = await jetstream.read_stream(wire.STREAM_POLICY)
            assert state.last_sequence == 1 and state.config["max_msgs_per_subject"] == 1

    run(scenario())


def test_what_cannot_be_changed_is_said(nats_server: NatsServer) -> None:
    """A field that the server refuses to change is an error that names stream and field, with the server's reason."""

    async def scenario() -> None:
        async with connected(nats_server, with_streams=False) as (_, jetstream):
            await jetstream.call(
                f"STREAM.CREATE.{wire.STREAM_POLICY}",
                {"name": wire.STREAM_POLICY, "subjects": [wire.POLICY_PREFIX + ">"], "storage": "memory"},
            )
            with pytest.raises(StreamError, match=r"YETT_POLICY.*storage.*can not change storage type"):
                await ensure_stream(jetstream, streams.policy_stream())

    run(scenario())


class _ForgetfulServer(JetStream):
    """Answers as an old server does: fields that it does not know are gone from the configuration."""

    async def call(self, operation: str, body: object = None) -> dict[str, object]:
        answer = await super().call(operation, body)
        answer.get("config", {}).pop("allow_msg_ttl", None)
        return answer


def test_a_field_the_server_ignores_is_said(nats_server: NatsServer) -> None:
    """A server that takes the request and drops a field of it is refused, with the field's name."""

    async def scenario() -> None:
        async with connected(nats_server, with_streams=False) as (client, _):
            with pytest.raises(StreamError, match="does not honour allow_msg_ttl"):
                await ensure_stream(_ForgetfulServer(client), streams.policy_stream())

    run(scenario())
