"""The controller's status: who leads, what is refused, how far every node has come."""

from __future__ import annotations

import msgspec

from schemas import wire
from schemas.status import AgentStatus, ControllerStatus, Problem
from schemas.terms import NodeName, RevisionNumber
from services.controller.board import AGENT_SECONDS, Board


def _agent(node: str, revision: int, epoch: str = "e1") -> AgentStatus:
    return AgentStatus(node=NodeName(node), epoch=epoch, revision=RevisionNumber(revision))


def _leading(revision: int = 7) -> Board:
    board = Board("c", 1)
    board.begin_term("e1", 3, RevisionNumber(revision))
    return board


def test_convergence_counts_nodes_at_or_past_the_revision() -> None:
    """A node enforces revision 7 when its agent says 7 or more under the present epoch; a silent node does not."""
    board = _leading()
    board.note_nodes([NodeName("a"), NodeName("b"), NodeName("c")])
    board.note_agent(_agent("a", 7), 0.0)
    board.note_agent(_agent("b", 6), 0.0)
    status = board.status(0.0)
    assert status.nodes == {"a": 7, "b": 6, "c": 0}
    assert status.convergence == "revision 7 enforced on 1 of 3 nodes"


def test_an_acknowledgement_of_another_epoch_does_not_count() -> None:
    """A node still at revision 900 of a lost stream has not come to revision 7 of this one."""
    board = _leading()
    board.note_agent(_agent("a", 900, epoch="e0"), 0.0)
    assert board.status(0.0).nodes == {"a": 0} and board.last_agent_epoch == "e0"


def test_a_node_without_endpoints_is_forgotten_after_silence() -> None:
    """A node that has neither endpoints nor a speaking agent leaves the count; one with endpoints stays in it."""
    board = _leading()
    board.note_nodes([NodeName("kept")])
    board.note_agent(_agent("kept", 7), 0.0)
    board.note_agent(_agent("gone", 7), 0.0)
    assert set(board.status(AGENT_SECONDS).nodes) == {"kept", "gone"}
    assert set(board.status(AGENT_SECONDS + 1).nodes) == {"kept"}


def test_only_news_are_news() -> None:
    """An agent that repeats itself gives no reason to speak."""
    board = _leading()
    assert board.note_agent(_agent("a", 6), 0.0) and not board.note_agent(_agent("a", 6), 1.0)
    assert board.note_agent(_agent("a", 7), 2.0)


def test_a_status_fits_a_message_whatever_is_wrong() -> None:
    """Ten thousand problems, or a few huge ones, are cut to what fits; the number left out is given."""
    board = _leading()
    for problem, count in ((Problem(object="o", path="p", message="m"), 10_000), (_huge(), 200)):
        board.problems = (problem,) * count
        body = board.encode(0.0)
        status = msgspec.json.decode(body, type=ControllerStatus)
        assert len(body) <= wire.MAX_ROW_BYTES
        assert len(status.problems) + status.counters["problems_not_shown"] == count


def _huge() -> Problem:
    return Problem(object="o", path="p", message="m" * 50_000)
