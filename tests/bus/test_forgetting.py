"""Who may make nodes forget, and that they hear of it: a real server under the accounts as written."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from typer.testing import CliRunner

from schemas import wire
from schemas.resolution import Forget, Resolution
from schemas.status import AgentStatus, ControllerStatus
from schemas.terms import NodeName, RevisionNumber
from services.cli.__main__ import app
from services.common.forgetting import Asked, Forgetting
from services.common.jetstream import JetStream
from services.common.window import Window
from services.operate.forget import forget_node
from tests.bus.harness import eventually, run
from tests.bus.secured import NODE, OPERATOR, READER, VICTIM, SecuredServer, speaking
from tests.bus.test_security import POLICY_SUBJECTS, STREAM_CALLS, attacked_by, server

__all__ = ["server"]
pytestmark = pytest.mark.nats

NAME = "api.example.com"
FORGETS = (wire.subject_forget_name(NAME), wire.subject_forget_node(NodeName(VICTIM)))


@pytest.mark.parametrize(("kind", "name"), [("nodes", NODE), ("readers", READER)])
def test_nobody_else_makes_nodes_forget(server: SecuredServer, kind: str, name: str) -> None:
    """Neither a node nor a reader may say it, directly or by an answer that lands there."""

    async def scenario() -> None:
        async with attacked_by(server, kind, name) as scene:
            before = (await scene.state())[1]
            for subject in FORGETS:
                await scene.attacker.publish(subject, b"{}")
                await scene.attacker.publish(f"yett.js.STREAM.INFO.{wire.STREAM_POLICY}", b"", reply=subject)
            await scene.settle()
            await eventually(lambda: len(scene.refused) == len(FORGETS))
            assert (await scene.state())[1] == before

    run(scenario())


def test_an_operator_can_make_nodes_forget_and_nothing_else(server: SecuredServer) -> None:
    """Not write policy, not speak for a node, not change, delete or purge any other stream."""

    async def scenario() -> None:
        async with attacked_by(server, "operators", OPERATOR) as scene:
            before = await scene.state()
            calls = [
                f"$JS.API.STREAM.{call}.{stream}"
                for call in STREAM_CALLS
                for stream in (wire.STREAM_POLICY, wire.STREAM_RESOLUTION)
                if (call, stream) != ("PURGE", wire.STREAM_RESOLUTION)
            ]
            spoken = [wire.subject_status(NodeName(NODE)), wire.subject_resolution(NodeName(NODE), NAME)]
            for subject in (*POLICY_SUBJECTS, *calls, *spoken):
                await scene.attacker.publish(subject, b"{}", reply=scene.attacker.new_inbox())
            await scene.settle()
            await eventually(lambda: len(scene.refused) == len(POLICY_SUBJECTS) + len(calls) + len(spoken))
            assert await scene.state() == before

    run(scenario())


async def resolve(node: NodeName, server: SecuredServer) -> None:
    async with speaking(server, "nodes", node) as client, Window(client) as window:
        said = Resolution(name=NAME, addresses=("198.51.100.1",), ttl_seconds=30, node=node)
        await window.publish(wire.subject_resolution(node, NAME), wire.encode(said), {})
        await window.drain()


def test_a_name_is_purged_and_its_addresses_are_in_the_word(server: SecuredServer, tmp_path: Path) -> None:
    """By the command with an operator's credential alone: what was published before goes, the node is told of the word
    once, again after a restart as one that is done, and the command waits for its status."""
    told: list[Asked] = []

    async def carry_out(asked: Asked) -> None:
        told.append(asked)

    async def scenario() -> None:
        async with attacked_by(server, "nodes", NODE) as scene, asyncio.TaskGroup() as group:
            for node in (NODE, VICTIM):
                await resolve(NodeName(node), server)
            forgetting = Forgetting(scene.attacker, tmp_path / "forgotten.json", carry_out)
            following = group.create_task(forgetting.run())
            leading = group.create_task(lead_and_speak(scene.owner, scene.attacker, forgetting))
            creds = str(server.keys.path / "operators" / f"{OPERATOR}.nk")
            command = ["forget", NAME, "--nats", server.url, "--creds", creds, "--output", "json"]
            done = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.cli", *command, stdout=PIPE)
            shown = json.loads((await done.communicate())[0])
            assert done.returncode == 0
            assert shown["purged"] == 2 and shown["forgotten"] == {NODE: True}
            assert told == [Asked(Forget(name=NAME, addresses=("198.51.100.1",)), shown["sequence"], False)]
            assert (await JetStream(scene.owner).read_stream(wire.STREAM_RESOLUTION)).first_sequence == told[0].sequence
            following.cancel()
            again = Forgetting(scene.attacker, tmp_path / "forgotten.json", carry_out)
            following = group.create_task(again.run())
            await again.caught_up.wait()
            assert [asked.is_done for asked in told] == [False, True]
            following.cancel()
            leading.cancel()

    run(scenario())


async def lead_and_speak(owner, node, forgetting: Forgetting) -> None:  # type: ignore[no-untyped-def]
    """A leader that knows the one node, and the node's status every so often."""

    async def answer(message) -> None:  # type: ignore[no-untyped-def]
        await message.respond(wire.encode(ControllerStatus(holder="x", nodes={NODE: RevisionNumber(1)})))

    await owner.subscribe(wire.SUBJECT_STATUS_CONTROLLER_GET, cb=answer)
    while True:
        status = AgentStatus(node=NodeName(NODE), forgotten=forgetting.sequence)
        await node.publish(wire.subject_status(NodeName(NODE)), wire.encode(status))
        await asyncio.sleep(0.05)


def test_a_nodes_words_are_purged_and_others_stay(server: SecuredServer, tmp_path: Path) -> None:
    """Up to the word; a node that does not answer in time is named."""

    async def scenario() -> None:
        async with attacked_by(server, "nodes", NODE) as scene, speaking(server, "operators", OPERATOR) as operator:
            for node in (NODE, VICTIM):
                await resolve(NodeName(node), server)
            deaf = Forgetting(operator, tmp_path / "forgotten.json", never)
            leading = asyncio.create_task(lead_and_speak(scene.owner, scene.attacker, deaf))
            await asyncio.sleep(0)
            outcome = await forget_node(operator, VICTIM, wait_seconds=0.5)
            leading.cancel()
            assert outcome.purged == 1 and outcome.done == {NODE: False} and not outcome.is_done

    run(scenario())


async def never(asked: Asked) -> None:
    raise AssertionError(asked)


@pytest.mark.parametrize("arguments", [[], [NAME, "--node", NODE], ["not a name"]])
def test_the_command_wants_a_name_or_a_node(arguments: list[str], server: SecuredServer) -> None:
    """One of both, and a name that could be one."""
    creds = str(server.keys.path / "operators" / f"{OPERATOR}.nk")
    done = CliRunner().invoke(app, ["forget", *arguments, "--nats", server.url, "--creds", creds])
    assert done.exit_code == 2


def test_a_reader_who_tries_is_told_what_is_needed(server: SecuredServer) -> None:
    """Exit 2, and the kind of credential."""
    creds = str(server.keys.path / "readers" / f"{READER}.nk")
    done = CliRunner().invoke(app, ["forget", "--node", NODE, "--nats", server.url, "--creds", creds])
    assert done.exit_code == 2 and "operator" in done.stderr
