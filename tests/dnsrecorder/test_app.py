"""The recorder between a ring and a real NATS server."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from schemas import wire
from schemas.policy import DomainRow
from schemas.resolution import Observed, Resolution
from schemas.terms import Reason
from services.common import nats as bus
from services.common.jetstream import JetStream
from services.common.settings import RecorderSettings
from services.common.streams import ensure_stream, policy_stream, resolution_stream
from services.common.telemetry import setup_telemetry
from services.dnsrecorder.app import App
from tests.dnsrecorder.test_dnswire import make_answer
from tests.nats_server import NatsServer

pytestmark = pytest.mark.nats
WAIT_SECONDS = 20.0
LAYOUT = struct.Struct("=QII16s2sHBBBBIBB2sIIII")
RESOLVER = wire.pack_address("10.100.0.10")


class StandInRing:
    """In place of the kernel's ring: yields what the test puts."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes] = asyncio.Queue()
        self.moves = 0

    async def batches(self) -> AsyncIterator[list[bytes]]:
        while True:
            yield [await self.queue.get()]

    def count_waiting_bytes(self) -> int:
        return 0

    def tell(
        self,
        message: bytes,
        *,
        answers: int = 1,
        endpoint: int = 7,
        flags: int = 1,
        piece: int = 0,
        place: int = 0,
        whole: int = 0,
        reason: int = 0,
        suppressed: int = 0,
    ) -> None:
        port = (53).to_bytes(2, "big")
        header = LAYOUT.pack(
            *(1, endpoint, suppressed, RESOLVER, port, len(message), reason, answers, answers, 17, 1),
            *(flags, piece, (4000).to_bytes(2, "big"), place, whole, 0, 0),
        )
        self.queue.put_nowait(header + message)


class Scene:
    """A recorder that runs, its ring, and a listener on everything it says."""

    def __init__(self, connection: Client, ring: StandInRing, app: App, server: NatsServer) -> None:
        self.connection, self.ring, self.app, self.server = connection, ring, app, server
        self.pieces = StandInRing()
        app._handover_capture = self.pieces  # type: ignore[assignment]  # the same seam for the ring of pieces
        self.heard: list[Msg] = []
        self._arrived = asyncio.Event()

    async def hear(self, message: Msg) -> None:
        self.heard.append(message)
        self._arrived.set()

    async def wait_for(self, matches: Callable[[Msg], bool]) -> Msg:
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                for message in self.heard:
                    if matches(message):
                        return message
                self._arrived.clear()
                await self._arrived.wait()

    async def add_pattern(self, pattern: str) -> None:
        row = DomainRow(pattern=pattern)
        await self.connection.jetstream().publish(wire.subject_domain(pattern), wire.encode(row))


@contextlib.asynccontextmanager
async def running(server: NatsServer, folder: Path) -> AsyncIterator[Scene]:
    settings = RecorderSettings(node="node.a", nats_url=server.url, state_dir=str(folder))
    setup_telemetry(settings, "dnsrecorder")
    connection = await bus.connect(settings, "test")
    jetstream = JetStream(connection)
    await ensure_stream(jetstream, policy_stream())
    await ensure_stream(jetstream, resolution_stream(max_bytes=1 << 20))
    own = await bus.connect(settings, "recorder")
    app, ring = App(settings, own), StandInRing()
    app._capture = ring  # type: ignore[assignment]  # the one seam: everything behind the ring is real
    scene = Scene(connection, ring, app, server)
    await connection.subscribe("yett.resolution.>", cb=scene.hear)
    await connection.subscribe("yett.observed.>", cb=scene.hear)
    await bus.flush(connection)
    task = asyncio.create_task(app.run())
    try:
        yield scene
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await bus.close(own)
        await bus.close(connection)


def is_resolution_of(name: str) -> Callable[[Msg], bool]:
    return lambda message: message.subject == wire.subject_resolution("node.a", name)  # type: ignore[arg-type]


def test_a_covered_answer_becomes_a_resolution_with_its_time_to_live(nats_server: NatsServer, tmp_path: Path) -> None:
    """Subject by reversed labels, body by the table, Nats-TTL of clamped TTL and grace, a traceparent."""

    async def scene() -> None:
        async with running(nats_server, tmp_path) as scene:
            await scene.add_pattern("*.example.com")
            scene.ring.tell(make_answer("a.example.com.", ("a.example.com.", "A", "192.0.2.1")))
            message = await scene.wait_for(is_resolution_of("a.example.com"))
            resolution = wire.decode(message.subject, message.data)
            assert isinstance(resolution, Resolution)
            assert (resolution.name, resolution.addresses, resolution.ttl_seconds, resolution.node) == (
                "a.example.com",
                ("192.0.2.1",),
                60,
                "node.a",
            )
            assert message.headers is not None
            assert int(message.headers["Nats-TTL"].rstrip("s")) == 120
            assert message.headers["traceparent"].startswith("00-")

    asyncio.run(scene())


def test_every_answer_is_observed_and_an_uncovered_one_is_not_shared(nats_server: NatsServer, tmp_path: Path) -> None:
    """The agent of the same node hears every name; the cluster only those that a pattern covers."""

    async def scene() -> None:
        async with running(nats_server, tmp_path) as scene:
            await scene.add_pattern("example.com")
            scene.ring.tell(make_answer("httpbin.org.", ("httpbin.org.", "A", "192.0.2.5")), endpoint=9)
            scene.ring.tell(make_answer("example.com.", ("example.com.", "A", "192.0.2.1")))
            await scene.wait_for(is_resolution_of("example.com"))
            observed = [wire.decode(m.subject, m.data) for m in scene.heard if m.subject == "yett.observed.node_a"]
            assert isinstance(observed[0], Observed)
            assert (observed[0].endpoint_id, observed[0].name) == (9, "httpbin.org")
            assert not any(is_resolution_of("httpbin.org")(message) for message in scene.heard)

    asyncio.run(scene())


def test_answers_given_while_nats_is_away_are_stored_when_it_returns(nats_server: NatsServer, tmp_path: Path) -> None:
    """Buffered within the bound, stored after the return, nothing lost."""

    async def scene() -> None:
        async with running(nats_server, tmp_path) as scene:
            await scene.add_pattern("*.example.com")
            scene.ring.tell(make_answer("a.example.com.", ("a.example.com.", "A", "192.0.2.1")))
            await scene.wait_for(is_resolution_of("a.example.com"))
            await asyncio.to_thread(nats_server.stop, signal.SIGKILL)
            for number in range(5):
                name = f"n{number}.example.com."
                scene.ring.tell(make_answer(name, (name, "A", "192.0.2.7")))
            await asyncio.to_thread(nats_server.start)
            jetstream = JetStream(scene.connection)
            async with asyncio.timeout(WAIT_SECONDS):
                while not scene.connection.is_connected or (  # noqa: ASYNC110 - the server is asked, nothing tells
                    (await jetstream.read_stream(wire.STREAM_RESOLUTION)).last_sequence < 6
                ):
                    await asyncio.sleep(0.05)

    asyncio.run(scene())


def test_a_mismatch_with_the_kernel_is_counted(nats_server: NatsServer, tmp_path: Path) -> None:
    """The kernel says it read two addresses, the parser finds one."""

    async def scene() -> None:
        async with running(nats_server, tmp_path) as scene:
            scene.ring.tell(make_answer("x.test.", ("x.test.", "A", "192.0.2.1")), answers=2)
            await scene.wait_for(lambda message: message.subject.startswith("yett.observed"))
            assert scene.app._counters["mismatch"] == 1

    asyncio.run(scene())


def test_more_addresses_than_the_kernels_byte_can_count_are_no_mismatch(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """255 stands for as many and more; of fewer each one is told."""

    async def scene() -> None:
        async with running(nats_server, tmp_path) as scene:
            many = [("x.test.", "A", f"198.18.{n // 250}.{n % 250 + 1}") for n in range(268)]
            scene.ring.tell(make_answer("x.test.", *many), answers=255)
            scene.ring.tell(make_answer("y.test.", *(("y.test.", *one[1:]) for one in many[:255])), answers=255)
            scene.ring.tell(make_answer("z.test.", *(("z.test.", *one[1:]) for one in many[:254])), answers=255)
            await scene.wait_for(lambda message: b"z.test" in message.data)
            assert scene.app._counters["mismatch"] == 1

    asyncio.run(scene())


def test_a_record_that_is_no_event_is_counted_and_skipped(nats_server: NatsServer, tmp_path: Path) -> None:
    """Garbage in the ring costs that record and nothing else."""

    async def scene() -> None:
        async with running(nats_server, tmp_path) as scene:
            scene.ring.queue.put_nowait(b"garbage")
            scene.ring.tell(make_answer("x.test.", ("x.test.", "A", "192.0.2.1")))
            await scene.wait_for(lambda message: message.subject.startswith("yett.observed"))
            assert scene.app._counters["event_malformed"] == 1

    asyncio.run(scene())


def test_an_answer_in_pieces_is_taught_and_published_with_its_delay(nats_server: NatsServer, tmp_path: Path) -> None:
    """What the kernel could not read: all addresses to the own agent, the name to the cluster, the time counted."""

    async def scene() -> None:
        async with running(nats_server, tmp_path) as scene:
            await scene.add_pattern("long.test")
            records = [("long.test.", "A", f"198.18.{n // 250}.{n % 250 + 1}") for n in range(400)]
            message = make_answer("long.test.", *records)
            stream = len(message).to_bytes(2, "big") + message
            scene.pieces.tell(stream[:1000], piece=1, place=500, whole=500)
            scene.pieces.tell(stream[1000:], piece=2, place=1500)
            told = await scene.wait_for(is_resolution_of("long.test"))
            assert len(wire.decode(told.subject, told.data).addresses) == 100  # type: ignore[attr-defined]
            (seen,) = [wire.decode(m.subject, m.data) for m in scene.heard if m.subject == "yett.observed.node_a"]
            assert isinstance(seen, Observed)
            assert seen.handed_over and len(seen.addresses) == 400
            counted = scene.app._count()
            assert (counted["handover_messages"], counted["handover_learned"], counted["handover_pieces"]) == (1, 1, 2)
            assert counted["handover_delay_micros_max"] == counted["handover_delay_micros_total"] > 0

    asyncio.run(scene())


def test_a_stream_goes_on_after_a_clean_stop_and_not_after_a_kill(nats_server: NatsServer, tmp_path: Path) -> None:
    """What waited in the ring meanwhile is read from where the last one ended; a file that is old says nothing."""

    def tell(scene: Scene, name: str, *, piece: int, place: int) -> int:
        message = make_answer(f"{name}.test.", (f"{name}.test.", "A", "192.0.2.1"))
        stream = len(message).to_bytes(2, "big") + message
        scene.pieces.tell(stream, piece=piece, place=place, whole=place)
        return place + len(stream)

    async def wait_for(scene: Scene, name: str) -> None:
        await scene.wait_for(lambda message: message.subject == "yett.observed.node_a" and name in str(message.data))

    async def scene() -> None:
        streams = tmp_path / "recorder-streams.msgpack"
        async with running(nats_server, tmp_path) as scene:
            end = tell(scene, "one", piece=1, place=500)
            await wait_for(scene, "one.test")
        async with running(nats_server, tmp_path) as scene:
            end = tell(scene, "two", piece=2, place=end)
            await wait_for(scene, "two.test")
            assert not streams.exists(), "a kill from here on leaves no place that is not true any more"
        streams.unlink()
        async with running(nats_server, tmp_path) as scene:
            tell(scene, "three", piece=2, place=end)
            tell(scene, "four", piece=1, place=9000)
            await wait_for(scene, "four.test")
            assert scene.app._count()["handover_unannounced"] == 1

    asyncio.run(scene())


def test_a_whole_answer_that_the_kernel_gave_up_is_taught_too(nats_server: NatsServer, tmp_path: Path) -> None:
    """It comes on the ring of answers, learned in part or not at all; the own agent is told that it is to teach it."""

    async def scene() -> None:
        async with running(nats_server, tmp_path) as scene:
            await scene.add_pattern("deep.test")
            async with asyncio.timeout(WAIT_SECONDS):
                while not scene.app._recorder.patterns.covers("deep.test"):  # noqa: ASYNC110 - followed, not told
                    await asyncio.sleep(0.01)
            records = [("deep.test.", "A", f"192.0.2.{n}") for n in range(1, 4)]
            deep, reason = make_answer("deep.test.", *records), Reason.LEARN_HANDED_OVER
            scene.ring.tell(deep, answers=1, reason=reason, suppressed=2)
            await scene.wait_for(is_resolution_of("deep.test"))
            scene.ring.tell(make_answer("far.test.", ("far.test.", "A", "192.0.2.9")), flags=5, reason=reason)
            scene.ring.tell(make_answer("none.test."), answers=0, reason=reason)
            scene.ring.tell(make_answer("end.test.", ("end.test.", "A", "192.0.2.8")))
            await scene.wait_for(lambda message: b"end.test" in message.data)
            told = [wire.decode(m.subject, m.data) for m in scene.heard if m.subject == "yett.observed.node_a"]
            assert [(one.name, one.handed_over, len(one.addresses)) for one in told if isinstance(one, Observed)] == [
                *(("deep.test", True, 3), ("far.test", False, 1), ("end.test", False, 1)),
            ]
            counted = scene.app._count()
            assert (counted["learn_handed_over"], counted["handover_learned"], counted["from_outside"]) == (3, 1, 1)
            assert (counted["events"], counted["learned"], counted["suppressed"]) == (4, 3 + 1 + 1, 2)
            assert 0 < counted["handover_delay_micros_max"] < counted["handover_delay_micros_total"]

    asyncio.run(scene())


def test_what_a_resolver_outside_says_is_not_published(nats_server: NatsServer, tmp_path: Path) -> None:
    """It serves the pod that asked: neither a whole message nor one in pieces becomes a fact of the cluster's."""

    async def scene() -> None:
        async with running(nats_server, tmp_path) as scene:
            await scene.add_pattern("*.test")
            outside = make_answer("a.test.", ("a.test.", "A", "192.0.2.1"))
            scene.ring.tell(outside, flags=5)
            scene.pieces.tell(outside, flags=5, piece=3, whole=len(outside))
            scene.ring.tell(make_answer("b.test.", ("b.test.", "A", "192.0.2.2")))
            await scene.wait_for(is_resolution_of("b.test"))
            async with asyncio.timeout(WAIT_SECONDS):
                while scene.app._counters["from_outside"] < 2:  # noqa: ASYNC110 - counted, not told
                    await asyncio.sleep(0.01)
            assert not any(is_resolution_of("a.test")(message) for message in scene.heard)
            observed = [wire.decode(m.subject, m.data) for m in scene.heard if m.subject == "yett.observed.node_a"]
            assert not any(one.handed_over for one in observed if isinstance(one, Observed))

    asyncio.run(scene())


def test_an_answer_without_an_address_reaches_the_own_agent(nats_server: NatsServer, tmp_path: Path) -> None:
    """As far as the kernel read it: name, code, resolver, and how many it held back; the cluster hears nothing."""

    async def scene() -> None:
        async with running(nats_server, tmp_path) as scene:
            refused = make_answer("a.test.", rcode=3)
            cut = (refused[:6] + b"\0\0\0\x09" + refused[10:]).ljust(300, b"\xc0")
            scene.ring.tell(refused, answers=0, reason=Reason.LEARN_RCODE, suppressed=5)
            scene.ring.tell(cut, answers=0, reason=Reason.LEARN_RCODE)
            scene.ring.tell(make_answer("b.test.", kind="AAAA"), answers=0, reason=Reason.LEARN_NO_ADDRESS)
            await scene.wait_for(lambda message: b"b.test" in message.data)
            told = [wire.decode(message.subject, message.data) for message in scene.heard]
            assert [
                (one.name, one.rcode, one.reason, one.resolver, one.suppressed)
                for one in told
                if isinstance(one, Observed)
            ] == [
                ("a.test", 3, Reason.LEARN_RCODE, "10.100.0.10", 5),
                ("a.test", 3, Reason.LEARN_RCODE, "10.100.0.10", 0),
                ("b.test", 0, Reason.LEARN_NO_ADDRESS, "10.100.0.10", 0),
            ]
            assert len(told) == 3
            counted = scene.app._count()
            assert (counted["learn_rcode"], counted["learn_no_address"], counted.get("events", 0)) == (2, 1, 0)

    asyncio.run(scene())


def test_a_refusal_in_pieces_is_told_too(nats_server: NatsServer, tmp_path: Path) -> None:
    """Of a covered name; not where the other family has addresses, and not of a cut answer."""

    async def scene() -> None:
        async with running(nats_server, tmp_path) as scene:
            await scene.add_pattern("*.test")
            scene.ring.tell(make_answer("a.test.", ("a.test.", "A", "192.0.2.1")))
            await scene.wait_for(is_resolution_of("a.test"))
            cut = bytearray(make_answer("c.test."))
            cut[2] |= 2
            for message in (
                make_answer("a.test.", kind="AAAA"),
                bytes(cut),
                make_answer("d.example.", rcode=3),
                make_answer("e.test.", rcode=5),
            ):
                scene.pieces.tell(message, piece=3, whole=len(message))
            await scene.wait_for(lambda message: b"e.test" in message.data)
            told = [wire.decode(message.subject, message.data) for message in scene.heard]
            refused = [one for one in told if isinstance(one, Observed) and one.reason]
            assert [(one.name, one.rcode, one.reason, one.handed_over) for one in refused] == [
                ("e.test", 5, Reason.LEARN_RCODE, False)
            ]

    asyncio.run(scene())
