"""Denials queried back from the stream, and the pages' examples of subscribing, against a real server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from schemas import wire
from schemas.policy import RuleSource
from schemas.resolution import Resolution
from schemas.terms import NodeName, Verdict
from schemas.verdict import VerdictEvent
from services.cli.flows import Wanted, parse_duration
from services.common import nats as bus
from services.common.jetstream import JetStream
from services.common.settings import CommonSettings
from services.common.streams import ensure_stream, verdict_stream
from tests.bus.harness import run
from tests.cli.test_flows import DENIED, REFUSED
from tests.nats_server import NatsServer

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "flows.md").read_text()


def test_durations_are_a_number_and_a_unit() -> None:
    """And nothing else."""
    assert [parse_duration(text) for text in ("90s", "10m", "1.5h", "2d")] == [90, 600, 5400, 172800]
    assert [parse_duration(text) for text in ("", "10", "m", "-1m", "10 m")] == [None] * 5


def test_names_and_policies_are_matched_here_and_the_rest_by_the_subject() -> None:
    """A star in a name stands for anything; a policy may be given with its namespace."""
    assert Wanted("app", "", "deny").subjects("yett.denied.") == ["yett.denied.*.app.*.deny"]
    assert Wanted("", "web").subjects("yett.denied.") == ["yett.denied.*.*.web.*", "yett.name_refused.*.*.web"]
    assert Wanted("app", verdict="name_refused").subjects("yett.denied.") == ["yett.name_refused.*.app.*"]
    assert Wanted(policy="isolate").subjects("yett.denied.") == ["yett.denied.*.*.*.*"]
    source = RuleSource(kind="NetworkPolicy", namespace="app", name="isolate", rule="")
    event = msgspec.structs.replace(DENIED, policy=source)
    assert all(Wanted(name=name).takes(event) for name in ("", "example.com", "*.com", "Example.com."))
    assert not Wanted(name="*.org").takes(event)
    assert all(Wanted(policy=policy).takes(event) for policy in ("", "isolate", "app/isolate"))
    assert not any(Wanted(policy=policy).takes(event) for policy in ("other", "b/isolate"))


async def fill(url: str, count: int) -> None:
    """A stream with denials, each of a port of its own."""
    client = await bus.connect(CommonSettings(nats_url=url), "test")
    await ensure_stream(JetStream(client), verdict_stream(max_bytes=1 << 24, max_age_seconds=60))
    for port in range(count):
        namespace = "app" if port % 2 else "payments"
        event = msgspec.structs.replace(DENIED, namespace=namespace, destination_port=port)
        subject = wire.subject_denied(event.node, namespace, event.pod, event.verdict)
        await client.jetstream().publish(subject, wire.encode(event))
    await bus.close(client)


def flows(url: str, *arguments: str) -> list[VerdictEvent]:
    command = [sys.executable, "-m", "services.cli", "flows", "--nats", url, "--output", "json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return [msgspec.json.decode(line, type=VerdictEvent) for line in done.stdout.splitlines()]


@pytest.mark.nats
def test_denials_are_queried_back_from_the_stream(nats_server: NatsServer) -> None:
    """All that it holds since then, more than one batch of them, in their order; then the command ends."""
    run(fill(nats_server.url, 1201))
    assert [event.destination_port for event in flows(nats_server.url, "--since", "10m")] == list(range(1201))
    found = flows(nats_server.url, "--since", "10m", "--namespace", "payments", "--name", "*.com")
    assert len(found) == 601 and {event.namespace for event in found} == {"payments"}
    assert flows(nats_server.url, "--since", "10m", "--verdict", "audit") == []
    assert flows(nats_server.url, "--since", "10m", "--name", "*.org") == []


@pytest.mark.nats
def test_refused_names_stand_among_the_denials_in_their_order(nats_server: NatsServer) -> None:
    """By the time of the event; alone if asked for alone, and by name."""

    async def add() -> None:
        client = await bus.connect(CommonSettings(nats_url=nats_server.url), "test")
        await ensure_stream(JetStream(client), verdict_stream(max_bytes=1 << 24, max_age_seconds=60))
        for nanos in (1, 3, 5):
            event = msgspec.structs.replace(DENIED, unix_nanos=nanos)
            subject = wire.subject_denied(event.node, event.namespace, event.pod, event.verdict)
            await client.jetstream().publish(subject, wire.encode(event))
        for nanos in (2, 4, 6):
            refused = msgspec.structs.replace(REFUSED, unix_nanos=nanos)
            subject = wire.subject_name_refused(refused.node, refused.namespace, refused.pod)
            await client.jetstream().publish(subject, wire.encode(refused))
        await bus.close(client)

    def ask(*arguments: str) -> list[int]:
        command = [sys.executable, "-m", "services.cli", "flows", "--nats", nats_server.url, "--output", "json"]
        done = subprocess.run(
            [*command, "--since", "10m", *arguments], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line)["unix_nanos"] for line in done.stdout.splitlines()]

    run(add())
    assert ask() == [1, 2, 3, 4, 5, 6]
    assert ask("--verdict", "name_refused", "--name", "*.example.org") == [2, 4, 6]
    assert ask("--verdict", "deny") == [1, 3, 5]


@pytest.mark.nats
def test_the_pages_example_in_python_hears_a_verdict_and_a_resolution(nats_server: NatsServer) -> None:
    """Run as it stands on the page, against a server where both are said."""
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    environment = {**os.environ, "NATS_URL": nats_server.url}
    process = subprocess.Popen([sys.executable, "-c", example], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None and process.stdout.readline() == "listening\n"
        run(say(nats_server.url))
        heard = [json.loads(process.stdout.readline()) for _ in range(2)]
        assert [one.get("pod", one["name"]) for one in heard] == [DENIED.pod, "s3.eu.amazonaws.com"]
    finally:
        process.kill()
        process.wait(10)


async def say(url: str) -> None:
    client = await bus.connect(CommonSettings(nats_url=url), "test")
    event = msgspec.structs.replace(DENIED, namespace="payments")
    node = NodeName("node-a")
    name = "s3.eu.amazonaws.com"
    told = Resolution(name=name, addresses=("192.0.2.1",), ttl_seconds=60, node=node)
    await client.publish(wire.subject_verdict(node, "app", "web", Verdict.DENY), wire.encode(DENIED))
    await client.publish(wire.subject_verdict(node, "payments", event.pod, Verdict.DENY), wire.encode(event))
    await client.publish(wire.subject_resolution(node, name), wire.encode(told))
    await bus.close(client)


NODE_A = NodeName("node-a")
SAID = {
    "yett.verdict.*.payments.*.deny": (
        wire.subject_verdict(NODE_A, "payments", "web", Verdict.DENY),
        wire.subject_verdict(NODE_A, "payments", "web", Verdict.ALLOW),
    ),
    "yett.resolution.*.com.amazonaws.>": (
        wire.subject_resolution(NODE_A, "dynamodb.eu-west-1.amazonaws.com"),
        wire.subject_resolution(NODE_A, "amazonaws.com.example.org"),
    ),
    "yett.denied.*.payments.>": (
        wire.subject_denied(NODE_A, "payments", "web", Verdict.AUDIT),
        wire.subject_denied(NODE_A, "app", "payments", Verdict.DENY),
    ),
    "yett.name_refused.>": (
        wire.subject_name_refused(NODE_A, "payments", "web"),
        wire.subject_verdict(NODE_A, "payments", "web", Verdict.ALLOW),
    ),
    "yett.status.*": (wire.subject_status(NODE_A), wire.subject_status_recorder(NODE_A)),
}
"""Every subscription of the page -> a subject that it must hear, and one that it must not."""


@pytest.mark.nats
def test_the_pages_subscriptions_hear_what_they_say_and_nothing_else(nats_server: NatsServer) -> None:
    """The `nats` lines of the page, subject by subject, by nats-py: no registry in use here packages the command."""
    assert re.findall(r'^    nats subscribe "(.+)"$', PAGE, re.M) == list(SAID)

    heard: dict[str, list[str]] = {}

    async def listen() -> None:
        client = await bus.connect(CommonSettings(nats_url=nats_server.url), "test")
        for subject, said in SAID.items():
            subscription = await client.subscribe(subject)
            for one in said:
                await client.publish(one, b"{}")
            await bus.flush(client)
            heard[subject] = [
                (await subscription.next_msg(timeout=5)).subject for _ in range(subscription.pending_msgs)
            ]
            await subscription.unsubscribe()
        await bus.close(client)

    run(listen())
    assert heard == {subject: [within] for subject, (within, _) in SAID.items()}


@pytest.mark.nats
def test_the_page_reads_a_stream_that_there_is(nats_server: NatsServer) -> None:
    """``nats stream view``: the stream by its name, with the subjects that the page says it keeps."""
    (name,) = re.findall(r"^    nats stream view (\w+)$", PAGE, re.M)

    kept: list[str] = []

    async def look() -> None:
        client = await bus.connect(CommonSettings(nats_url=nats_server.url), "test")
        await ensure_stream(JetStream(client), verdict_stream(max_bytes=1 << 24, max_age_seconds=60))
        found = await JetStream(client).read_stream(name)
        await bus.close(client)
        kept.extend(found.config["subjects"])

    run(look())
    assert kept == ["yett.denied.>", "yett.name_refused.>"]


def test_the_pages_subjects_are_those_of_the_code() -> None:
    """Every subject in an example is in the table, wildcards included."""
    subjects = set(re.findall(r"yett\.(?:verdict|denied|name_refused|resolution|status|controller)\.[\w.*>-]+", PAGE))
    assert len(subjects) >= 4
    for subject in subjects:
        wire.find_entry(subject)


def test_the_commands_of_the_page_are_schemas_that_parse() -> None:
    """``yett schemas`` prints JSON Schema, ``--asyncapi`` has a channel a subject, that of denials among them."""
    shown = [
        json.loads(subprocess.check_output([sys.executable, "-m", "services.cli", "schemas", *options], text=True))
        for options in ((), ("--asyncapi",))
    ]
    assert {"VerdictEvent", "FlowLog", "Resolution"} <= shown[0]["$defs"].keys()
    addresses = {channel["address"] for channel in shown[1]["channels"].values()}
    assert {entry.prefix + (">" if entry.prefix.endswith(".") else "") for entry in wire.TABLE} == addresses
