"""The replica: believes nothing that a digest has not proven, and loses nothing that was."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import wire
from schemas.policy import IdentityRow, Revision
from schemas.terms import IdentityId, NodeName
from services.common.messages import Message
from services.common.signing import Signer, Verifier, make_seed, public_of
from services.controller.ledger import Ledger, Outgoing, Snapshot, read_snapshot
from services.controller.policy.diff import diff
from services.nodeagent.policystate import Table
from services.nodeagent.replica import Applied, Replica, SavedRowsError, filters
from tests.bus.toy import Toy, find_dangling

NODE = NodeName("node-a")


class Log:
    """A stream in memory that keeps one message a subject, written by the real ledger."""

    def __init__(self) -> None:
        self.ledger = Ledger(Snapshot({}, {}), epoch="e" * 32)
        self.messages: list[Message] = []

    def publish(self, rows: dict[str, bytes]) -> list[Message]:
        """Publish the difference; returns the new messages."""
        outgoing = self.ledger.plan_rows(diff(self.ledger.rows, rows), trace="")
        planned = self.ledger.plan_revision(trace="", now_seconds=0.0)
        if planned:
            outgoing.append(planned[1])
        start = len(self.messages)
        self.messages += [_store(out, start + n + 1) for n, out in enumerate(outgoing)]
        return self.messages[start:]

    def replay(self) -> list[Message]:
        """The last message of every subject, in order."""
        last = {message.subject: message for message in self.messages}
        return sorted(last.values(), key=lambda message: message.sequence)


def _store(out: Outgoing, sequence: int) -> Message:
    return Message(
        out.subject,
        out.body,
        wire.HEADER_OPERATION in out.headers,
        sequence,
        uid=out.headers.get(wire.HEADER_UID, ""),
        schema=out.headers[wire.HEADER_SCHEMA],
    )


def _feed(replica: Replica, messages: Iterable[Message], now: float = 0.0) -> list[Applied]:
    return [applied for message in messages if (applied := replica.feed(message, now))]


def _wanted(rows: dict[str, bytes]) -> dict[str, bytes]:
    """What an agent of NODE holds of these rows: all but others' endpoints."""
    own = f"yett.policy.endpoint.{NODE}."
    return {s: body for s, body in rows.items() if not s.startswith("yett.policy.endpoint.") or s.startswith(own)}


def _state_rows(replica: Replica) -> dict[str, bytes]:
    """The proven state encoded again."""
    state = replica.state
    rows = {wire.SUBJECT_CONFIG: wire.encode(state.config)}
    rows |= {wire.subject_namespace(key): wire.encode(row) for key, row in state.namespaces.items()}
    rows |= {wire.subject_identity(key): wire.encode(row) for key, row in state.identities.items()}
    rows |= {wire.subject_address(key): wire.encode(row) for key, row in state.addresses.items()}
    rows |= {wire.subject_ruleset(key): wire.encode(row) for key, row in state.rulesets.items()}
    rows |= {wire.subject_peerset(key): wire.encode(row) for key, row in state.peersets.items()}
    rows |= {wire.subject_endpoint(NODE, *key): wire.encode(row) for key, row in state.endpoints.items()}
    return rows


def _toy(pods: int = 6) -> Toy:
    toy = Toy()
    for number in range(pods):
        toy.add_pod(f"ns-{number % 2}", toy.nodes[number % 2])
    return toy


def test_nothing_is_applied_before_a_revision_matches() -> None:
    """Until a revision's digest equals its own, the replica's state is empty, whatever rows it has."""
    log, replica = Log(), Replica(NODE)
    messages = log.publish(_toy().rows())
    assert _feed(replica, messages[:-1]) == []
    assert replica.state.revision is None and len(replica.state.rulesets) == 0 and not replica.is_proven
    [applied] = _feed(replica, messages[-1:])
    assert applied.state is replica.state and replica.is_proven
    assert _state_rows(replica) == _wanted(_toy().rows())


def test_a_revision_without_all_its_rows_changes_nothing() -> None:
    """For each single row left out, the revision does not match: the state stays, and the replica doubts."""
    log = Log()
    toy = _toy()
    first = log.publish(toy.rows())
    toy.edit_policy("ns-0")
    toy.add_pod("ns-0", NODE)
    second = log.publish(toy.rows())
    own_or_digested = [
        m for m in second[:-1] if not m.subject.startswith("yett.policy.endpoint.") or f".{NODE}." in m.subject
    ]
    for missing in own_or_digested:
        replica = Replica(NODE)
        _feed(replica, first)
        before = replica.state
        assert _feed(replica, [m for m in second if m is not missing]) == [], missing.subject
        assert replica.state is before and not replica.is_proven


def test_endpoints_of_an_older_revision_do_not_pass_for_todays() -> None:
    """A follower that missed its node's row and endpoint rows, but has all cluster-wide ones, applies nothing, although
    its endpoints match the older node row that it holds."""
    log, toy = Log(), _toy()
    replica = Replica(NODE)
    _feed(replica, log.publish(toy.rows()))
    toy.add_pod("ns-0", NODE)
    second = log.publish(toy.rows())
    own = (f"yett.policy.endpoint.{NODE}.", f"yett.policy.node.{NODE}")
    assert _feed(replica, [m for m in second if not m.subject.startswith(own)]) == []
    assert not replica.is_proven


def test_a_state_names_exactly_what_changed() -> None:
    """An applied state lists the subjects, and the keys by table, that differ from the state before; no others."""
    log, toy, replica = Log(), _toy(), Replica(NODE)
    _feed(replica, log.publish(toy.rows()))
    toy.remove_pod("pod-1")
    pod = toy.add_pod("ns-0", NODE)
    [applied] = _feed(replica, log.publish(toy.rows()))
    assert applied.keys["addresses"] == {"10.0.0.1", "10.0.0.7"}
    assert applied.keys["endpoints"] == {("ns-0", "pod-1"), ("ns-0", pod)}
    assert "rulesets" not in applied.keys
    assert wire.subject_address("10.0.0.1") in applied.changed


def test_an_old_state_keeps_its_rows() -> None:
    """Whoever holds a state keeps seeing it as it was, whatever is applied after it."""
    log, toy, replica = Log(), _toy(), Replica(NODE)
    _feed(replica, log.publish(toy.rows()))
    held, addresses = replica.state, dict(replica.state.addresses)
    toy.remove_pod("pod-1")
    toy.add_pod("ns-0", NODE)
    _feed(replica, log.publish(toy.rows()))
    assert dict(held.addresses) == addresses and dict(replica.state.addresses) != addresses


def test_a_replay_sweeps_what_did_not_come_again() -> None:
    """After a reset the state stays until a revision proves the replay; rows that did not come again are gone then."""
    log, toy, replica = Log(), _toy(), Replica(NODE)
    _feed(replica, log.publish(toy.rows()))
    toy.remove_pod("pod-1")
    log.publish(toy.rows())
    before = replica.state
    replica.reset("stream made again")
    messages = [m for m in log.replay() if not m.is_delete]
    assert _feed(replica, messages[:-1]) == [] and replica.state is before
    [applied] = _feed(replica, messages[-1:])
    assert applied.keys["addresses"] == {"10.0.0.1"} and applied.keys["endpoints"] == {("ns-0", "pod-1")}
    assert _state_rows(replica) == _wanted(toy.rows())


def test_a_second_reset_within_a_replay_forgets_nothing_that_was_proven() -> None:
    """A replay that is itself begun again still ends with the difference from the last proven state."""
    log, toy, replica = Log(), _toy(), Replica(NODE)
    _feed(replica, log.publish(toy.rows()))
    toy.remove_pod("pod-3")
    log.publish(toy.rows())
    replica.reset("first")
    _feed(replica, log.replay()[:3])
    replica.reset("second")
    [applied] = _feed(replica, log.replay())
    assert applied.keys["endpoints"] == {("ns-0", "pod-3")}


def test_lasting_doubt_asks_for_a_replay_and_then_less_often() -> None:
    """A mismatch that lasts five seconds asks for a replay; one that did not help doubles the time to the next."""
    log, toy, replica = Log(), _toy(), Replica(NODE)
    _feed(replica, log.publish(toy.rows()))
    toy.add_pod("ns-0", NODE)
    torn = log.publish(toy.rows())[1:]
    _feed(replica, torn, now=100.0)
    assert not replica.wants_replay(104.9) and replica.wants_replay(105.0)
    replica.note_replay()
    replica.reset("doubt")
    assert not replica.wants_replay(1000.0)
    _feed(replica, torn, now=200.0)
    assert not replica.wants_replay(209.9) and replica.wants_replay(210.0)
    replica.reset("doubt")
    assert _feed(replica, log.replay(), now=211.0) and replica.is_proven and not replica.wants_replay(1000.0)


def test_below_the_floor_a_replay_is_wanted_at_once() -> None:
    """A follower whose state is older than the floor may have missed removals that have expired: it replays at once."""
    log, toy, replica = Log(), _toy(), Replica(NODE)
    _feed(replica, log.publish(toy.rows()))
    late = Revision(epoch="e" * 32, number=90, floor=50, digest="0" * 32)
    replica.feed(Message(wire.SUBJECT_REVISION, wire.encode(late), False, 99), 10.0)
    assert replica.wants_replay(10.0)


@pytest.mark.parametrize(
    ("subject", "body", "schema"),
    [
        ("yett.policy.identity.300", b"{", "IdentityRow/1"),
        ("yett.policy.identity.300", b'{"id":"x"}', "IdentityRow/1"),
        ("yett.policy.identity.300", wire.encode(IdentityRow(id=IdentityId(300))), "IdentityRow/2"),
        ("yett.policy.identity.301", wire.encode(IdentityRow(id=IdentityId(300))), "IdentityRow/1"),
        ("yett.policy.ruleset." + "0" * 32, b'{"direction":0,"default":0}', "Ruleset/1"),
    ],
    ids=["not json", "wrong type", "newer schema", "another's subject", "content of another hash"],
)
def test_what_cannot_be_read_is_counted_told_once_and_not_applied(subject: str, body: bytes, schema: str) -> None:
    """A message that does not decode, is of a newer schema, or stands under a wrong subject, is counted, told once per
    kind and skipped; nothing is applied that would need it, and the state stays."""
    log, replica = Log(), Replica(NODE)
    rows = _toy().rows()
    _feed(replica, log.publish(rows))
    before = replica.state
    messages = log.publish(rows | {subject: body})
    for _ in range(2):
        applied = [replica.feed(Message(m.subject, m.body, m.is_delete, m.sequence, schema=schema), 0.0)
                   if m.subject == subject else replica.feed(m, 0.0) for m in messages]  # fmt: skip
        assert applied == [None] * len(messages)
    kind = wire.find_entry(subject).kind
    assert replica.undecodable == {kind: 2} and [p.object for p in replica.problems] == [subject]
    assert replica.state is before
    [applied_after] = _feed(replica, log.publish(_toy(8).rows()))
    assert applied_after.state.number == 3 and replica.problems == ()


def test_a_removal_applies_to_its_own_uid() -> None:
    """A removal that names another pod's uid leaves the address where it is: the next revision still finds it there."""
    log, replica, toy = Log(), Replica(NODE), _toy()
    _feed(replica, log.publish(toy.rows()))
    subject = wire.subject_address("10.0.0.1")
    replica.feed(Message(subject, b"", True, 50, uid="uid-of-another"), 0.0)
    toy.add_pod("ns-0", NODE)
    [applied] = _feed(replica, log.publish(toy.rows()))
    assert "10.0.0.1" in applied.state.addresses
    toy.remove_pod("pod-1")
    [applied] = _feed(replica, log.publish(toy.rows()))
    assert "10.0.0.1" not in applied.state.addresses


def test_the_copy_on_disk_is_the_state_and_is_confirmed_by_its_revision() -> None:
    """Saved and loaded, the state is equal and in force at once; the revision that comes again confirms it; following
    from there applies what came later."""
    log, toy, replica = Log(), _toy(), Replica(NODE)
    _feed(replica, log.publish(toy.rows()))
    data = replica.save("2026-01-01T00:00:00Z")
    resumed = Replica(NODE)
    created, sequence = resumed.load(data)
    assert created == "2026-01-01T00:00:00Z" and log.messages[sequence - 1].subject == wire.SUBJECT_REVISION
    assert _state_rows(resumed) == _state_rows(replica) and resumed.state.number == 1 and not resumed.is_proven
    assert _feed(resumed, [m for m in log.replay() if m.sequence >= sequence]) == [] and resumed.is_proven
    toy.remove_pod("pod-1")
    [applied] = _feed(resumed, log.publish(toy.rows()))
    assert applied.keys["endpoints"] == {("ns-0", "pod-1")}


def test_a_copy_saved_in_doubt_is_the_proven_state() -> None:
    """What is saved while rows of the next revision have half arrived is the state before, not the half."""
    log, toy, replica = Log(), _toy(), Replica(NODE)
    _feed(replica, log.publish(toy.rows()))
    toy.remove_pod("pod-1")
    toy.edit_policy("ns-1")
    messages = log.publish(toy.rows())
    for count in range(len(messages)):
        replica.feed(messages[count - 1], 0.0) if count else None
        resumed = Replica(NODE)
        resumed.load(replica.save("x"))
        assert _state_rows(resumed) == _wanted(_toy().rows())


@pytest.mark.parametrize("damage", [b"", b"\x00", b"garbage"])
def test_a_damaged_copy_is_refused(damage: bytes) -> None:
    """A copy that is unreadable, or another node's, is refused, and the replica is as if there had been none."""
    log, replica = Log(), Replica(NODE)
    _feed(replica, log.publish(_toy().rows()))
    data = replica.save("x")
    for bad, node in ((damage, NODE), (data, NodeName("another"))):
        fresh = Replica(node)
        with pytest.raises(SavedRowsError):
            fresh.load(bad)
        assert fresh.state.revision is None


def test_a_copy_whose_rows_were_altered_is_refused() -> None:
    """A saved copy proves itself by the revision's digest: one altered byte of a row and it is refused."""
    log, replica = Log(), Replica(NODE)
    messages = log.publish(_toy().rows())
    _feed(replica, messages)
    data = replica.save("x").replace(b"uid-pod-1", b"uid-pod-9")
    fresh = Replica(NODE)
    with pytest.raises(SavedRowsError, match="hash"):
        fresh.load(data)
    assert _feed(fresh, messages) and fresh.is_proven


def test_filters_do_not_overlap() -> None:
    """No filter of an agent covers another (the server refuses that), and together they cover all that is digested."""
    found = filters(NodeName("ip-10-0-1-2.ec2.internal"))
    stems = [one.removesuffix(">") for one in found]
    assert not [(a, b) for a in stems for b in stems if a != b and b.startswith(a)]
    assert "yett.policy.endpoint.ip-10-0-1-2_ec2_internal.>" in found
    assert all(any(entry.prefix.startswith(stem) for stem in stems) for entry in wire.TABLE if entry.digested)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), lost=st.floats(0, 0.3), changes=st.integers(1, 25))
def test_any_stream_with_losses_applies_only_published_states(seed: int, lost: float, changes: int) -> None:
    """Whatever messages a follower misses, every state it applies is one that was published, and closed; a replay of
    the whole stream always ends in the last one."""
    dice = random.Random(seed)
    log, toy, replica = Log(), _toy(), Replica(NODE)
    published = {}
    for _ in range(changes):
        toy.change(dice)
        messages = log.publish(toy.rows())
        published[log.ledger.number] = _wanted(toy.rows())
        for message in messages:
            if dice.random() >= lost and replica.feed(message, 0.0):
                assert _state_rows(replica) == published[replica.state.number]
                assert find_dangling(_state_rows(replica)) == []
    replica.reset("replay")
    _feed(replica, log.replay())
    assert replica.is_proven and _state_rows(replica) == published[log.ledger.number]


@given(steps=st.lists(st.dictionaries(st.integers(0, 5000), st.none() | st.integers(), max_size=20), max_size=10))
def test_a_table_is_a_dict_that_never_changes(steps: list[dict[int, int | None]]) -> None:
    """A table after changes equals the dict after the same changes, and the tables before keep their rows."""
    table: Table[int, int] = Table()
    model: dict[int, int] = {}
    history = [(table, dict(model))]
    for changes in steps:
        table = table.with_changes(changes)
        for key, value in changes.items():
            model.pop(key, None) if value is None else model.__setitem__(key, value)
        history.append((table, dict(model)))
    assert all(dict(held) == expected and len(held) == len(expected) for held, expected in history)


def test_revisions_that_the_keys_do_not_vouch_for_change_nothing() -> None:
    """Unsigned or forged: the last good state stays, the status says why, a signed revision ends it."""
    seed = make_seed()
    log, toy = Log(), _toy()
    replica = Replica(NODE, Verifier([public_of(seed)]).find_fault)
    log.ledger = Ledger(Snapshot({}, {}), epoch="e" * 32, term=1, signer=Signer(seed))
    assert len(_feed(replica, log.publish(toy.rows()))) == 1
    good = replica.state

    for signer in (None, Signer(make_seed())):
        toy.add_pod("ns-0", NODE)
        forger = Ledger(read_snapshot(log.replay()), epoch="e" * 32, term=1, signer=signer)
        log.ledger = forger
        assert _feed(replica, log.publish(toy.rows()), 1.0) == []
        assert replica.state is good and not replica.is_proven
        assert [problem.object for problem in replica.problems] == [wire.SUBJECT_REVISION]
    assert replica.revisions_refused == 2

    log.ledger = Ledger(read_snapshot(log.replay()), epoch="e" * 32, term=2, signer=Signer(seed))
    (applied,) = _feed(replica, log.publish(toy.rows()), 2.0)
    assert applied.state.number == 4 and replica.is_proven and replica.problems == ()


def test_a_controller_that_begins_to_sign_says_the_last_revision_again() -> None:
    """The rows are as they were, and still agents that ask for signatures would wait for ever."""
    log, toy, seed = Log(), _toy(), make_seed()
    log.publish(toy.rows())
    log.ledger = Ledger(read_snapshot(log.replay()), epoch="e" * 32, term=2, signer=Signer(seed))
    (revision,) = log.publish(toy.rows())
    assert Signer(seed).has_signed(wire.decode(revision.subject, revision.body))
    log.ledger = Ledger(read_snapshot(log.replay()), epoch="e" * 32, term=3, signer=Signer(seed))
    assert log.publish(toy.rows()) == []
