"""The agent's memory on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.nodeagent.memory import Memory, MemoryFile
from services.nodeagent.numbers import make_spaces


def make_memory(layout: str) -> Memory:
    return Memory(layout=layout, scene="here", spaces=make_spaces(), bindings={"life-7": "uid-7"}, guesses=["life-7"])


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """Numbers, bindings, rulesets come back as they were, and a second write replaces the first."""
    MemoryFile(tmp_path).write(make_memory("one"))
    MemoryFile(tmp_path).write(make_memory("two"))
    assert MemoryFile(tmp_path).read() == make_memory("two")


@pytest.mark.parametrize("died", ["while writing beside", "before the rename", "never written"])
def test_a_process_that_dies_in_a_write_leaves_a_whole_memory(tmp_path: Path, died: str) -> None:
    """At every point either the file or the one beside it is complete."""
    MemoryFile(tmp_path).write(make_memory("one"))
    path, beside = tmp_path / "numbers", tmp_path / "numbers.new"
    if died == "while writing beside":
        beside.write_bytes(path.read_bytes()[:20])
    elif died == "before the rename":
        path.rename(beside)
    else:
        path.unlink()
    found = MemoryFile(tmp_path).read()
    assert found == (None if died == "never written" else make_memory("one"))


def test_a_memory_that_is_none_is_left_aside(tmp_path: Path) -> None:
    """Garbage is said to be garbage; the agent then starts above everything present."""
    (tmp_path / "numbers").write_bytes(b"\xc1garbage")
    assert MemoryFile(tmp_path).read() is None
