"""What the demo and the tests wait for: a revision is read from a controller that answers, never made up."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from schemas.status import AgentStatus, ControllerStatus
from schemas.terms import NodeName, RevisionNumber
from services.common.bus import Bus
from services.demo.convergence import describe_missing, read_revision
from services.demo.state import DemoError
from services.demo.topology import NODE_A


class BusyController:
    """Answers from the question with this number on."""

    def __init__(self, silent: int) -> None:
        self.silent = silent
        self.asked = 0

    async def ask_controller(self) -> ControllerStatus | None:
        self.asked += 1
        return ControllerStatus(holder="one", revision=RevisionNumber(7)) if self.asked > self.silent else None


def read(controller: BusyController, seconds: float) -> int:
    return asyncio.run(read_revision(cast(Bus, controller), seconds=seconds))


def test_a_controller_that_does_not_answer_yet_is_asked_again() -> None:
    """Taken for revision 0, the next wait would be over before it began: with the revision that is in force already."""
    busy = BusyController(silent=3)
    assert read(busy, 10) == 7
    assert busy.asked == 4


def test_one_that_never_answers_is_an_error() -> None:
    with pytest.raises(DemoError, match="no controller answers for 0 s"):
        read(BusyController(silent=1 << 30), 0)


class Told:
    """What was heard: a controller, and an agent."""

    def __init__(self, *, epoch: str, revision: int, acknowledged: int = 0) -> None:
        nodes = {NODE_A.name: RevisionNumber(acknowledged)}
        self.controller = ControllerStatus(holder="one", epoch="new", revision=RevisionNumber(1), nodes=nodes)
        agent = AgentStatus(node=NodeName(NODE_A.name), epoch=epoch, revision=RevisionNumber(revision))
        self.agents = {NODE_A.name: agent}


@pytest.mark.parametrize(
    ("told", "missing"),
    [
        (Told(epoch="old", revision=7), "node-a is at revision 0 of 1"),
        (Told(epoch="new", revision=0), "node-a is at revision 0 of 1"),
        (Told(epoch="new", revision=1), ""),
        (Told(epoch="old", revision=7, acknowledged=1), ""),
    ],
)
def test_a_revision_of_a_former_epoch_is_none_of_this_one(told: Told, missing: str) -> None:
    """An agent that still enforces what it had on its disk when the stream was lost has not come to revision 1."""
    assert describe_missing(cast(Bus, told), (), 1, (NODE_A,)) == missing
