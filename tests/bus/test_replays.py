"""200 replays under a busy controller: what the digest is for."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from nats.aio.client import Client

from schemas import wire
from schemas.policy import Revision
from schemas.terms import NodeName
from services.common.follow import Follower, Pace
from services.common.messages import Message
from services.nodeagent.replica import Replica, filters
from tests.bus.busy_controller import NODE, digest_for_node
from tests.bus.harness import connected, eventually, run
from tests.bus.toy import find_dangling
from tests.nats_server import NatsServer

pytestmark = pytest.mark.nats

REPLAYS = 200
PACE = Pace(pull_messages=200)
ROOT = Path(__file__).parents[2]


@dataclass
class Naive:
    """The rule that looks right and is not: apply what has come so far at every revision seen."""

    rows: dict[str, bytes] = field(default_factory=dict)
    own = ("yett.policy.leader", "yett.policy.revision", "yett.policy.node.")

    def feed(self, message: Message) -> bool:
        """Take a message; whether it is a revision, at which this rule applies."""
        if not message.subject.startswith(self.own):
            if message.is_delete:
                self.rows.pop(message.subject, None)
            else:
                self.rows[message.subject] = message.body
        return message.subject == wire.SUBJECT_REVISION


@dataclass
class Outcome:
    """Of one replay: what each rule applied first."""

    naive: str
    naive_revision: int
    proven: str
    proven_revision: int
    revisions_seen: int


def test_no_replay_applies_a_state_that_never_existed(nats_server: NatsServer) -> None:
    """200 replays beside a controller that publishes five times as fast as ours would: every state that the replica
    applies is the one published under that number, and closed. The naive rule, fed with the same messages, is wrong
    some of the time."""
    published: dict[int, str] = {}
    outcomes: list[Outcome] = []

    async def scenario() -> None:
        async with connected(nats_server) as (client, _), _busy_controller(nats_server.url, published):
            for _ in range(REPLAYS):
                outcomes.append(await _replay(client))
            last = max(one.proven_revision for one in outcomes)
            await eventually(lambda: last in published)

    run(scenario(), 200)
    wrong = [one for one in outcomes if published[one.naive_revision] != one.naive]
    print(
        f"naive rule wrong in {len(wrong)} of {REPLAYS} replays beside {len(published)} revisions; "
        f"proven at the 1st revision seen: {sum(one.revisions_seen == 1 for one in outcomes)}, "
        f"at the latest at the {max(one.revisions_seen for one in outcomes)}."
    )
    assert [one for one in outcomes if published[one.proven_revision] != one.proven] == []
    assert wrong, "the test shows nothing: no replay was torn"
    assert len(published) > REPLAYS


@asynccontextmanager
async def _busy_controller(url: str, published: dict[int, str]) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bus.busy_controller", url, stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    reading = asyncio.ensure_future(_read_published(process, published))
    try:
        await eventually(lambda: len(published) > 1)
        yield
        assert process.returncode is None, "the busy controller died"
    finally:
        process.kill()
        await process.wait()
        await reading


async def _read_published(process: asyncio.subprocess.Process, published: dict[int, str]) -> None:
    assert process.stdout is not None
    async for line in process.stdout:
        number, _, digest = line.decode().strip().partition(" ")
        if number.isdecimal():
            published[int(number)] = digest


async def _replay(client: Client) -> Outcome:
    """One agent's start: replay until the replica has applied something."""
    replica, naive = Replica(NodeName(NODE)), Naive()
    naive_digest, naive_revision, seen = "", 0, 0
    async with Follower(client, wire.STREAM_POLICY, filters(NodeName(NODE)), pace=PACE) as follower:
        async for item in follower:
            for message in item if isinstance(item, list) else ():
                if naive.feed(message):
                    seen += 1
                    if not naive_digest:
                        naive_digest, naive_revision = digest_for_node(naive.rows), _number(message)
                if replica.feed(message, 0.0):
                    # At this revision the naive rule holds the very rows that the replica has proven.
                    assert find_dangling(naive.rows) == []
                    assert len(replica.state.endpoints) == sum(f".endpoint.{NODE}." in s for s in naive.rows)
                    assert len(replica.state.addresses) == sum(".address." in s for s in naive.rows)
                    proven = digest_for_node(naive.rows)
                    return Outcome(naive_digest, naive_revision, proven, replica.state.number, seen)
    raise AssertionError("a follower never ends")


def _number(message: Message) -> int:
    revision = wire.decode(message.subject, message.body)
    assert isinstance(revision, Revision)
    return revision.number
