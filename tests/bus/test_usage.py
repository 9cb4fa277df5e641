"""Usage over a real server: a node's reports, a leader that stores them, two that do, and a server that is full."""

from __future__ import annotations

from typing import Any

import msgspec
import nats.errors
import pytest
from nats.aio.client import Client

from schemas import wire
from schemas.policy import Labels
from schemas.terms import Direction, NodeName
from schemas.usage import Contact, NodeUsage, PeerKind, PodUsage, RuleCount, RuleUsage, UsageReport, UsageTaken
from services.common import streams
from services.common.jetstream import JetStream
from services.controller.usagestore import Known, StoreError, UsageStore
from tests.bus.harness import connected, run
from tests.nats_server import NatsServer

pytestmark = pytest.mark.nats
NODE = NodeName("node-a")
KEY = ("NetworkPolicy", "shop", "web")
BUCKET = streams.usage_stream(max_bytes=64 * 1024 * 1024, max_age_seconds=3600)


def find_uid(key: tuple[str, str, str]) -> str | None:
    return "uid-1" if key == KEY else None


def find_labels(kind: PeerKind, name: str) -> Labels | None:
    return {"app": name.rpartition("/")[2]} if kind is PeerKind.POD else None


def make_store(client: Client) -> tuple[UsageStore, dict[str, int]]:
    counters: dict[str, int] = {}
    return UsageStore(client, Known(find_uid, find_labels), counters, keep_seconds=3600), counters


def report(flows: int, *, epoch: int = 10, at: int = 100, node: NodeName = NODE, **more: Any) -> UsageReport:
    rule = RuleCount(
        kind=KEY[0], namespace=KEY[1], name=KEY[2], rule="egress[0]", hash="ab", flows=flows, first=epoch, last=at
    )
    return UsageReport(node=node, epoch=epoch, since=epoch, at=at, rules=(rule,), **more)


def pod_usage(*peers: str) -> PodUsage:
    contacts = tuple(
        Contact(direction=Direction.EGRESS, protocol=6, port=80, kind=PeerKind.POD, peer=peer, flows=1, last=90)
        for peer in peers
    )
    return PodUsage(namespace="shop", pod="web", uid="u", node=NODE, epoch=10, since=20, at=100, contacts=contacts)


async def send(client: Client, sent: UsageReport) -> UsageTaken:
    reply = await client.request(wire.subject_usage(sent.node), wire.encode(sent), timeout=5)
    return msgspec.json.decode(reply.data, type=UsageTaken)


async def read(jetstream: JetStream, subject: str) -> Any:
    message = await jetstream.read_last(wire.STREAM_USAGE, subject)
    return None if message is None else wire.decode(subject, message.body)


RULE = wire.subject_usage_rule(KEY, "uid-1", "ab")


def test_a_report_is_answered_once_it_is_stored(nats_server: NatsServer) -> None:
    """Rules, pods with the labels of their peers, and the node that counts are entries of the bucket."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, jetstream):
            await streams.ensure_stream(jetstream, BUCKET)
            store, counters = make_store(client)
            async with store.listening():
                assert await send(client, report(3, pods=(pod_usage("data/db"),))) == UsageTaken()
            rule, pod = await read(jetstream, RULE), await read(jetstream, wire.subject_usage_pod("shop", "web"))
            node = await read(jetstream, wire.subject_usage_node(NODE))
            assert isinstance(rule, RuleUsage) and (rule.flows, rule.uid, rule.rule) == (3, "uid-1", "egress[0]")
            assert isinstance(pod, PodUsage) and pod.contacts[0].labels == {"app": "db"} and pod.labels_known
            assert node == NodeUsage(node=NODE, epoch=10, since=10, at=100) and counters == {"usage_reports": 1}

    run(scenario())


def test_the_bucket_is_one_for_every_key_value_client(nats_server: NatsServer) -> None:
    """What is stored is read by NATS' own key-value interface."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, jetstream):
            await streams.ensure_stream(jetstream, BUCKET)
            await make_store(client)[0].take(report(3))
            bucket = await client.jetstream().key_value(wire.USAGE_BUCKET)
            entry = await bucket.get(RULE.removeprefix(wire.USAGE_BUCKET_PREFIX))
            assert entry.value is not None and msgspec.json.decode(entry.value, type=RuleUsage).flows == 3

    run(scenario())


def test_twice_late_and_by_two_leaders_is_once(nats_server: NatsServer) -> None:
    """Two that lead at once, each with its own idea of the last version, store what one would have stored."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, jetstream):
            await streams.ensure_stream(jetstream, BUCKET)
            one, two = make_store(client)[0], make_store(client)[0]
            other = NodeName("node-b")
            for store, sent in [
                (one, report(3)),
                (two, report(3)),
                (two, report(4, at=110)),
                (one, report(2, node=other)),
                (one, report(3)),
                (two, report(5, node=other, at=120)),
                (one, report(4, at=110)),
                (two, report(1, epoch=20, at=130)),
                (one, report(4, at=110)),
            ]:
                await store.take(sent)
            rule = await read(jetstream, RULE)
            assert {node: (each.before, each.flows) for node, each in rule.nodes.items()} == {
                NODE: (4, 1),
                other: (0, 5),
            }
            assert (rule.flows, rule.first, rule.last) == (10, 10, 130)

    run(scenario())


def test_rules_of_policies_that_are_gone_are_nobodys(nats_server: NatsServer) -> None:
    """A rule whose policy is no more is not stored; a name that is none is refused, and the rest is taken."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, jetstream):
            await streams.ensure_stream(jetstream, BUCKET)
            store, counters = make_store(client)
            gone = msgspec.structs.replace(report(1).rules[0], name="gone")
            bad = msgspec.structs.replace(pod_usage(), namespace="no name")
            taken = await store.take(msgspec.structs.replace(report(1), rules=(gone,), pods=(bad, pod_usage())))
            assert taken.refused == 1 and counters["usage_entries_refused"] == 1
            assert await read(jetstream, wire.subject_usage_rule(("NetworkPolicy", "shop", "gone"), "", "ab")) is None
            assert await read(jetstream, wire.subject_usage_pod("shop", "web")) is not None

    run(scenario())


def test_a_node_reports_in_its_own_name(nats_server: NatsServer) -> None:
    """A report on another node's subject is not taken, and counted."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, jetstream):
            await streams.ensure_stream(jetstream, BUCKET)
            store, counters = make_store(client)
            async with store.listening():
                with pytest.raises(nats.errors.TimeoutError):
                    await client.request("yett.usage.node-b", wire.encode(report(1)), timeout=0.3)
            assert counters == {"usage_reports_malformed": 1} and await read(jetstream, RULE) is None

    run(scenario())


def test_a_full_bucket_takes_nothing_new_and_loses_nothing(nats_server: NatsServer) -> None:
    """What cannot be stored is not answered, so it comes again; what is stored stays."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, jetstream):
            await streams.ensure_stream(jetstream, BUCKET)
            store, _ = make_store(client)
            await store.take(report(1))
            small = streams.usage_stream(max_bytes=1, max_age_seconds=3600)
            await streams.ensure_stream(jetstream, small)
            with pytest.raises(StoreError):
                await store.take(report(1, pods=(pod_usage(),)))
            assert (await read(jetstream, RULE)).flows == 1
            await streams.ensure_stream(jetstream, BUCKET)
            await store.take(report(1, pods=(pod_usage(),)))
            assert await read(jetstream, wire.subject_usage_pod("shop", "web")) is not None

    run(scenario())
