"""Verdicts between a ring and a real server: what is told, what is stored, and that nothing is lost unseen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from schemas import wire
from schemas.policy import DomainPeer, PortRange, Ruleset, RulesetRule
from schemas.resolution import Observed
from schemas.terms import Action, Default, Direction, NodeName, Reason, RefusalReason, Verdict
from schemas.verdict import NameRefused, VerdictEvent
from services.common import nats as bus
from services.common.jetstream import JetStream
from services.common.settings import CommonSettings
from services.common.streams import ensure_stream, verdict_stream
from services.nodeagent.verdictbus import BUSY, BUSY_ONE_IN, QUEUE, Shares, VerdictBus
from services.nodeagent.verdicts import PodName, Storyteller
from tests.bus.harness import eventually, run
from tests.nats_server import NatsServer
from tests.nodeagent.records import make_record

pytestmark = pytest.mark.nats
NODE = NodeName("node-a")
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server of this test's own, because it is stopped."""
    server = NatsServer(tmp_path)
    server.start()
    yield server
    server.stop()


NAMED = Ruleset(
    direction=Direction.EGRESS,
    default=Default.DENY,
    network_policy=(
        RulesetRule(
            action=Action.ACCEPT,
            peers=(DomainPeer(pattern="*.example.com"),),
            ports=(PortRange(protocol=6),),
            sources=(),
        ),
    ),
)


def make_storyteller() -> Storyteller:
    told = Storyteller(NODE)
    told.set_state(
        pods={4: PodName("app", "web", 6), 5: PodName("app", "db", 7)},
        rulesets={6: NAMED},
        patterns={9: "*.example.com"},
        owners={},
    )
    told.note_applied(17, TRACE)
    return told


class Scene:
    """A verdict bus that publishes, and a listener on all it says."""

    def __init__(self, client: Client, verdicts: VerdictBus) -> None:
        self.client, self.verdicts = client, verdicts
        self.heard: list[tuple[str, VerdictEvent]] = []
        self.traces: set[str] = set()

    async def on_message(self, message: Msg) -> None:
        event = wire.decode(message.subject, message.data)
        assert isinstance(event, VerdictEvent)
        self.heard.append((message.subject, event))
        self.traces.add((message.headers or {}).get(wire.HEADER_TRACE, ""))

    def take(self, record: bytes, now: float = 0.0) -> None:
        self.verdicts.take(record, now)

    def on(self, prefix: str) -> list[VerdictEvent]:
        return [event for subject, event in self.heard if subject.startswith(prefix)]


@asynccontextmanager
async def scene(server: NatsServer, shares: Shares | None = None) -> AsyncIterator[Scene]:
    client = await bus.connect(CommonSettings(nats_url=server.url), "test")
    await ensure_stream(JetStream(client), verdict_stream(max_bytes=1 << 20, max_age_seconds=60))
    made = Scene(client, VerdictBus(NODE, make_storyteller(), shares))
    await client.subscribe("yett.verdict.>", cb=made.on_message)
    await client.subscribe("yett.denied.>", cb=made.on_message)
    tasks = [asyncio.create_task(made.verdicts.run(client)), asyncio.create_task(made.verdicts.tick())]
    for _ in range(2):  # once for the task to subscribe, once for the server to know
        await bus.flush(client)
    try:
        yield made
    finally:
        for task in tasks:
            task.cancel()
        await bus.close(client)


def test_a_denial_is_told_and_stored_an_allowed_flow_only_told(nats_server: NatsServer) -> None:
    """``yett.denied.>`` is the stream's; both carry the trace of the span that applied the revision."""

    async def scenario() -> None:
        async with scene(nats_server) as one:
            one.take(make_record())
            one.take(make_record(verdict=Verdict.ALLOW))
            one.take(make_record(verdict=Verdict.AUDIT))
            await eventually(lambda: len(one.heard) == 5)
            assert {event.verdict for event in one.on("yett.verdict.")} == set(Verdict)
            assert {event.verdict for event in one.on("yett.denied.node-a.app.web.")} == {Verdict.DENY, Verdict.AUDIT}
            assert one.traces == {TRACE} == {event.applied_trace for _, event in one.heard}
            stream = await JetStream(one.client).read_stream(wire.STREAM_VERDICT)
            assert stream.last_sequence == 2

    run(scenario())


def test_like_denials_are_counted_while_nobody_watches_and_told_when_the_window_ends(nats_server: NatsServer) -> None:
    """One event at once, one with the count."""

    async def scenario() -> None:
        async with scene(nats_server, Shares(denial_seconds=0.3)) as one:
            now = asyncio.get_running_loop().time()
            for port in range(1000):
                one.take(make_record(source_port=port), now)
            await eventually(lambda: len(one.on("yett.verdict.")) == 2)
            assert [event.count for event in one.on("yett.verdict.")] == [1, 999]
            assert one.verdicts.counters["verdicts_aggregated"] == 999

    run(scenario())


def test_allowed_flows_are_sampled_by_the_ratio_and_the_rest_is_counted(nats_server: NatsServer) -> None:
    """Denials never are."""

    async def scenario() -> None:
        async with scene(nats_server, Shares(allow_ratio=0.1)) as one:
            for port in range(1000):
                one.take(make_record(verdict=Verdict.ALLOW, source_port=port))
            one.take(make_record())
            await eventually(lambda: len(one.on("yett.verdict.")) == 101)
            assert one.verdicts.counters["verdicts_sampled_out"] == 900

    run(scenario())


def test_while_nats_is_away_nothing_blocks_and_what_is_left_out_is_counted(nats_server: NatsServer) -> None:
    """Of a flood of allowed flows the first are kept, then one in a few; all of them are accounted for."""

    async def scenario() -> None:
        async with scene(nats_server) as one:
            nats_server.stop()
            await eventually(lambda: not one.client.is_connected)
            for number in range(4 * QUEUE):
                one.take(make_record(verdict=Verdict.ALLOW, source_port=number % 65536))
            one.take(make_record())
            nats_server.start()
            kept = BUSY + (4 * QUEUE - BUSY) // BUSY_ONE_IN
            await eventually(lambda: len(one.on("yett.verdict.")) == kept + 1)
            assert one.verdicts.counters["verdicts_left_out_busy"] == 4 * QUEUE - kept
            assert one.verdicts.counters["verdicts_dropped"] == 0

    run(scenario())


def test_at_the_end_counts_are_told_though_their_window_is_open(nats_server: NatsServer) -> None:
    """An agent that stops keeps nothing to itself."""

    async def scenario() -> None:
        async with scene(nats_server, Shares(denial_seconds=3600)) as one:
            for _ in range(3):
                one.take(make_record())
            await one.verdicts.drain(one.client)
            await eventually(lambda: sum(event.count for event in one.on("yett.verdict.")) == 3)

    run(scenario())


def test_a_name_that_dns_refuses_is_told_and_stored(nats_server: NatsServer) -> None:
    """With the trace of the answer; not at every question, not of an uncovered name, and of the sinks each hears it."""

    async def scenario() -> None:
        async with scene(nats_server) as one:
            heard: list[Msg] = []
            sunk: list[NameRefused] = []
            one.verdicts.refused_sinks.append(sunk.append)

            async def on_refused(message: Msg) -> None:
                heard.append(message)

            await one.client.subscribe("yett.name_refused.node-a.>", cb=on_refused)
            sinkhole, negative = int(Reason.LEARN_REFUSED_ADDRESS), int(Reason.LEARN_RCODE)
            for observed in (
                Observed(endpoint_id=4, name="a.example.com", addresses=("0.0.0.0",), reason=sinkhole),
                Observed(endpoint_id=4, name="a.example.com", addresses=("0.0.0.0",), reason=sinkhole),
                Observed(endpoint_id=4, name="b.example.org", addresses=(), rcode=3, reason=negative),
                Observed(endpoint_id=5, name="b.example.com", addresses=(), rcode=3, reason=negative),
                Observed(endpoint_id=4, name="b.example.com", addresses=(), rcode=3, reason=negative),
            ):
                headers = wire.headers_for(observed, trace=TRACE)
                await one.client.publish(wire.subject_observed(NODE), wire.encode(observed), headers=headers)
            await eventually(lambda: len(heard) == 2)
            refused = [wire.decode(message.subject, message.data) for message in heard]
            assert refused == sunk
            assert [(event.pod, event.name, event.reason) for event in sunk] == [
                ("web", "a.example.com", RefusalReason.SINKHOLE),
                ("web", "b.example.com", RefusalReason.NXDOMAIN),
            ]
            assert {(message.headers or {})[wire.HEADER_TRACE] for message in heard} == {TRACE}
            assert (await JetStream(one.client).read_stream(wire.STREAM_VERDICT)).last_sequence == 2
            await one.verdicts.drain(one.client)
            assert sum(event.count for event in sunk) == one.verdicts.counters["names_refused_by_dns"] == 3

    run(scenario())
