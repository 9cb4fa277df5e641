"""What an agent believes of the names that other nodes say they resolved."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from schemas import wire
from schemas.policy import Config
from schemas.resolution import Observed, Resolution
from schemas.terms import Default, NodeName
from services.common import nats as bus
from services.common.jetstream import JetStream
from services.common.settings import RecorderSettings
from services.common.streams import ensure_stream, resolution_stream
from services.nodeagent.guard import build_guard
from services.nodeagent.namebus import MAX_FILTERS, HeardName, NameBus, make_filters
from services.nodeagent.names import BusNames, Guard
from tests.nats_server import NatsServer, nats_server

__all__ = ["nats_server"]
CONFIG = Config(ttl_min_seconds=30, ttl_max_seconds=3600, grace_seconds=60, service_cidrs=("10.100.0.0/16",))
ROWS = {"example.com": 1, "*.example.com": 2, "*.s3.amazonaws.com": 3}
OWNED = {"10.1.0.5": 300}


def make_names(config: Config = CONFIG) -> BusNames:
    names = BusNames()
    names.set_tables(config, ROWS, build_guard(config, ["203.0.113.80"]), OWNED)
    return names


def resolution(name: str, *addresses: str, ttl: int = 100, node: str = "node-b") -> Resolution:
    return Resolution(name=name, addresses=addresses, ttl_seconds=ttl, node=NodeName(node))


def hear(names: BusNames, told: Resolution, *, age: float = 0.0, now: float = 1000.0) -> list[tuple[str, int, int]]:
    subject = wire.subject_resolution(told.node, told.name)
    lessons = names.hear(subject, told, age_seconds=age, now=now)
    return [(lesson.address, lesson.row, lesson.expires) for lesson in lessons]


def test_a_name_is_learned_under_the_most_specific_row_that_covers_it() -> None:
    """As the kernel's longest match does."""
    names = make_names()
    assert hear(names, resolution("example.com", "192.0.2.1")) == [("192.0.2.1", 1, 1160)]
    assert hear(names, resolution("a.b.example.com", "192.0.2.2")) == [("192.0.2.2", 2, 1160)]
    assert hear(names, resolution("s3.amazonaws.com", "192.0.2.3")) == []


@pytest.mark.parametrize(("ttl", "expires"), [(0, 1090), (100, 1160), (86400, 4660)])
def test_the_clamp_and_the_grace_are_applied_again(ttl: int, expires: int) -> None:
    """A sender cannot make a name live for a day."""
    assert hear(make_names(), resolution("example.com", "192.0.2.1", ttl=ttl))[0][2] == expires


def test_age_is_taken_off() -> None:
    """History is as old as the server says; what is over is not learned."""
    names = make_names()
    assert hear(names, resolution("example.com", "192.0.2.1"), age=150.0) == [("192.0.2.1", 1, 1010)]
    assert hear(names, resolution("example.com", "192.0.2.2"), age=161.0) == []
    assert names.counters["expired"] == 1


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "169.254.169.254",
        "fd00:ec2::254",
        "::ffff:192.0.2.1",
        "::ffff:c000:201",
        "::192.0.2.1",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "10.100.0.10",
        "203.0.113.80",
        "10.1.0.5",
        "ff02::1",
        "not an address",
    ],
)
def test_the_rebinding_guard_holds_on_the_bus_too(address: str) -> None:
    """Loopback, link-local, metadata, Services, pods, and every form that embeds one: refused, whoever says it."""
    names = make_names()
    assert hear(names, resolution("example.com", address)) == []
    assert names.counters["refused_address"] == 1


@pytest.mark.parametrize("address", ["64:ff9b::a01:5", "2002:a01:5::1", "::10.1.0.5"])
def test_an_address_that_embeds_a_pods_is_as_the_pods_own(address: str) -> None:
    """A packet to its NAT64 or 6to4 form reaches the pod, so no name may have it."""
    names = make_names()
    assert hear(names, resolution("example.com", address)) == []
    assert hear(names, resolution("example.com", "64:ff9b::c000:201")) != []


def test_nat64_of_an_innocent_address_is_learned() -> None:
    """Only the embedded forms of refused addresses are refused."""
    assert not Guard(build_guard(CONFIG, [])).refuses("64:ff9b::c000:201")


def test_a_node_cannot_speak_in_anothers_name() -> None:
    """Who said it is the node in the subject; a body that says otherwise is refused whole."""
    names = make_names()
    told = resolution("example.com", "192.0.2.1", node="node-b")
    subject = wire.subject_resolution(NodeName("node-c"), "example.com")
    assert names.hear(subject, told, age_seconds=0.0, now=1000.0) == []
    assert names.counters["forged"] == 1


def test_what_is_known_for_as_long_is_no_news() -> None:
    """The map is written once a fact, not once a message."""
    names = make_names()
    hear(names, resolution("example.com", "192.0.2.1"))
    assert hear(names, resolution("example.com", "192.0.2.1")) == []
    assert hear(names, resolution("example.com", "192.0.2.1"), now=1001.0) == [("192.0.2.1", 1, 1161)]


def test_a_name_has_at_most_its_limit_of_addresses_until_some_are_over() -> None:
    """addresses_per_name bounds what one name may occupy."""
    names = make_names(Config(addresses_per_name=2))
    told = resolution("example.com", "192.0.2.1", "192.0.2.2", "192.0.2.3")
    assert [lesson[0] for lesson in hear(names, told)] == ["192.0.2.1", "192.0.2.2"]
    assert names.counters["over_addresses_per_name"] == 1
    names.drop_expired(5000.0)
    assert [lesson[0] for lesson in hear(names, resolution("example.com", "192.0.2.3"), now=5000.0)] == ["192.0.2.3"]


def test_an_answer_that_was_handed_over_is_taught_in_full() -> None:
    """The limit of addresses a name is for what others say; this node's own pod was told 400, so it may use 400."""
    names = make_names()
    many = tuple(f"203.0.{n // 250}.{n % 250}" for n in range(400))
    told = Observed(endpoint_id=3, name="a.example.com", addresses=many, ttl_seconds=100, handed_over=True)
    lessons = names.hear_own(told, "node-a", now=1000.0)
    assert {lesson.address for lesson in lessons} == set(many)
    assert {lesson.expires for lesson in lessons} == {1160}


def handed_over(first: int, count: int, *, endpoint: int = 3, name: str = "a.example.com", ttl: int = 100) -> Observed:
    addresses = tuple(f"198.18.{n // 250}.{n % 250}" for n in range(first, first + count))
    return Observed(endpoint_id=endpoint, name=name, addresses=addresses, ttl_seconds=ttl, handed_over=True)


def test_long_answers_fill_a_quota_of_the_endpoint_that_asked_and_no_neighbours() -> None:
    """What 32 names with 1,024 addresses each would put into everybody's half ends at the pod's own quota."""
    names = make_names()
    names.set_quota(2000)
    taught = [names.hear_own(handed_over(n * 1024, 1024, name=f"n{n}.example.com"), "a", now=1000.0) for n in range(32)]
    assert sum(map(len, taught)) == 2000
    assert names.counters["over_endpoint_quota"] == 32 * 1024 - 2000
    assert len(names.hear_own(handed_over(0, 1024, endpoint=4), "a", now=1000.0)) == 1024
    assert len(names.hear_own(handed_over(0, 1024), "a", now=1001.0)) == 1024, "what it has it may renew"


def test_a_pair_is_charged_to_every_endpoint_that_asks_for_it() -> None:
    """One that has no room keeps nobody else's alive: it is paid for by somebody as long as it is there."""
    names = make_names()
    names.set_quota(10)
    assert len(names.hear_own(handed_over(0, 10, endpoint=3), "a", now=1000.0)) == 10
    assert len(names.hear_own(handed_over(0, 10, endpoint=4), "a", now=1100.0)) == 10
    assert names.hear_own(handed_over(10, 10, endpoint=4), "a", now=1100.0) == []
    assert len(names.hear_own(handed_over(10, 10, endpoint=3), "a", now=1161.0)) == 10, "its own are over"
    assert names.hear_own(handed_over(0, 10, endpoint=3), "a", now=1161.0) == []


def test_pairs_are_credited_when_they_expire_or_are_forgotten() -> None:
    """A quota is of what lives."""
    names = make_names()
    names.set_quota(10)
    assert len(names.hear_own(handed_over(0, 10), "a", now=1000.0)) == 10
    assert names.hear_own(handed_over(10, 10), "a", now=1159.0) == []
    assert len(names.hear_own(handed_over(10, 10), "a", now=1160.0)) == 10
    names.forget_name("a.example.com", handed_over(10, 10).addresses, 1)
    assert len(names.hear_own(handed_over(20, 10), "a", now=1160.0)) == 10


@pytest.mark.parametrize(
    "told",
    [
        Observed(endpoint_id=3, name="a.example.com", addresses=("203.0.113.1",)),
        Observed(endpoint_id=3, name="a.example.com", addresses=("203.0.113.1",), handed_over=True, rcode=3),
        Observed(endpoint_id=3, name="un.covered", addresses=("203.0.113.1",), handed_over=True),
        Observed(endpoint_id=3, name="a.example.com", addresses=("169.254.169.254",), handed_over=True),
    ],
    ids=["learned by the kernel", "an error", "covered by nothing", "refused by the guard"],
)
def test_other_observations_teach_nothing(told: Observed) -> None:
    """What pods are told is for people, unless the kernel handed it over and a local pattern covers it."""
    assert make_names().hear_own(told, "node-a", now=1000.0) == []


def test_filters_are_prefix_free_and_bounded() -> None:
    """The server refuses overlapping filters and takes seconds for thousands."""
    assert make_filters(["*.amazonaws.com", "*.s3.us-east-1.amazonaws.com", "example.com"]) == [
        "yett.resolution.*.com.amazonaws.>",
        "yett.resolution.*.com.example",
    ]
    assert len(make_filters(f"n{number}.example.com" for number in range(1000))) <= MAX_FILTERS


@pytest.mark.nats
def test_history_and_live_names_are_heard_once_a_pattern_is_followed(nats_server: NatsServer) -> None:
    """A name published before the pattern comes from the stream, one after it from the wire; others do not come."""

    async def scene() -> None:
        connection = await bus.connect(RecorderSettings(node="n", nats_url=nats_server.url), "test")
        await ensure_stream(JetStream(connection), resolution_stream(max_bytes=1 << 20))
        heard: list[tuple[str, float]] = []
        arrived = asyncio.Event()

        async def listen(told: HeardName) -> None:
            heard.append((told.resolution.name, told.age_seconds))
            arrived.set()

        async def publish(name: str) -> None:
            body = wire.encode(resolution(name, "192.0.2.1"))
            await connection.jetstream().publish(wire.subject_resolution(NodeName("node-b"), name), body)

        names = NameBus(connection, listen)
        await publish("a.example.com")
        await publish("other.test")
        await names.set_patterns(["*.example.com"])
        assert [name for name, _ in heard] == ["a.example.com"]
        assert heard[0][1] < 5.0
        arrived.clear()
        await publish("b.example.com")
        async with asyncio.timeout(10):
            await arrived.wait()
        assert [name for name, _ in heard] == ["a.example.com", "b.example.com"]
        await names.set_patterns(["*.example.com"])
        assert len(heard) == 2
        assert await names.read_all_again()
        assert [name for name, _ in heard] == ["a.example.com", "b.example.com"] * 2
        await names.set_patterns([])
        await publish("c.example.com")
        await bus.flush(connection)
        assert len(heard) == 4
        await bus.close(connection)

    asyncio.run(scene())


@pytest.mark.nats
def test_a_message_that_does_not_decode_is_counted_and_skipped(nats_server: NatsServer, tmp_path: Path) -> None:
    """Garbage from one sender costs nobody a name."""

    async def scene() -> None:
        connection = await bus.connect(RecorderSettings(node="n", nats_url=nats_server.url), "test")
        await ensure_stream(JetStream(connection), resolution_stream(max_bytes=1 << 20))
        heard: list[str] = []

        async def listen(told: HeardName) -> None:
            heard.append(told.resolution.name)

        subject = wire.subject_resolution(NodeName("node-b"), "a.example.com")
        await connection.jetstream().publish(subject, b'{"name": 5}')
        await connection.jetstream().publish(subject, wire.encode(resolution("a.example.com", "192.0.2.1")))
        names = NameBus(connection, listen)
        await names.set_patterns(["*.example.com"])
        assert heard == ["a.example.com"]
        assert names.counters["undecodable_Resolution"] == 1
        await bus.close(connection)
        assert not await names.read_all_again(), "what could not be read is still to be read"

    asyncio.run(scene())


def test_criteria_are_what_names_are_judged_by() -> None:
    """Other settings for names are other criteria; a node that joins another zone, or any other setting, is not."""
    zones = {NodeName(""): "one", NodeName("node-b"): "one", NodeName("node-c"): "two"}
    base = replace(CONFIG, share="zone", zones=zones)
    criteria = make_names(base).criteria
    others = (
        replace(base, share="cluster"),
        replace(base, zones=zones | {NodeName("node-d"): "one"}),
        replace(base, addresses_per_name=7),
        replace(base, ttl_max_seconds=CONFIG.ttl_max_seconds + 1),
        replace(base, learn_anyway_cidrs=("169.254.1.1/32",)),
    )
    assert all(make_names(one).criteria != criteria for one in others)
    same = (
        replace(base, zones=zones | {NodeName("node-d"): "two"}),
        replace(base, node_defaults={NodeName("node-b"): Default.DENY}),
        replace(base, default=Default.DENY),
    )
    assert all(make_names(one).criteria == criteria for one in same)


def told(names: BusNames, one: Resolution, *, sequence: int = 0) -> bool:
    """Whether it teaches anything."""
    subject = wire.subject_resolution(one.node, one.name)
    return bool(names.hear(subject, one, age_seconds=0.0, now=1000.0, sequence=sequence))


def test_a_forgotten_name_takes_its_pairs_along_but_for_those_that_another_name_vouches_for() -> None:
    """What answers here taught goes in any case; what was shared stays where a second name has the same address."""
    names = make_names()
    hear(names, resolution("a.example.com", "192.0.2.1", "192.0.2.2"))
    hear(names, resolution("b.example.com", "192.0.2.1"))
    gone = names.forget_name("a.example.com", ["192.0.2.3"], 9)
    assert gone.learned == {("192.0.2.1", 2), ("192.0.2.2", 2), ("192.0.2.3", 2)}
    assert gone.shared == {("192.0.2.2", 2), ("192.0.2.3", 2)}
    assert names.forget_name("a.example.com", [], 9).learned == frozenset()


def test_what_the_stream_had_before_the_word_is_void_and_what_came_after_is_true() -> None:
    """By its place in the stream; live messages are younger than any word that was heard."""
    names = make_names()
    names.forget_name("example.com", [], 9)
    names.void_node("node-c", 20)
    assert not told(names, resolution("example.com", "192.0.2.1"), sequence=8)
    assert told(names, resolution("example.com", "192.0.2.1"), sequence=10)
    assert told(names, resolution("example.com", "192.0.2.2"))
    assert not told(names, resolution("a.example.com", "192.0.2.3", node="node-c"), sequence=19)
    assert told(names, resolution("a.example.com", "192.0.2.3", node="node-b"), sequence=19)
    assert names.counters["forgotten"] == 2


def test_a_nodes_word_is_dropped_where_no_other_node_repeats_it() -> None:
    """Whoever told last stands for a pair; between the two calls the stream is read again."""
    names = make_names()
    hear(names, resolution("a.example.com", "192.0.2.1", "192.0.2.2", node="node-b"))
    mine = names.void_node("node-b", 9)
    assert told(names, resolution("a.example.com", "192.0.2.1", node="node-c"), sequence=3)
    assert names.drop_told(mine).shared == {("192.0.2.2", 2)}
    assert [one.address for one in names.list_learned(1000.0)] == ["192.0.2.1"]


@pytest.mark.parametrize(
    ("share", "heard"), [("cluster", "own same other"), ("zone", "own same"), ("node", "own"), ("off", "own")]
)
def test_how_far_names_travel(share: str, heard: str) -> None:
    """``share``: by every node, by those of one's zone, by none but oneself."""
    names = BusNames(NodeName("own"))
    config = Config(share=share, zones={NodeName("own"): "1", NodeName("same"): "1", NodeName("other"): "2"})
    names.set_tables(config, ROWS, {}, {})
    nodes = ("own", "same", "other", "unknown")
    believed = [node for node in nodes if told(names, resolution("example.com", f"192.0.2.{len(node)}", node=node))]
    assert believed == ([*heard.split(), "unknown"] if share == "cluster" else heard.split())
