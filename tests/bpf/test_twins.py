"""Two roads to one answer, by volume: the oracle reads policies, the kernel maps that an agent's path has filled.

Kubernetes objects -> controller's rows -> a replica that proves them -> tables -> plan -> maps -> programs, compared
with what ``evaluate`` says of the same objects. A difference is printed as the smallest scenario that shows it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from schemas.terms import Tier
from services.scenario.kernel_engine import KernelEngine
from tests.strategies import Scene, scenes
from tests.twins.coverage import OUTCOMES, find_missing, list_reasons_of_the_oracle, list_tiers
from tests.twins.document import make_document
from tests.twins.proof import format_coverage
from tests.twins.volume import Outcome, prove_scene, prove_seeds, write_scenario

CLUSTERS = int(os.environ.get("YETT_TWIN_CLUSTERS", "2000"))
PACKETS = 100 * CLUSTERS
SEED = int(os.environ.get("YETT_SEED", "0"))
SECONDS_MAX = float(os.environ.get("YETT_TWIN_SECONDS", "1200"))
EXAMPLES = int(os.environ.get("YETT_TWIN_EXAMPLES", "60"))
"""Of hypothesis' scenes, which it shrinks itself."""
FEW = 500
"""Fewer clusters than this need not show everything."""


@pytest.mark.kernel
@pytest.mark.timeout(SECONDS_MAX + 60)
def test_the_kernel_says_what_policies_say(tmp_path: Path) -> None:
    """2,000 random clusters and 200,000 packets: the same verdict, tier, reason, policy and rule, everything met."""
    outcome = prove_seeds(range(SEED, SEED + CLUSTERS), tmp_path, seconds_max=SECONDS_MAX)
    print(format_coverage(outcome.coverage))
    assert not outcome.failure, outcome.failure
    assert outcome.clusters == CLUSTERS and outcome.packets >= PACKETS, (outcome.clusters, outcome.packets)
    missing = find_missing(outcome.coverage) if CLUSTERS >= FEW else []
    assert not missing, f"the generator never met {missing}"


@pytest.mark.kernel
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(scene=scenes())
def test_the_kernel_says_what_policies_say_of_any_scene(engine: KernelEngine, scene: Scene, tmp_path: Path) -> None:
    """The same for scenes that hypothesis chooses and shrinks; what is left is printed as a scenario."""
    differences = prove_scene(scene, engine, "any-scene", Outcome())
    if any(each.probe is not None for each in differences):
        path = write_scenario(make_document(scene, "any-scene"), tmp_path)
        raise AssertionError(f"{differences[0]}\n{path}:\n{path.read_text()}")
    assert not differences, differences[0]


def test_every_reason_that_the_oracle_concludes_is_asked_for() -> None:
    """A reason or a tier that is new to the oracle must be new to the list of what is to be met."""
    assert list_reasons_of_the_oracle() == set(OUTCOMES)
    assert list_tiers() == {tier.name for tier in Tier}
