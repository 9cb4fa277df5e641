"""The long runs are of tests that exist, with settings that those tests read, and end in failure if one fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import run_soak
from tests.run_soak import PARTS, Part

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_a_part_sets_what_its_tests_read(part: Part) -> None:
    """Every setting of a part, and the seed, is named in the files that it runs."""
    text = "".join((ROOT / name).read_text() for name in part.tests)
    assert all(f'"{setting}"' in text for setting in (*part.settings, "YETT_SEED")), part.settings


def test_a_soak_passes_only_if_every_part_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fails, and one that takes too long, fail the whole; the others run all the same."""
    (tmp_path / "test_good.py").write_text("def test_it(): assert True\n")
    (tmp_path / "test_bad.py").write_text("def test_it(): assert False\n")
    (tmp_path / "test_slow.py").write_text(
        "def test_it(): input_that_never_comes = __import__('threading').Event().wait()\n"
    )
    good, bad, slow = (Part(n, (str(tmp_path / f"test_{n}.py"),), seconds_max=60) for n in ("good", "bad", "slow"))
    monkeypatch.setattr(run_soak, "PARTS", (good,))
    assert run_soak.main([]) == 0
    assert run_soak.run_part(bad, 1)[0].startswith("failed")
    (tmp_path / "program.py").write_text("raise SystemExit(3)\n")
    assert run_soak.run_part(Part("own", (str(tmp_path / "program.py"),), is_program=True), 1)[0] == "failed (exit 3)"
    assert run_soak.run_part(Part("slow", slow.tests, seconds_max=4), 1)[0] != "passed"
    monkeypatch.setattr(run_soak, "PARTS", (bad, good))
    assert run_soak.main(["--seed", "7"]) == 1
