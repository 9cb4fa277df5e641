"""An API server that is away for two minutes: a controller as shipped says since when, and goes on where it was.

Runs beside the ring's other tests, with servers of its own (``conftest``), and is asked for its outcome as the last.
"""

from __future__ import annotations

import asyncio
import re
import signal
import time
from concurrent.futures import Future
from datetime import datetime
from pathlib import Path

import pytest
from nats.aio.client import Client

from schemas import wire
from schemas.terms import NodeName, RulesetHash
from services.common.messages import Message
from tests.bus.controllers import ask
from tests.bus.harness import connected, stored
from tests.kube.servers import kube_server
from tests.kube.test_lease import POLICIES, fill, mark, moved, reading, until_published
from tests.nats_server import NatsServer

pytestmark = [pytest.mark.kube, pytest.mark.timeout(400)]

AWAY_SECONDS = 120.0
BACK_SECONDS = 15.0
"""From its answer on: a source asks every five seconds."""
KINDS = 8
"""That every server has, the definitions among them: each is called stale."""
PODS = 20
SPLIT = {
    "metadata": {"name": "split"},
    "spec": {"podSelector": {"matchLabels": {"app": "web-3"}}, "policyTypes": ["Egress"]},
}
NODE = NodeName("node-a")
SELECTED = ("web-3", "web-10", "web-17")
SAID = {
    wire.subject_source("NetworkPolicy", "shop", "split"),
    *(wire.subject_endpoint(NODE, "shop", name) for name in SELECTED),
    wire.subject_node(NODE),
    wire.SUBJECT_REVISION,
}
"""What the edit comes to, and new rulesets; the node's row has a digest over its endpoints."""


async def stay_away(folder: Path) -> float:
    """The whole of it; the seconds from the server's answer to the edit's publication."""
    nats = NatsServer(folder)
    nats.start()
    try:
        with kube_server(folder) as kube:
            fill(kube, PODS)
            async with connected(nats) as (client, jetstream), reading(nats, kube, "one") as one:
                await one.until_said("published")
                before = await stored(client, jetstream)
                kube.apiserver.stop(signal.SIGKILL)
                await until_stale(client, AWAY_SECONDS)
                assert moved(before, await stored(client, jetstream)) == set()
                await asyncio.to_thread(kube.start_apiserver)
                answered = time.monotonic()
                await asyncio.to_thread(kube.admin.create, POLICIES, SPLIT)
                await until_published(client, jetstream, wire.subject_source("NetworkPolicy", "shop", "split"))
                seconds = time.monotonic() - answered
                await until_heard(client)
                after = await stored(client, jetstream)
                assert before.keys() <= after.keys() and mark(after) == mark(before)
                assert moved(before, after) - new_rulesets(before, after) == SAID
                assert len(one.said("leading")) == 1
                return seconds
    finally:
        nats.kill()


def new_rulesets(before: dict[str, Message], after: dict[str, Message]) -> set[str]:
    prefix = wire.subject_ruleset(RulesetHash(""))
    return {each for each in after.keys() - before.keys() if each.startswith(prefix)}


async def until_stale(client: Client, seconds: float) -> None:
    """Until every kind is called stale since an instant that is so long ago."""
    async with asyncio.timeout(2 * seconds):
        while len(ages := await read_ages(client)) < KINDS or min(ages) < seconds:  # noqa: ASYNC110
            await asyncio.sleep(0.2)


async def until_heard(client: Client) -> None:
    async with asyncio.timeout(30):
        while (await ask(client)).problems:  # noqa: ASYNC110  the leader's to say
            await asyncio.sleep(0.05)


async def read_ages(client: Client) -> list[float]:
    """For how many seconds each kind has been stale, by the leader's status."""
    told = [re.match(r"stale since (\S+),", each.message) for each in (await ask(client)).problems]
    return [time.time() - datetime.fromisoformat(found[1]).timestamp() for found in told if found]


def test_an_edit_after_two_minutes_without_a_server_is_published_alone(stayed_away: Future[float]) -> None:
    """Killed for 120 s by the status's own ``stale since``: nothing is published, and the leader leads on. Back, the
    next edit is published within seconds, and of all rows only what that edit says is another."""
    seconds = stayed_away.result(350)
    print(f"published {seconds:.2f} s after the server answered")
    assert seconds < BACK_SECONDS
