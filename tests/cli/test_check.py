"""``yett check``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.scenario.lint import LINTS
from tests.cli.golden import FOLDER, compare, yett


def test_golden_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with its file and the path of the rule."""
    result = yett(monkeypatch, "check", "cluster.yaml", "lint")
    assert result.exit_code == 1
    compare("check", result.stdout)


def test_every_lint_is_in_the_golden_text() -> None:
    """Or nobody would see it break."""
    said = {line.split()[0] for line in (FOLDER / "check.txt").read_text().splitlines()}
    assert said >= LINTS.keys()


def test_json_has_findings_and_problems_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A refusal is told with its severity."""
    bad = tmp_path / "bad.yaml"
    bad.write_text("{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: x}, spec: {pods: {}}}")
    told = json.loads(yett(monkeypatch, "check", "cluster.yaml", "lint", str(bad), "-o", "json").stdout)
    assert [(each["severity"], each["path"]) for each in told["problems"]] == [
        ("error", "spec.pods"),
        ("warning", "spec"),
    ]
    assert {each["lint"] for each in told["findings"]} == LINTS.keys()


def test_what_is_fine_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 0 without a finding."""
    result = yett(monkeypatch, "check", "cluster.yaml")
    assert (result.exit_code, result.stdout) == (0, "nothing to look at\n")


def test_a_missing_folder_is_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 2."""
    assert yett(monkeypatch, "check", "none").exit_code == 2
