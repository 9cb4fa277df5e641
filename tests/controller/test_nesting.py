"""YAML that would be too much once read is refused before it harms."""

from __future__ import annotations

import pytest
import yaml

from services.controller.manifests import read_documents
from services.controller.nesting import DEPTH_MAX, NODES_MAX, find_excess, is_too_deep


def nest(levels: int, *, form: str) -> str:
    """A document that is nested so deeply, in one of the ways that YAML has."""
    if form == "flow":
        return "[" * levels + "]" * levels
    if form == "maps":
        return "{a: " * levels + "1" + "}" * levels
    if form == "dashes":
        return "- " * levels + "1"
    return "\n".join(" " * level + "a:" for level in range(levels))


@pytest.mark.parametrize("form", ["flow", "maps", "dashes", "blocks"])
def test_depth_is_told_before_the_document_is_composed(form: str) -> None:
    """The C loader dies of a document of 100,000 levels; a problem is reported in its place."""
    assert not is_too_deep(nest(DEPTH_MAX, form=form))
    assert is_too_deep(nest(DEPTH_MAX + 1, form=form))
    documents, problems = read_documents("deep.yaml", nest(2_000, form=form))
    assert documents is None and "nested deeper" in problems[0].message


def test_a_hundred_thousand_levels_harm_nobody() -> None:
    """One line of brackets: refused, not a crash of the process."""
    documents, problems = read_documents("deep.yaml", "[" * 100_000)
    assert documents is None and len(problems) == 1


def test_brackets_in_text_are_no_depth() -> None:
    """A script in a ConfigMap may open more brackets than it closes, and be far to the right."""
    script = "data:\n  script: |\n" + "".join(f"    {'[' * 40} # {' ' * 120}x\n" for _ in range(20))
    assert not is_too_deep(script)
    documents, problems = read_documents("c.yaml", script)
    assert documents and not problems


def test_aliases_that_blow_a_document_up_are_refused() -> None:
    """Eight lines that stand for 100 million nodes; honest anchors pass."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 8)]
    documents, problems = read_documents("bomb.yaml", "\n".join(lines))
    assert documents is None and str(NODES_MAX) in problems[0].message
    documents, problems = read_documents("good.yaml", "a: &a {b: 1}\nc: *a\nd: [*a, *a]")
    assert documents == [{"a": {"b": 1}, "c": {"b": 1}, "d": [{"b": 1}, {"b": 1}]}] and not problems


@pytest.mark.parametrize("text", ["a: &a {b: *a}", "a: &a [[*a]]"])
def test_a_document_that_is_part_of_itself_is_refused(text: str) -> None:
    """It could be neither compared nor sent."""
    assert "part of itself" in find_excess(yaml.safe_load(text))
    documents, problems = read_documents("loop.yaml", text)
    assert documents is None and "part of itself" in problems[0].message
