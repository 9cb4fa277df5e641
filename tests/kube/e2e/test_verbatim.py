"""The seeds' own manifests, applied with kubectl: enforced, and their status tells the truth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.demo.steps import STEPS
from tests.kube.e2e.cluster import Cluster
from tests.kube.e2e.test_steps import in_legal_names

pytestmark = [pytest.mark.kube, pytest.mark.e2e, pytest.mark.timeout(120)]

SEEDS = Path(__file__).parents[2] / "seeds"
GOVERNING = {
    "clusternetworkpolicies.networking.k8s.aws/allow-intra-app": "",
    "clusternetworkpolicies.networking.k8s.aws/block-instance-metadata-service": "",
    "clusternetworkpolicies.networking.k8s.aws/on-premises-access": "",
    "applicationnetworkpolicies.networking.k8s.aws/access-to-s3": "default",
    "applicationnetworkpolicies.networking.k8s.aws/access-to-dynamodb": "cart-services",
    "applicationnetworkpolicies.networking.k8s.aws/allow-example-com-only": "app",
}
"""What has a status, and its namespace."""


@pytest.fixture(scope="module")
def seeded(whole: Cluster) -> Iterator[Cluster]:
    """All of them; one is a fragment, of no kind."""
    before = whole.revision()
    seeds = {path.name: text for path in sorted(SEEDS.glob("*.yaml")) if "kind: " in (text := path.read_text())}
    assert len(seeds) == 8
    for name, text in seeds.items():
        whole.objects.write(name, text)
    whole.settle(before)
    yield whole
    before = whole.revision()
    for name in seeds:
        whole.objects.remove(name)
    whole.settle(before)


@pytest.mark.parametrize("number", [4, 6])
def test_they_are_enforced(seeded: Cluster, number: int) -> None:
    """The seed's last table with its leak closed, on one node and across two; and every domain that they name."""
    (phase,) = in_legal_names(STEPS[number - 1]).phases
    rows = seeded.run(seeded.demo.try_probes(number, phase.probes))
    assert len(rows) == len(phase.probes) and [row for row in rows if row.problem] == []


@pytest.mark.parametrize("resource", list(GOVERNING), ids=lambda resource: resource.partition("/")[2])
def test_kubectl_sees_them_accepted_and_programmed(seeded: Cluster, resource: str) -> None:
    """``kubectl wait`` returns for both conditions, once the agents have acknowledged."""
    namespace = GOVERNING[resource]
    place = ["--namespace", namespace] if namespace else []
    for condition in ("Accepted", "Programmed"):
        seeded.kube.kubectl("wait", f"--for=condition={condition}", resource, *place, "--timeout=30s")
