"""The demo's ten steps again, applied with kubectl to a real API server: the same rows, the same policies named.

Nothing before them may ask for names in the pods of the second step: DNS with a resolver shares one flow, told once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from services.demo.rows import describe_destination, describe_source
from services.demo.steps import STEPS, Apply, Connect, Lookup, Probe, Step
from tests.kube.e2e.cluster import Cluster

pytestmark = [pytest.mark.kube, pytest.mark.e2e, pytest.mark.timeout(300)]


def in_legal_names(step: Step) -> Step:
    """The step with its policies named as a server takes them: lower-case."""

    def rename(probe: Probe) -> Probe:
        if isinstance(probe, Connect | Lookup) and probe.policy:
            return dataclasses.replace(probe, policy=probe.policy.lower())
        return probe

    phases = tuple(dataclasses.replace(each, probes=tuple(map(rename, each.probes))) for each in step.phases)
    return dataclasses.replace(step, phases=phases)


@pytest.fixture(scope="module", autouse=True)
def cleared(whole: Cluster) -> Iterator[None]:
    """What the steps applied is gone afterwards; their late namespace stays."""
    yield
    before = whole.revision()
    applied = [
        action for step in STEPS for phase in step.phases for action in phase.actions if isinstance(action, Apply)
    ]
    for name in (name for action in applied for name in action.manifests):
        whole.objects.remove(name)
    whole.settle(before)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"step{step.number}")
def test_every_row_of_the_step_is_as_expected(whole: Cluster, step: Step) -> None:
    """What was tried is what is on the demo's list, what came of it is what is expected, and by the policy named."""
    done = len(whole.demo.outcome.rows)
    whole.run(whole.demo.play([in_legal_names(step)]))
    rows = whole.demo.outcome.rows[done:]
    probes = [probe for phase in step.phases for probe in phase.probes]
    assert [(row.source, row.destination, row.expected, row.observed, row.problem) for row in rows] == [
        (describe_source(probe), describe_destination(probe), probe.expected, probe.expected, "") for probe in probes
    ]


def test_one_name_had_to_be_made_legal(whole: Cluster) -> None:
    """``access-to-DynamoDB`` of the seed is no name of a Kubernetes object; no other manifest has such a name."""
    assert whole.objects.renamed == {"access-to-DynamoDB"}
