"""A ring that cannot run says why; a ring that must run and did not is a failure."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

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


@pytest.mark.parametrize("rings", [["kernel", "kube", "e2e"], ["pure", "kernel", "nats", "e2e", "kube"]])
def test_the_ring_that_waits_runs_beside_those_that_compute(rings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """And its parts beside each other then; whatever it is called with, each has its result, in the order asked for."""
    compute, wait = threading.Barrier(2), threading.Barrier(2)
    under_way, seen, parts = set[str](), dict[str, set[str]](), list[tuple[str, ...]]()

    def run(ring: str, output: IO[str] | None, part: tuple[str, ...] = ()) -> run_rings.Result:
        under_way.add(ring)
        if part:
            parts.append(part)
        if ring == "kernel" or part == run_rings.WAITING_PARTS[0]:
            compute.wait(10)
        if part in run_rings.WAITING_PARTS[1:]:
            wait.wait(10)
        seen[ring] = set(under_way)
        if output is not None:
            output.write(f"{ring} said this")
        under_way.discard(ring)
        return len(ring), 1.0

    monkeypatch.setattr(run_rings, "_run", run)
    monkeypatch.setattr(run_rings.os, "cpu_count", lambda: 2)
    expected = {ring: (len(ring), 3.0 if ring == "kube" else 1.0) for ring in rings}
    assert list(run_rings.run_rings(rings).items()) == list(expected.items())
    assert seen["e2e"] == {"e2e"} and sorted(parts) == sorted(run_rings.WAITING_PARTS)


@pytest.mark.parametrize("failing", range(len(run_rings.WAITING_PARTS)))
def test_a_part_that_fails_fails_its_ring(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever it is, and a part without a test is none that passed."""

    def run(ring: str, output: IO[str] | None, part: tuple[str, ...] = ()) -> run_rings.Result:
        return run_rings.NO_TESTS_COLLECTED * (part == run_rings.WAITING_PARTS[failing]), 1.0

    monkeypatch.setattr(run_rings, "_run", run)
    monkeypatch.setattr(run_rings.os, "cpu_count", lambda: 2)
    assert run_rings.run_rings(["pure", "kube"]) == {"pure": (0, 1.0), "kube": (run_rings.NO_TESTS_COLLECTED, 3.0)}


def test_the_parts_of_the_ring_that_waits_are_the_whole_of_it() -> None:
    """Every test of it is in one part, by what pytest itself collects; and none is in another folder."""
    parts = [collect_kube(*part) for part in run_rings.WAITING_PARTS]
    assert all(parts) and sorted(test for part in parts for test in part) == sorted(collect_kube("tests/kube"))
    marked = {path.relative_to(ROOT).parts[0] for path in ROOT.rglob("test_*.py") if MARK in path.read_text()}
    assert marked == {"kube"}


MARK = "pytest.mark." + "kube"


def collect_kube(*part: str) -> list[str]:
    """The tests that pytest would run."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-m", "kube", *part]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT.parent)
    assert done.returncode == 0, done.stdout
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_one_processor_has_one_ring_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order asked for."""
    order: list[str] = []
    monkeypatch.setattr(run_rings, "_run", lambda ring, output: (order.append(ring) or 0, 1.0))
    monkeypatch.setattr(run_rings.os, "cpu_count", lambda: 1)
    run_rings.run_rings(["kernel", "kube", "pure"])
    assert order == ["kernel", "kube", "pure"]


@pytest.mark.parametrize(("total", "is_late"), [(1500, False), (1500.2, True)])
def test_rings_that_take_longer_together_than_is_promised_are_told(total: float, is_late: bool) -> None:
    """25 minutes from first to last, by the clock: a sum beyond it is none where rings ran beside each other."""
    lines, code = run_rings.judge({"pure": (0, 900.0), "kube": (0, 900.0)}, total)
    assert code == 0 and run_rings.judge({"pure": (1, 900.0)}, total)[1] == 1
    assert lines[3].startswith(f"total     {total:.1f}") and ("more than the 1500" in lines[3]) == is_late


def test_the_total_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """From before the first ring to after the last."""
    clock = iter([100.0, 1600.5])
    monkeypatch.setattr(run_rings, "run_rings", lambda rings: dict.fromkeys(rings, (0, 1.0)))
    monkeypatch.setattr(run_rings.time, "monotonic", lambda: next(clock))
    assert run_rings.main(["pure"]) == 0
    assert "total     1500.5  more than" in capsys.readouterr().out


def test_an_unknown_ring_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The message lists those there are."""
    assert run_rings.main(["pure", "none"]) == 2
    assert "no such ring: none" in capsys.readouterr().err
