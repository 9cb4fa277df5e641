"""The controller as a process: waits, leads, stands by, takes over, says what it knows, drains."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest
from nats.aio.client import Client

from schemas import wire
from schemas.policy import EndpointRow, Leader, Revision
from schemas.status import AgentStatus, ControllerStatus
from schemas.terms import NodeName
from services.common.jetstream import JetStream
from services.common.messages import Message
from tests.bus.controllers import SHOP, ask, controller
from tests.bus.harness import connected, eventually, run, stored
from tests.nats_server import NatsServer

pytestmark = pytest.mark.nats

NO_POLICY = SHOP.rpartition("---")[0]


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    """A folder with one namespace, one pod and one policy."""
    folder = tmp_path / "manifests"
    folder.mkdir()
    (folder / "shop.yaml").write_text(SHOP)
    return folder


def _read_revision(found: dict[str, Message]) -> Revision:
    revision = wire.decode(wire.SUBJECT_REVISION, found[wire.SUBJECT_REVISION].body)
    assert isinstance(revision, Revision)
    return revision


async def _until_revision(client: Client, jetstream: JetStream, number: int) -> dict[str, Message]:
    """Everything stored, once this revision is."""
    async with asyncio.timeout(15):
        while True:
            found = await stored(client, jetstream)
            if wire.SUBJECT_REVISION in found and _read_revision(found).number >= number:
                return found
            await asyncio.sleep(0.02)


async def _until_led_at(client: Client, number: int) -> None:
    async with asyncio.timeout(10):
        while (await ask(client)).revision != number:  # noqa: ASYNC110  the leader's to say
            await asyncio.sleep(0.02)


def test_started_before_nats_it_waits_and_says_so(nats_server: NatsServer, manifests: Path) -> None:
    """Without a server it says that it waits, once and then less and less often; with one it leads and publishes."""

    async def scenario() -> None:
        nats_server.stop()
        async with controller(nats_server, manifests, "one") as one:
            line = await one.until_said("waiting for NATS")
            assert line["url"] == nats_server.url and "refused" in line["problem"]
            await asyncio.sleep(2.5)
            assert 1 <= len(one.said("waiting for NATS")) <= 3
            nats_server.start()
            await one.until_said("leading")
            published = await one.until_said("published")
            assert published["revision"] == 1

    run(scenario())


def test_sigterm_drains_within_five_seconds(nats_server: NatsServer, manifests: Path) -> None:
    """SIGTERM ends it with status 0 within five seconds, with a server and without one; SIGINT too."""

    async def scenario() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            async with controller(nats_server, manifests, "one") as one:
                await one.until_said("leading")
                one.signal(number)
                assert await asyncio.wait_for(one.process.wait(), 5) == 0
        async with controller(nats_server, manifests, "one") as one:
            await one.until_said("leading")
            nats_server.stop()
            await one.until_said("disconnected, trying again until the server is back")
            one.signal(signal.SIGTERM)
            assert await asyncio.wait_for(one.process.wait(), 5) == 0
        async with controller(nats_server, manifests, "waiting") as one:
            await one.until_said("waiting for NATS")
            one.signal(signal.SIGTERM)
            assert await asyncio.wait_for(one.process.wait(), 5) == 0

    run(scenario())


def test_killed_and_started_again_it_writes_only_its_mark(nats_server: NatsServer, manifests: Path) -> None:
    """Killed with -9 and started again: no row moves but the leader's mark, and no identity has another number."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, jetstream):
            async with controller(nats_server, manifests, "one") as one:
                await one.until_said("published")
                before = await _until_revision(client, jetstream, 1)
                one.signal(signal.SIGKILL)
                await one.process.wait()
            async with controller(nats_server, manifests, "two") as two:
                await two.until_said("leading")
                await _until_led_at(client, 1)
                after = await stored(client, jetstream)
            moved = {s for s, message in after.items() if s not in before or before[s].sequence != message.sequence}
            assert moved == {wire.SUBJECT_LEADER} and before.keys() == after.keys()

    run(scenario())


def test_a_standby_takes_over_and_only_one_leads(nats_server: NatsServer, manifests: Path) -> None:
    """A second controller stands by while the first answers, and leads at once when it is killed; what changed in the
    manifests meanwhile is published by it."""

    async def scenario() -> None:
        async with (
            connected(nats_server) as (client, jetstream),
            controller(nats_server, manifests, "one") as one,
        ):
            await one.until_said("published")
            async with controller(nats_server, manifests, "two") as two:
                assert (await two.until_said("standing by"))["leader"] == "one"
                assert (await ask(client)).holder == "one" and not two.said("leading")
                one.signal(signal.SIGKILL)
                (manifests / "shop.yaml").write_text(NO_POLICY)
                await two.until_said("leading")
                found = await _until_revision(client, jetstream, 2)
                mark = wire.decode(wire.SUBJECT_LEADER, found[wire.SUBJECT_LEADER].body)
                assert isinstance(mark, Leader) and (mark.holder, mark.term) == ("two", 2)
                assert found[wire.subject_source("NetworkPolicy", "shop", "closed")].is_delete

    run(scenario())


def test_a_leader_that_hangs_is_deposed_and_writes_nothing_after(nats_server: NatsServer, manifests: Path) -> None:
    """A leader that is stopped (not ended) is deposed after four seconds of silence; when it wakes with a change to
    publish, it does not publish it, and stands by."""

    async def scenario() -> None:
        async with (
            connected(nats_server) as (client, jetstream),
            controller(nats_server, manifests, "one") as one,
        ):
            await one.until_said("published")
            async with controller(nats_server, manifests, "two") as two:
                await two.until_said("standing by")
                one.signal(signal.SIGSTOP)
                await two.until_said("leading")
                (manifests / "shop.yaml").write_text(NO_POLICY)
                await _until_revision(client, jetstream, 2)
                one.signal(signal.SIGCONT)
                assert (await one.until_said("standing by"))["leader"] == "two"
                found = await stored(client, jetstream)
                assert _read_revision(found).number == 2 and len(one.said("published")) == 1
                assert (await ask(client)).holder == "two"

    run(scenario())


def test_refused_objects_and_acknowledgements_are_in_the_status(nats_server: NatsServer, manifests: Path) -> None:
    """A bad object is in the status with file, object and field path, asked for or announced; so is how far every node
    has come; a message that does not decode is counted."""

    async def scenario() -> None:
        announced: list[ControllerStatus] = []

        async def hear(message: object) -> None:
            announced.append(wire.decode(wire.SUBJECT_STATUS_CONTROLLER, message.data))  # type: ignore[attr-defined]

        async with connected(nats_server) as (client, _), controller(nats_server, manifests, "one") as one:
            await client.subscribe(wire.SUBJECT_STATUS_CONTROLLER, cb=hear)
            await one.until_said("published")
            (manifests / "bad.yaml").write_text(SHOP.rpartition("---")[2].replace("[Egress, Ingress]", "[Sideways]"))
            await eventually(lambda: bool(announced) and bool(announced[-1].problems))
            status = await ask(client)
            [problem] = [one for one in status.problems if one.severity == "error"]
            assert problem.file == "bad.yaml" and problem.path.startswith("spec.policyTypes")
            assert "shop/closed" in problem.object
            assert status.convergence == "revision 1 enforced on 0 of 1 nodes"
            agent = AgentStatus(node=NodeName("node-a"), epoch=status.epoch, revision=status.revision)
            await client.publish(wire.subject_status(agent.node), wire.encode(agent))
            await client.publish(wire.subject_status(NodeName("node-b")), b"{")
            await eventually(lambda: announced[-1].convergence == "revision 1 enforced on 1 of 1 nodes")
            assert (await ask(client)).counters["undecodable_AgentStatus"] == 1

    run(scenario())


def test_a_lost_stream_is_made_again_with_another_epoch(nats_server: NatsServer, manifests: Path) -> None:
    """The stream is deleted under a leader: it is made again, all rows are back, under a new epoch of the other parity,
    which the top bit of every identity number shows."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, jetstream), controller(nats_server, manifests, "one") as one:
            await one.until_said("published")
            before = await _until_revision(client, jetstream, 1)
            await jetstream.call(f"STREAM.DELETE.{wire.STREAM_POLICY}")
            await one.until_said("leading", times=2)
            after = await _until_revision(client, jetstream, 1)
            marks = [wire.decode(wire.SUBJECT_LEADER, found[wire.SUBJECT_LEADER].body) for found in (before, after)]
            assert all(isinstance(mark, Leader) for mark in marks)
            assert marks[0].epoch != marks[1].epoch and {mark.parity for mark in marks} == {0, 1}
            for mark, found in zip(marks, (before, after), strict=True):
                endpoint = wire.decode(_ENDPOINT, found[_ENDPOINT].body)
                assert isinstance(endpoint, EndpointRow) and endpoint.identity >> 31 == mark.parity

    run(scenario())


_ENDPOINT = wire.subject_endpoint(NodeName("node-a"), "shop", "web")


def test_a_new_epoch_takes_the_parity_that_agents_do_not_hold(nats_server: NatsServer, manifests: Path) -> None:
    """Stream and controller are lost together: a new controller hears from the agents which epoch they hold, and makes
    one of the other parity."""

    async def scenario() -> None:
        held = "0" * 31 + "1"
        agent = AgentStatus(node=NodeName("node-a"), epoch=held)
        async with connected(nats_server) as (client, jetstream):

            async def speak() -> None:
                while True:
                    await client.publish(wire.subject_status(agent.node), wire.encode(agent))
                    await asyncio.sleep(0.2)

            speaking = asyncio.ensure_future(speak())
            async with controller(nats_server, manifests, "one") as one:
                await one.until_said("leading")
                mark = wire.decode(wire.SUBJECT_LEADER, (await stored(client, jetstream))[wire.SUBJECT_LEADER].body)
                assert isinstance(mark, Leader) and mark.parity == 0
            speaking.cancel()

    run(scenario())


def test_it_publishes_again_after_the_server_came_back(nats_server: NatsServer, manifests: Path) -> None:
    """NATS is killed and started again under a leader: the next change is published, by the same controller."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, jetstream), controller(nats_server, manifests, "one") as one:
            await one.until_said("published")
            nats_server.kill()
            (manifests / "shop.yaml").write_text(NO_POLICY)
            nats_server.start()
            await one.until_said("reconnected")
            await eventually(lambda: client.is_connected)
            found = await _until_revision(client, jetstream, 2)
            assert found[wire.subject_source("NetworkPolicy", "shop", "closed")].is_delete

    run(scenario())


def test_the_rows_of_a_change_carry_its_trace(nats_server: NatsServer, manifests: Path) -> None:
    """Every row and the revision of one change carry the traceparent of the span that published it."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, jetstream), controller(nats_server, manifests, "one") as one:
            line = await one.until_said("published")
            found = await _until_revision(client, jetstream, 1)
            rows = {s: message for s, message in found.items() if s != wire.SUBJECT_LEADER}
            assert {message.trace for message in rows.values()} == {line["trace"]} == {_read_revision(found).trace}
            version, trace_id, span_id, _ = line["trace"].split("-")
            assert (version, len(trace_id), len(span_id)) == ("00", 32, 16)

    run(scenario())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"YETT_REVISION_INTERVAL_MILLIS": "often"}, "YETT_REVISION_INTERVAL_MILLIS"),
        ({"YETT_MANIFESTS": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"YETT_OTEL_EXPORTER": "semaphore"}, "YETT_OTEL_EXPORTER"),
    ],
    ids=["bad number", "no folder", "bad exporter"],
)
def test_unusable_settings_end_it_with_status_2(
    nats_server: NatsServer, manifests: Path, settings: dict[str, str], said: str
) -> None:
    """What a person must put right is said in one line that names it, and the exit status is 2."""

    async def scenario() -> None:
        async with controller(nats_server, manifests, "one", **settings) as one:
            assert await asyncio.wait_for(one.process.wait(), 10) == 2
            await one.reading
            assert said in one.log[-1]["event"]

    run(scenario())


def test_a_server_that_is_too_old_is_refused(manifests: Path, nats_server: NatsServer) -> None:
    """A server before 2.11 would ignore a message's TTL without a word: it is refused, with both versions named."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.9.10","headers":true,"max_payload":1048576}\r\n')
        while line := await reader.readline():
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")

    async def scenario() -> None:
        old = await asyncio.start_server(answer, "127.0.0.1", 0)
        url = f"nats://127.0.0.1:{old.sockets[0].getsockname()[1]}"
        async with controller(nats_server, manifests, "one", YETT_NATS_URL=url) as one:
            assert await asyncio.wait_for(one.process.wait(), 10) == 2
            await one.reading
            assert "2.9.10" in one.log[-1]["event"] and "2.11 or newer" in one.log[-1]["event"]
        old.close()

    run(scenario())
