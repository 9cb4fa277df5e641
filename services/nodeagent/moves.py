"""Flows moved into the regions that their endpoints have been given: ``bpf/move.h``, run over all places.

Whoever has written regions calls ``move_flows``; when it returns, every live flow has its place in its endpoint's
region, and no program runs that read those before. To do it twice, or again after a crash, changes nothing.

Deliberately absent: who has which region, and in what steps that changes (``regions``).
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from services.common import bpf

PROGRAM = "program-move_flow"
"""Its pin, beside those of the maps."""
_RUNS = 16_384
"""At once, about 1 ms: what is done again where a signal comes."""


def move_flows(program: Path, places: int) -> None:
    """Wait for the programs that run, then move what lies outside its region. ``places``: how many there are."""
    bpf.wait_for_programs()
    fd = bpf.open_object(program)
    try:
        run = bpf.MarkedRun(fd, 0, name=program.name)
        while run.mark < places:
            _run(run, min(_RUNS, places - run.mark))
    finally:
        os.close(fd)


def _run(run: bpf.MarkedRun, repeat: int) -> None:
    try:
        run(repeat)
    except bpf.BpfError as error:
        if error.errno != errno.EINTR:
            raise
