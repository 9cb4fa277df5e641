"""``yett diff``."""

from __future__ import annotations

import json

import pytest

from tests.cli.golden import compare, yett


def test_golden_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flows by their ends and ports, what was and what is, and which rule says so."""
    result = yett(monkeypatch, "diff", "--with", "cluster.yaml", "old", "new")
    assert result.exit_code == 1
    compare("diff", result.stdout)


def test_the_other_way_round_is_the_reverse(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same flows, before and after exchanged."""
    there, back = (
        json.loads(yett(monkeypatch, "diff", "--with", "cluster.yaml", *sides, "-o", "json").stdout)["changes"]
        for sides in (("old", "new"), ("new", "old"))
    )
    assert there and [{**each, "before": each["after"], "after": each["before"]} for each in back] == there


def test_nothing_changes_between_equals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 0."""
    result = yett(monkeypatch, "diff", "--with", "cluster.yaml", "old", "old")
    assert (result.exit_code, result.stdout) == (0, "no flow changes\n")


def test_a_missing_folder_is_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 2."""
    assert yett(monkeypatch, "diff", "none", "old").exit_code == 2
