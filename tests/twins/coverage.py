"""What a proof by random scenes must have met, so that it cannot become empty without a word."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

from schemas.terms import FrontendKind, PolicyKind, Tier, Verdict
from services.controller.policy import evaluate
from tests.twins.proof import Coverage

ALLOW, DENY, AUDIT = "ALLOW", "DENY", "AUDIT"
CLOSED = (("NETWORK_POLICY", DENY), ("DEFAULT", DENY))
"""Where isolation or the default shuts: a better reason may stand in for either."""
OUTCOMES = {
    "RULE": (
        *product(("ADMIN", "BASELINE"), (ALLOW, DENY, AUDIT)),
        ("NETWORK_POLICY", ALLOW),
    ),
    "ISOLATED": (("NETWORK_POLICY", DENY), ("NETWORK_POLICY", AUDIT)),
    "DEFAULT": tuple(("DEFAULT", verdict.name) for verdict in Verdict),
    "DNS_IMPLICIT": (("NETWORK_POLICY", ALLOW),),
    "OWN_NODE": (("NONE", ALLOW),),
    "HAIRPIN": (("NONE", ALLOW),),
    "NAME_EXPIRED": (*CLOSED, ("NETWORK_POLICY", AUDIT)),
    "NO_BACKEND": (*CLOSED, ("NETWORK_POLICY", AUDIT)),
    "MIXED_BACKENDS": (*CLOSED, ("ADMIN", DENY), ("BASELINE", DENY)),
    "TOO_MANY_BACKENDS": (("NONE", DENY),),
    "UNKNOWN_POD": (("NONE", DENY),),
}
"""Reason -> every (tier, verdict) that it can come with."""
FRONTENDS = {
    **dict.fromkeys(FrontendKind, ("empty", "uniform", "mixed")),
    FrontendKind.HOST_PORT: ("uniform",),
}
"""A hostPort has one pod behind it."""


def expected_facts() -> set[tuple[str, ...]]:
    """Every fact of ``proof.describe`` that thousands of scenes must show."""
    facts: set[tuple[str, ...]] = {("outcome", why, *each) for why, found in OUTCOMES.items() for each in found}
    ways = ("egress", "ingress")
    facts |= {("kind", kind.value, *each) for kind in PolicyKind for each in product(ways, (ALLOW, DENY, AUDIT))}
    facts |= {("frontend", kind.name, shape) for kind, shapes in FRONTENDS.items() for shape in shapes}
    facts |= {("direction", way, verdict.name) for way in ways for verdict in Verdict}
    facts |= {("name", "RULE"), ("name", "NAME_EXPIRED"), ("family", "4"), ("family", "6")}
    return facts | {("protocol", str(number)) for number in (1, 6, 17, 47, 58, 132)}


def find_missing(coverage: Coverage) -> list[tuple[str, ...]]:
    return sorted(expected_facts() - coverage.keys())


def list_reasons_of_the_oracle() -> set[str]:
    """Every reason that the oracle's source names."""
    return set(re.findall(r"\bReason\.([A-Z_]+)", Path(evaluate.__file__).read_text(encoding="utf-8")))


def list_tiers() -> set[str]:
    return {tier for found in OUTCOMES.values() for tier, _ in found} & {tier.name for tier in Tier}
