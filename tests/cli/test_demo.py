"""``yett demo``: what it prints, and with which status it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.cli.demo import to_json
from services.demo.rows import Row
from services.demo.runner import Outcome, check_machine
from services.demo.state import DemoError
from services.demo.steps import ALLOWED, BLOCKED

BAD_POLICY = """\
apiVersion: networking.k8s.aws/v1alpha1
kind: ApplicationNetworkPolicy
metadata: {name: broken, namespace: default}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
    - to: [{domainNames: ["*.*.x"]}]
"""
GOOD_POLICY = BAD_POLICY.replace("*.*.x", "*.example.com")


def run_yett(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, as a user would run it."""
    command = [sys.executable, "-m", "services.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_json_has_rows_of_nine_fields_and_timings() -> None:
    """Nothing that is not promised, nothing missing."""
    outcome = Outcome(rows=[Row(1, "a", "b", BLOCKED, BLOCKED)], timings={"total_seconds": 1.0})
    shown = to_json(outcome)
    assert set(shown) == {"rows", "timings"}
    (row,) = shown["rows"]  # type: ignore[misc]  # a list, by construction
    assert list(row) == ["step", "source", "destination", "expected", "observed", "policy", "rule", "tier", "reason"]


def test_a_run_without_rows_is_no_success() -> None:
    """Nothing tried is nothing proven."""
    assert not Outcome().is_as_expected
    assert Outcome(rows=[Row(1, "a", "b", BLOCKED, BLOCKED)]).is_as_expected
    assert not Outcome(rows=[Row(1, "a", "b", BLOCKED, ALLOWED, problem="expected Blocked")]).is_as_expected


def test_an_old_nats_server_is_refused_with_status_2(tmp_path: Path) -> None:
    """Before anything is made."""
    server = tmp_path / "nats-server"
    server.write_text("#!/bin/sh\necho 'nats-server: v2.9.10'\n")
    server.chmod(0o755)
    done = run_yett("demo", "--manifests", str(tmp_path), "--nats-server", str(server))
    assert done.returncode == 2
    assert "2.11 or newer" in done.stderr


def test_a_selection_that_means_nothing_ends_with_status_2() -> None:
    """Before root is asked for."""
    done = run_yett("demo", "--steps", "12")
    assert (done.returncode, done.stdout) == (2, "")
    assert "12" in done.stderr


def test_without_root_the_demo_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """And makes nothing."""
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(DemoError, match="as root"):
        check_machine()


@pytest.mark.nats
def test_a_manifest_that_is_refused_ends_with_status_3_and_names_file_object_and_field(tmp_path: Path) -> None:
    """For people and for programs."""
    (tmp_path / "broken.yaml").write_text(BAD_POLICY)
    for_people = run_yett("demo", "--manifests", str(tmp_path))
    assert for_people.returncode == 3, for_people.stderr
    for part in ("broken.yaml", "default/broken", "spec.egress[0].to[0].domainNames[0]"):
        assert part in for_people.stdout
    for_programs = run_yett("demo", "--manifests", str(tmp_path), "--output", "json")
    assert for_programs.returncode == 3
    refused = [each for each in json.loads(for_programs.stdout)["problems"] if each.get("severity", "error") == "error"]
    assert [(each["file"], each["path"]) for each in refused] == [
        ("broken.yaml", "spec.egress[0].to[0].domainNames[0]")
    ]


@pytest.mark.nats
def test_manifests_without_fault_end_with_status_0(tmp_path: Path) -> None:
    """And print nothing."""
    (tmp_path / "good.yaml").write_text(GOOD_POLICY)
    done = run_yett("demo", "--manifests", str(tmp_path))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
