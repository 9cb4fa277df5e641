"""The hand-typed suites of ``tests/scenarios``, by both engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.scenario import files
from services.scenario.evaluate_engine import EvaluateEngine
from services.scenario.kernel_engine import KernelEngine
from services.scenario.model import Scenario
from services.scenario.result import ProbeResult, ScenarioResult, describe_failures
from services.scenario.run import Engine, run_scenario

SUITES = sorted((Path(__file__).parents[1] / "scenarios").glob("*.yaml"))


def read(path: Path) -> list[Scenario]:
    found = list(files.read_scenarios([path]))
    unusable = [str(each) for each in found if not isinstance(each, Scenario)]
    assert not unusable, unusable
    return [each for each in found if isinstance(each, Scenario)]


def run(path: Path, engine: Engine) -> list[ScenarioResult]:
    return [run_scenario(each, files.read_objects(each), engine) for each in read(path)]


def failures(results: list[ScenarioResult]) -> list[str]:
    return [f"{each.scenario.name}: {line}" for each in results for line in describe_failures(each)]


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_the_oracle_answers_as_the_documentation_says(path: Path) -> None:
    """Every ``expect`` was typed by hand from a page of documentation; no probe is without one."""
    results = run(path, EvaluateEngine())
    assert not failures(results)
    assert all(probe.probe.expect is not None for each in results for probe in each.probes)
    inexact = [(each.scenario.name, probe.probe.id) for each in results for probe in each.probes if not is_exact(probe)]
    assert not inexact


def is_exact(probe: ProbeResult) -> bool:
    """A flow under audit counts as an allowed one for ``yett test``; here it must be said."""
    return probe.verdict is probe.probe.expect


@pytest.mark.kernel
@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_the_kernel_answers_with_the_same_rule(path: Path, kernel: KernelEngine) -> None:
    """Same verdict, tier, policy, rule, reason and name on both sides of every flow."""
    said, expected = run(path, kernel), run(path, EvaluateEngine())
    assert not failures(said)
    for mine, theirs in zip(said, expected, strict=True):
        for one, other in zip(mine.probes, theirs.probes, strict=True):
            where = (mine.scenario.name, one.probe.id)
            assert (where, one.egress, one.ingress) == (where, other.egress, other.ingress)
