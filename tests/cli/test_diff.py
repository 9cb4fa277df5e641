"""``yett diff``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.golden import FOLDER, compare, yett


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


def test_what_enforcing_will_stop_is_a_change_from_audit_to_deny(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same policies with the annotation taken away; putting a policy under audit alone stops nothing."""
    policies, trial = (FOLDER / "old" / "policies.yaml").read_text(), (FOLDER / "audit.yaml").read_text()
    annotation = ", annotations: {yett.dev/mode: audit}"
    assert annotation in trial
    for name, texts in (("bare", ""), ("audited", trial), ("enforced", trial.replace(annotation, ""))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "policies.yaml").write_text(f"{policies}\n---\n{texts}")

    def verdicts(before: str, after: str) -> set[tuple[str, str]]:
        sides = (str(tmp_path / before), str(tmp_path / after))
        told = json.loads(yett(monkeypatch, "diff", "--with", "cluster.yaml", *sides, "-o", "json").stdout)
        return {(each["before"]["verdict"], each["after"]["verdict"]) for each in told["changes"]}

    assert verdicts("audited", "enforced") == {("audit", "deny")}
    assert verdicts("bare", "audited") == {("allow", "audit")}


def test_a_missing_folder_is_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 2."""
    assert yett(monkeypatch, "diff", "none", "old").exit_code == 2
