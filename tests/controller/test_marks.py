"""What is marked is seen to in the order in which it was marked."""

from __future__ import annotations

from services.controller.marks import Marks


def test_marks_keep_the_order_of_arrival() -> None:
    """Marked twice is marked once, at its first place; what was seen to comes last when it is marked again."""
    marks: Marks[str] = Marks()
    marks.add("b")
    marks.add_all(["a", "b", "c"])
    assert list(marks) == ["b", "a", "c"]
    del marks["b"]
    marks.add("b")
    assert list(marks) == ["a", "c", "b"]
