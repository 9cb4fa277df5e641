"""What the demo and the tests wait for: a revision is read from a controller that answers, never made up."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from schemas.status import ControllerStatus
from schemas.terms import RevisionNumber
from services.common.bus import Bus
from services.demo.convergence import read_revision
from services.demo.state import DemoError


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
