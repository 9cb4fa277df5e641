"""The page of attacks names tests that exist, and leaves no attack of the review out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "attacks.md"
NUMBERS = (*range(1, 16), 19, *range(21, 25), 26)
"""What the review marked as exploitable, or as breaking a promise."""


def read_rows() -> dict[int, list[str]]:
    """Number -> the tests of its row."""
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    return {int(number): re.findall(r"`([^`]+)`", tests) for number, tests in rows}


def read_functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_attack_of_the_review_has_a_test() -> None:
    """One row a number, and at least one test a row."""
    rows = read_rows()
    assert tuple(rows) == NUMBERS
    assert all(rows.values())


def test_every_test_on_the_page_exists() -> None:
    """A function of that name in that file; a file without a name stands for all of its tests."""
    for named in sorted({one for tests in read_rows().values() for one in tests}):
        file, _, name = named.partition("::")
        functions = read_functions(TESTS / file)
        assert name in functions if name else any(one.startswith("test_") for one in functions), named
