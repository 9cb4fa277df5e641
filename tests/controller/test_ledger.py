"""The ledger's floor and snapshot: what a follower may rely on."""

from __future__ import annotations

from schemas import wire
from schemas.policy import IdentityRow, Revision
from schemas.terms import IdentityId, RevisionNumber
from services.common.messages import Message
from services.controller.ledger import TOMBSTONE_SECONDS, Floor, Ledger, Snapshot, read_snapshot
from services.controller.policy.diff import diff
from tests.bus.toy import Toy

DAY = 24 * 3600.0
EPOCH = "e" * 32


def _plan(ledger: Ledger, rows: dict[str, bytes], now: float) -> Revision | None:
    ledger.plan_rows(diff(ledger.rows, rows), trace="")
    planned = ledger.plan_revision(trace="", now_seconds=now)
    return planned[0] if planned else None


def test_the_floor_rises_when_a_removal_may_have_expired() -> None:
    """While removals are readable the floor stays; once the removal of revision 2 may be gone, the floor is 2: who has
    not seen revision 2 would miss it."""
    toy = Toy()
    for _ in range(3):
        toy.add_pod("ns-0", "node-a")
    ledger = Ledger(Snapshot({}, {}), epoch=EPOCH)
    floors = []
    for step, now in enumerate((0.0, 100.0, 200.0, TOMBSTONE_SECONDS + 99.0, TOMBSTONE_SECONDS + 101.0)):
        if step == 1:
            toy.remove_pod("pod-1")
        else:
            toy.add_pod("ns-0", "node-a")
        revision = _plan(ledger, toy.rows(), now)
        assert revision is not None
        floors.append(revision.floor)
    assert floors == [0, 0, 0, 0, 2]


def test_a_new_leader_starts_at_the_last_revision() -> None:
    """A new leader does not know when its predecessor removed what: its floor is the last revision there was."""
    floor = Floor(RevisionNumber(41))
    assert floor.advance(RevisionNumber(42), 0.0) == 41
    floor.note_removal()
    assert floor.advance(RevisionNumber(43), 1.0) == 41 and floor.advance(RevisionNumber(44), DAY) == 43


def test_a_snapshot_remembers_what_was_removed() -> None:
    """Removals still in the stream are given to the state as empty bodies: numbers given away are not given again."""
    identity = wire.encode(IdentityRow(id=IdentityId(300)))
    snapshot = read_snapshot(
        [
            Message("yett.policy.leader", b"{}", False, 1),
            Message("yett.policy.identity.300", identity, False, 2),
            Message("yett.policy.identity.301", b"", True, 3),
            Message("yett.policy.nobody-knows", b"{}", False, 4),
            Message("yett.policy.revision", b"not json", False, 5),
        ]
    )
    assert snapshot.rows == {"yett.policy.identity.300": identity}
    assert snapshot.remembered == {"yett.policy.identity.300": identity, "yett.policy.identity.301": b""}
    assert snapshot.unknown == ("yett.policy.nobody-knows",) and snapshot.revision is None


def test_a_revision_lost_between_rows_and_revision_is_made_up_for() -> None:
    """A predecessor that died after its last row and before its revision: the next leader, with nothing to change,
    still publishes the revision."""
    rows = Toy(pods={"pod-1": ("ns-0", "node-a")}, policies={"ns-0": 0}).rows()
    dead = Ledger(Snapshot({}, {}), epoch=EPOCH)
    outgoing = dead.plan_rows(diff({}, rows), trace="")
    messages = [Message(one.subject, one.body, False, n + 1) for n, one in enumerate(outgoing)]
    successor = Ledger(read_snapshot(messages), epoch=EPOCH)
    revision = _plan(successor, rows, 0.0)
    assert revision is not None and revision.number == 1
    assert _plan(successor, rows, 0.0) is None


def test_numbers_go_on_after_an_unreadable_revision() -> None:
    """Where the last revision cannot be read, numbers go on above any that can have been given."""
    ledger = Ledger(Snapshot({}, {}), epoch=EPOCH, least_number=500)
    revision = _plan(ledger, Toy(pods={"pod-1": ("ns-0", "node-a")}, policies={"ns-0": 0}).rows(), 0.0)
    assert revision is not None and revision.number == 501
