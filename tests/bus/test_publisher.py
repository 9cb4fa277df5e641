"""What a leader writes, what it never writes, and who stops it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping

import msgspec
import pytest
from nats.aio.client import Client

from schemas import wire
from schemas.digest import Digest
from schemas.policy import Leader, NodeRow, Revision
from services.common import streams
from services.common.jetstream import JetStream, JetStreamError
from services.common.messages import Message
from services.common.window import FencedError, Window
from services.controller.leader import Term, TermEndedError, make_epoch, parity_of, take_term, watch_marks
from services.controller.policy.diff import diff
from services.controller.publisher import Publisher
from tests.bus.harness import connected, leading, run, stored
from tests.bus.toy import Toy, find_dangling
from tests.nats_server import NatsServer

pytestmark = pytest.mark.nats


def _toy() -> Toy:
    toy = Toy()
    for number in range(6):
        toy.add_pod(f"ns-{number % 2}", toy.nodes[number % 2])
    return toy


def test_a_restart_says_nothing_but_its_mark(nats_server: NatsServer) -> None:
    """A controller that starts again and finds the stream as it wants it writes its mark; no other subject moves."""

    async def scenario() -> None:
        rows = _toy().rows()
        async with connected(nats_server) as (client, jetstream):
            async with leading(client, jetstream) as first:
                revision = await first.publish(rows)
            before = await stored(client, jetstream)
            async with leading(client, jetstream) as second:
                assert await second.publish(rows) is None
            after = await stored(client, jetstream)
        assert revision is not None and revision.number == 1
        assert second.publisher.rows_published == 0
        moved = {subject for subject, message in after.items() if before[subject].sequence != message.sequence}
        assert moved == {wire.SUBJECT_LEADER}
        assert second.term.epoch == first.term.epoch and second.term.number == first.term.number + 1

    run(scenario())


def test_only_what_differs_is_said(nats_server: NatsServer) -> None:
    """A row identical in bytes is never said again: a new pod is its rows, its node's row and a revision."""

    async def scenario() -> None:
        toy = _toy()
        async with connected(nats_server) as (client, jetstream), leading(client, jetstream) as lead:
            await lead.publish(toy.rows())
            before = await stored(client, jetstream)
            pod = toy.add_pod("ns-0", "node-a")
            revision = await lead.publish(toy.rows(), trace="00-" + "1" * 32 + "-" + "2" * 16 + "-01")
            after = await stored(client, jetstream)
        moved = {s for s, m in after.items() if s not in before or before[s].sequence != m.sequence}
        assert moved == {
            wire.subject_endpoint("node-a", "ns-0", pod),
            wire.subject_address("10.0.0.7"),
            wire.subject_node("node-a"),
            wire.SUBJECT_REVISION,
        }
        assert revision is not None and revision.number == 2
        assert all(after[subject].trace == revision.trace for subject in moved)

    run(scenario())


def test_a_removal_is_a_message_that_names_its_owner(nats_server: NatsServer) -> None:
    """A removed pod leaves empty messages with Yett-Op: delete and the pod's uid; its last node row goes with it."""

    async def scenario() -> None:
        toy = Toy()
        pod = toy.add_pod("ns-0", "node-a")
        async with connected(nats_server) as (client, jetstream), leading(client, jetstream) as lead:
            await lead.publish(toy.rows())
            toy.remove_pod(pod)
            await lead.publish(toy.rows())
            after = await stored(client, jetstream)
        for subject in (wire.subject_endpoint("node-a", "ns-0", pod), wire.subject_address("10.0.0.1")):
            assert after[subject].is_delete and after[subject].uid == f"uid-{pod}" and after[subject].body == b""
        assert after[wire.subject_node("node-a")].is_delete

    run(scenario())


def test_a_deposed_leader_is_refused_every_row(nats_server: NatsServer) -> None:
    """A leader that is deep in a pipeline when another writes its mark, and goes on: from that mark on the server
    refuses every row of the old term, 5,000 of them and more, and the stream ends with the mark."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, jetstream), connected(nats_server) as (_, other):
            old = await take_term(jetstream, "old")
            taking: list[asyncio.Future[Term]] = []

            def is_over(sent: int) -> bool:
                if sent == 3_000:
                    taking.append(asyncio.ensure_future(take_term(other, "new")))
                return sent > 3_000 and taking[0].done()

            accepted, refused = await _pipeline(client, dict(old.headers), is_over, then=5_000)
            successor = await taking[0]
            assert len(accepted) >= 3_000 and max(accepted) < successor.fence
            assert len(refused) >= 5_000 and set(refused) == {10071}
            assert (await jetstream.read_stream(wire.STREAM_POLICY)).last_sequence == successor.fence

    run(scenario())


async def _pipeline(
    client: Client, headers: dict[str, str], is_over: Callable[[int], bool], *, then: int
) -> tuple[list[int], list[int]]:
    """Publish until it is over and ``then`` more, whatever is answered, as a leader that does not notice.

    Returns the sequences accepted and the errors of the refused; every row is one or the other."""
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox)
    sent, left = 0, then
    while left > 0:
        # Before it is sent: a row that is stored already when the end is seen is none of those after it.
        left -= is_over(sent)
        await client.publish(f"yett.policy.identity.{sent}", b"{}", reply=inbox, headers=headers)
        sent += 1
        if sent % 500 == 0:
            await client.flush()
    answers = [msgspec.json.decode((await subscription.next_msg(10)).data) for _ in range(sent)]
    await subscription.unsubscribe()
    accepted = [answer["seq"] for answer in answers if "error" not in answer]
    return accepted, [answer["error"]["err_code"] for answer in answers if "error" in answer]


def test_the_publisher_of_a_deposed_leader_ends(nats_server: NatsServer) -> None:
    """Publishing after another's mark raises, names a row, and leaves no row in the stream."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, jetstream), leading(client, jetstream, "old") as old:
            await take_term(jetstream, "new")
            with pytest.raises(FencedError) as raised:
                await old.publish(_toy().rows())
            assert raised.value.subject.startswith("yett.policy.")
            assert set(await stored(client, jetstream)) == {wire.SUBJECT_LEADER}

    run(scenario())


def test_of_two_that_start_at_once_one_leads(nats_server: NatsServer) -> None:
    """A mark is written against the mark that was seen, so concurrent starts give distinct terms, one per success."""

    async def scenario() -> None:
        async with connected(nats_server) as (_, jetstream):
            results = await asyncio.gather(*(_try_term(jetstream, f"c{n}") for n in range(5)))
            terms = [term for term in results if term]
            assert terms and len(set(terms)) == len(terms)

    run(scenario())


async def _try_term(jetstream: JetStream, holder: str) -> int:
    try:
        return (await take_term(jetstream, holder)).number
    except FencedError:
        return 0


def test_a_leader_hears_of_its_successor(nats_server: NatsServer) -> None:
    """Another leader's mark ends the term even while there is nothing to publish; so does a stream made again."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, jetstream):
            for end in ("mark", "stream"):
                term = await take_term(jetstream, "old")
                watching = asyncio.ensure_future(watch_marks(client, term))
                await asyncio.sleep(0)
                if end == "mark":
                    await take_term(jetstream, "new")
                else:
                    await jetstream.call(f"STREAM.DELETE.{wire.STREAM_POLICY}")
                    await _make_stream(jetstream)
                with pytest.raises((TermEndedError, JetStreamError)):
                    await watching

    run(scenario())


async def _make_stream(jetstream: JetStream) -> None:
    await streams.ensure_stream(jetstream, streams.policy_stream())


def test_an_epoch_says_its_parity() -> None:
    """A new epoch's parity differs from that of the epoch agents may still hold; the epoch alone tells it."""
    for _ in range(50):
        first = make_epoch("")
        assert parity_of(make_epoch(first)) != parity_of(first)


class _Killed(Exception):
    """The controller dies here."""


class _DyingWindow(Window):
    """Sends ``least`` messages, and dies at the next."""

    def __init__(self, client: Client, least: int) -> None:
        super().__init__(client)
        self._left = least

    async def publish(self, subject: str, body: bytes, headers: Mapping[str, str]) -> None:
        if self._left == 0:
            raise _Killed
        self._left -= 1
        await super().publish(subject, body, headers)


def test_killed_between_any_two_rows(nats_server: NatsServer) -> None:
    """Killed after k messages, for every k, while a new node joins and a policy is edited: the stream is closed at
    every prefix, and the next leader completes the change to the state that was wanted."""

    async def scenario() -> None:
        toy = _toy()
        before = toy.rows()
        toy.edit_policy("ns-0")
        toy.add_pod("ns-1", "a-new.node")
        toy.remove_pod("pod-2")
        wanted = toy.rows()
        cut, finished = 0, False
        async with connected(nats_server) as (client, jetstream):
            while not finished:
                async with leading(client, jetstream, f"back-{cut}") as lead:
                    await lead.publish(before)
                finished = await _publish_and_die(client, jetstream, wanted, cut)
                rows = _policy_rows(await stored(client, jetstream))
                assert find_dangling(rows) == [], f"after {cut} messages"
                async with leading(client, jetstream, f"next-{cut}") as lead:
                    await lead.publish(wanted)
                    assert lead.ledger.rows == wanted
                found = await stored(client, jetstream)
                assert _policy_rows(found) == wanted
                _assert_proven(found)
                cut += 1
        assert cut > 10

    run(scenario(), 120)


async def _publish_and_die(client: Client, jetstream: JetStream, rows: dict[str, bytes], count: int) -> bool:
    """Lead, and die before message ``count``; whether the change was complete before that."""
    async with leading(client, jetstream) as lead, _DyingWindow(client, count) as window:
        try:
            await Publisher(window, lead.term, lead.ledger).publish(diff(lead.ledger.rows, rows))
        except _Killed:
            await window.drain()
            return False
        return True


def _policy_rows(found: dict[str, Message]) -> dict[str, bytes]:
    """Live policy rows without what the ledger writes itself."""
    own = (wire.SUBJECT_LEADER, wire.SUBJECT_REVISION)
    return {
        subject: message.body
        for subject, message in found.items()
        if not message.is_delete and subject not in own and not subject.startswith("yett.policy.node.")
    }


def _assert_proven(found: dict[str, Message]) -> None:
    """The revision's digest is that of the live digested rows, and every node's row that of its endpoints."""
    digest = Digest()
    endpoints: defaultdict[str, Digest] = defaultdict(Digest)
    for subject, message in found.items():
        if not message.is_delete and wire.find_entry(subject).digested:
            digest.put(subject, message.body)
        if not message.is_delete and subject.startswith("yett.policy.endpoint."):
            endpoints[subject.split(".")[3]].put(subject, message.body)
    revision = wire.decode(wire.SUBJECT_REVISION, found[wire.SUBJECT_REVISION].body)
    assert isinstance(revision, Revision) and revision.digest == digest.hexdigest()
    for token, own in endpoints.items():
        row = wire.decode(f"yett.policy.node.{token}", found[f"yett.policy.node.{token}"].body)
        assert isinstance(row, NodeRow) and (row.digest, row.count) == (own.hexdigest(), len(own))


def test_a_new_stream_has_a_new_epoch_of_the_other_parity(nats_server: NatsServer) -> None:
    """After the loss of the stream the epoch is another, its parity the opposite, and revisions begin at 1 again."""

    async def scenario() -> None:
        async with connected(nats_server) as (client, jetstream):
            async with leading(client, jetstream) as lead:
                await lead.publish(_toy().rows())
            await jetstream.call(f"STREAM.DELETE.{wire.STREAM_POLICY}")
            await _make_stream(jetstream)
            term = await take_term(jetstream, "test", known_epoch=lead.term.epoch)
            assert term.epoch != lead.term.epoch and term.parity != lead.term.parity
            mark = wire.decode(wire.SUBJECT_LEADER, (await stored(client, jetstream))[wire.SUBJECT_LEADER].body)
            assert isinstance(mark, Leader) and mark.parity == parity_of(mark.epoch)

    run(scenario())
