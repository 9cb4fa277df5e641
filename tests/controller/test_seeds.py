"""The users' own objects, as they stand in the seeds, are accepted; what was bent to fit is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.policy import CidrPeer, DomainPeer, PortRange
from schemas.terms import Action, Protocol, Tier
from services.controller.manifests import read_documents
from services.controller.policy.model import ANY_PORT, Policy
from services.controller.policy.parse import parse_object

SEEDS = Path(__file__).parent.parent / "seeds"

WARNED = {
    "block-instance-metadata-service": ["spec.egress[0].to[0].networks[0]"],
    "access-to-s3": ["spec.egress[0].name", "spec.egress[0].action"],
    "access-to-DynamoDB": ["metadata.name", "spec.egress[0].name", "spec.egress[0].action"],
    "on-premises-access": [
        "spec.tier",
        "spec.subject.namespaces.namespaceSelector",
        "spec.egress[0].ports[0]",
    ],
    "allow-dns": [],
    "allow-example-com-only": [],
    "allow-intra-app": [],
}


def read(name: str) -> tuple[object, list[tuple[str, str]]]:
    documents, problems = read_documents(name, (SEEDS / f"{name}.yaml").read_text())
    assert documents is not None and not problems
    (document,) = documents
    parsed, found = parse_object(document, file=name)
    return parsed, [(problem.severity, problem.path) for problem in found]


@pytest.mark.parametrize("name", sorted(WARNED))
def test_seed_policies_are_accepted_with_their_warnings(name: str) -> None:
    """Every policy of the seeds is accepted; each spelling that the APIs do not have is named with its path."""
    parsed, found = read(name)
    assert isinstance(parsed, Policy) and parsed.name == name
    assert found == [("warning", path) for path in WARNED[name]]


def test_every_seed_is_tested() -> None:
    """No file among the seeds goes unread."""
    assert {path.stem for path in SEEDS.glob("*.yaml")} == {*WARNED, "amazon-vpc-cni", "security-tier-high"}


def test_seed_spellings_mean_what_they_say() -> None:
    """``tier: admin``, a wrapped selector and ``{protocol, port}`` become what the API would have had."""
    parsed, _ = read("on-premises-access")
    assert isinstance(parsed, Policy)
    (rule,) = parsed.egress
    assert (parsed.tier, parsed.priority, rule.action) == (Tier.ADMIN, 200, Action.ACCEPT)
    assert parsed.subject.namespaces.requirements[0].key == "data-access"
    assert rule.ports == (PortRange(protocol=Protocol.TCP, first=443, last=443),)
    assert rule.peers == (DomainPeer(pattern="*.datacenter.company.com"), DomainPeer(pattern="*.corp.company.com"))


def test_seed_metadata_deny_reads_its_network() -> None:
    """``networks: [{cidr: ..}]`` is the prefix, for every protocol."""
    parsed, _ = read("block-instance-metadata-service")
    assert isinstance(parsed, Policy)
    (rule,) = parsed.egress
    assert rule.action is Action.DENY
    assert rule.peers == (CidrPeer(cidr="169.254.169.254/32"),)
    assert rule.ports == (ANY_PORT,)


def test_foreign_config_map_is_of_no_interest() -> None:
    """The managed service's own ConfigMap is read without a word and without effect."""
    assert read("amazon-vpc-cni") == (None, [])


def test_fragment_is_refused_as_no_object() -> None:
    """The seeds' fragment without kind and name is no object, and says so."""
    parsed, found = read("security-tier-high")
    assert parsed is None and [severity for severity, _ in found] == ["error"]
