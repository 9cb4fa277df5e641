"""A ring that cannot run says why; a ring that must run and did not is a failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import run_rings

ROOT = Path(__file__).parent
SKIPPED_TEST = """
import pytest

@pytest.mark.nats
def test_that_skips_itself():
    pytest.skip("the server is out")
"""


def run_pytest(folder: Path, *, require: str) -> subprocess.CompletedProcess[str]:
    """pytest on a folder of its own with our conftest."""
    (folder / "conftest.py").write_text((ROOT / "conftest.py").read_text())
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n  kernel: k\n  nats: n\n  e2e: e\n  kube: k\n")
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(folder)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={"YETT_REQUIRE": require, "PATH": "/usr/bin:/usr/sbin"},
    )


def test_a_skip_prints_its_reason(tmp_path: Path) -> None:
    """Where the ring is not required it is no failure."""
    (tmp_path / "test_it.py").write_text(SKIPPED_TEST)
    done = run_pytest(tmp_path, require="")
    assert done.returncode == 0, done.stdout
    assert "the server is out" in done.stdout


@pytest.mark.parametrize(("require", "code"), [("kernel,nats,e2e", 1), ("nats", 1), ("kernel", 0)])
def test_a_skip_inside_a_required_ring_is_a_failure(tmp_path: Path, require: str, code: int) -> None:
    """And only there."""
    (tmp_path / "test_it.py").write_text(SKIPPED_TEST)
    done = run_pytest(tmp_path, require=require)
    assert done.returncode == code, done.stdout
    assert "the server is out" in done.stdout


def test_rings_share_no_test_and_miss_none() -> None:
    """Every set of markers belongs to exactly one ring."""
    for kernel in (False, True):
        for nats in (False, True):
            for e2e in (False, True):
                for kube in (False, True):
                    names = {"kernel": kernel, "nats": nats, "e2e": e2e, "kube": kube}
                    assert sum(eval(expression, {}, names) for expression in run_rings.RINGS.values()) == 1


def test_an_unknown_ring_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The message lists those there are."""
    assert run_rings.main(["pure", "none"]) == 2
    assert "no such ring: none" in capsys.readouterr().err
