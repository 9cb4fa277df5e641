"""What a fleet costs the bus: simulated agents that follow addresses, without a kernel; printed, without a bound.

100 agents follow as a node's agent does, with its filters, over a connection each; they keep no state, and answer a
revision that has come behind all its rows. A revision is one pod's address, published as the controller publishes.
The start storm is all of them replaying the stream at once.

    python -m bench.fleet [ADDRESSES]
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import uvloop
from nats.aio.msg import Msg

from bench.bounds import Measured
from schemas import wire
from schemas.policy import AddressRow, IdentityRow, NamespaceRow
from schemas.terms import IdentityId, NodeName
from services.common import nats
from services.common.follow import Follower
from services.common.log import setup_logging
from services.common.messages import CaughtUp
from services.common.settings import CommonSettings
from services.controller.policy.diff import RowChange
from services.demo.state import DemoError
from services.nodeagent.replica import filters
from tests.bus.harness import Lead, connected, leading
from tests.nats_server import NatsServer

AGENTS, WORKERS = 100, 2
ADDRESSES = 100_000
"""Of which 100 agents replay ten million rows."""
REVISIONS = 100
PAUSE_SECONDS = 0.05
STORM_SECONDS = 600.0
"""Beyond it the part fails, with how many agents had not replayed."""
ACK = "bench.ack."
FIRST_ADDRESS = int(ip_address("10.0.0.1"))
IDENTITY = IdentityId(256)


@dataclass
class Heard:
    """What the agents have said. ``number`` 0 is: the stream has been replayed."""

    waited_for: int = 0
    missing: int = AGENTS
    done: asyncio.Event = field(default_factory=asyncio.Event)
    at: list[float] = field(default_factory=list)

    def expect(self, number: int) -> None:
        self.waited_for, self.missing, self.at = number, AGENTS, []
        self.done.clear()

    async def note(self, message: Msg) -> None:
        if int(message.data) == self.waited_for:
            self.at.append(time.perf_counter())
            self.missing -= 1
            if not self.missing:
                self.done.set()


async def measure(addresses: int) -> dict[str, Any]:
    """Every figure: seconds, milliseconds, processor seconds of the server, its memory in millions of bytes."""
    with tempfile.TemporaryDirectory() as folder:
        server = NatsServer(Path(folder))
        server.start()
        try:
            async with connected(server) as (client, jetstream), leading(client, jetstream) as lead:
                heard = Heard()
                await client.subscribe(ACK + ">", cb=heard.note)
                await lead.publish(make_rows(addresses))
                idle = read_process(server.pid)
                async with AsyncExitStack() as workers:
                    storm = await _measure_storm(workers, server.url, heard)
                    after = read_process(server.pid)
                    acks = await _measure_revisions(lead, heard)
                return {
                    "addresses": addresses,
                    "storm": storm,
                    "storm_cpu": after["cpu"] - idle["cpu"],
                    "memory": read_process(server.pid)["peak"],
                    "revisions_cpu": read_process(server.pid)["cpu"] - after["cpu"],
                    "acks": acks,
                }
        finally:
            server.stop()


def make_rows(addresses: int) -> dict[str, bytes]:
    """A namespace, an identity, and so many pods' addresses of it."""
    rows = {
        wire.subject_namespace("app"): wire.encode(NamespaceRow(name="app")),
        wire.subject_identity(IDENTITY): wire.encode(IdentityRow(id=IDENTITY, namespace="app")),
    }
    return rows | dict(make_address(number) for number in range(addresses))


def make_address(number: int, uid: str = "first") -> tuple[str, bytes]:
    address = str(ip_address(FIRST_ADDRESS + number))
    node = NodeName(f"node-{number % AGENTS}")
    row = AddressRow(address=address, identity=IDENTITY, uid=uid, owner=f"app/pod-{number}", node=node)
    return wire.subject_address(address), wire.encode(row)


async def _measure_storm(workers: AsyncExitStack, url: str, heard: Heard) -> dict[str, float]:
    """All agents start at once: seconds until half of them, and the last, have replayed the stream."""
    heard.expect(0)
    started = time.perf_counter()
    for worker in range(WORKERS):
        process = subprocess.Popen([sys.executable, "-m", "bench.fleet", "follow", url, str(worker)])
        workers.callback(process.wait, 10)
        workers.callback(process.terminate)
    try:
        async with asyncio.timeout(STORM_SECONDS):
            await heard.done.wait()
    except TimeoutError as error:
        raise DemoError(f"bus: {heard.missing} of {AGENTS} agents have not replayed in {STORM_SECONDS:g} s") from error
    spent = [at - started for at in heard.at]
    return {"median": statistics.median(spent), "last": spent[-1]}


async def _measure_revisions(lead: Lead, heard: Heard) -> list[float]:
    """Milliseconds from before a change is published to the last agent's answer to its revision."""
    millis = []
    for turn in range(REVISIONS):
        await asyncio.sleep(PAUSE_SECONDS)
        change = RowChange(*make_address(turn, uid=f"turn-{turn}"))
        heard.expect(lead.ledger.number + 1)
        started = time.perf_counter()
        await lead.publisher.publish([change])
        async with asyncio.timeout(STORM_SECONDS):
            await heard.done.wait()
        millis.append((heard.at[-1] - started) * 1e3)
    return millis


def read_process(pid: int) -> dict[str, float]:
    """``cpu``: seconds it has had; ``peak``: millions of bytes it has held at most."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    (line,) = (each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if each.startswith("VmHWM:"))
    ticks = int(fields[11]) + int(fields[12])
    return {"cpu": ticks / os.sysconf("SC_CLK_TCK"), "peak": int(line.split()[1]) * 1024 / 1e6}


async def follow(url: str, worker: int) -> None:
    """A worker process: its share of the agents, until it is ended."""
    setup_logging(CommonSettings(nats_url=url, log_level="error"), "bench")
    async with asyncio.TaskGroup() as group:
        for agent in range(worker, AGENTS, WORKERS):
            group.create_task(_follow_as(url, agent))


async def _follow_as(url: str, agent: int) -> None:
    client = await nats.connect(CommonSettings(nats_url=url, log_level="error"), f"agent-{agent}")
    async with Follower(client, wire.STREAM_POLICY, filters(NodeName(f"node-{agent}"))) as follower:
        is_live = False
        async for item in follower:
            if isinstance(item, CaughtUp) and not is_live:
                is_live = True
                await client.publish(f"{ACK}{agent}", b"0")
            for message in item if isinstance(item, list) else ():
                if is_live and message.subject == wire.SUBJECT_REVISION:
                    await client.publish(f"{ACK}{agent}", b"%d" % _number_of(message.body))


def _number_of(body: bytes) -> int:
    number: int = json.loads(body)["number"]
    return number


def measure_fleet() -> list[Measured]:
    """Rows without a bound."""
    return judge_fleet(uvloop.run(measure(ADDRESSES)))


def judge_fleet(found: dict[str, Any]) -> list[Measured]:
    """Rows for what ``measure`` found; KeyError if a figure is missing."""
    what = f"{AGENTS} agents, {found['addresses']} addresses"
    cuts = statistics.quantiles(found["acks"], n=100)
    replayed = AGENTS * found["addresses"] / found["storm"]["last"]
    storm = f"median {found['storm']['median']:.3g} s, {replayed:.3g} rows a second"
    return [
        Measured(f"{what}: start storm to the last", found["storm"]["last"], "s", None, storm),
        Measured("the server's processor time for it", found["storm_cpu"], "s", None),
        Measured("the server's memory at its peak", found["memory"], "MB", None),
        Measured("revision to last ack, p50", statistics.median(found["acks"]), "ms", None, f"{REVISIONS} revisions"),
        Measured("revision to last ack, p99", cuts[98], "ms", None),
        Measured("the server's processor time a revision", found["revisions_cpu"] / REVISIONS * 1e3, "ms", None),
    ]


def main(asked: list[str]) -> None:
    """Print the figures as JSON; ``follow`` is what it starts itself for."""
    if asked[:1] == ["follow"]:
        uvloop.run(follow(asked[1], int(asked[2])))
    else:
        print(json.dumps(uvloop.run(measure(int(asked[0]) if asked else ADDRESSES)), indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
