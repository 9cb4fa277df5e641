"""The sizes at which growth is measured are multiples of one another."""

from __future__ import annotations

from collections import Counter

import pytest

from bench.cluster import EVERYBODY, WIDE_POLICIES, Size, make_cluster
from bench.core import SIZES


def count(pods: int) -> Counter[str]:
    """Objects by kind, cluster-wide policies and prefixes apart."""
    found: Counter[str] = Counter()
    for obj in make_cluster(Size(pods)):
        found["wide" if obj["kind"] == "ClusterNetworkPolicy" else obj["kind"].removeprefix("Application")] += 1
        for rule in obj.get("spec", {}).get("egress", ()) if obj["kind"] != "ClusterNetworkPolicy" else ():
            found["prefix"] += sum("ipBlock" in peer for peer in rule["to"])
    return found


def test_the_largest_size_is_the_one_that_was_asked_for() -> None:
    """10,000 pods, 500 namespaces, 1,000 policies, 5,000 prefixes; a namespace policy names cluster DNS besides."""
    found = count(SIZES[-1])
    assert (found["Pod"], found["Namespace"], found["NetworkPolicy"] + found["wide"]) == (10_000, 500, 1_000)
    assert found["prefix"] == 5_000 + 500
    assert EVERYBODY in [obj["metadata"]["name"] for obj in make_cluster(Size(SIZES[0]))]


@pytest.mark.parametrize("pods", SIZES[:-1])
def test_a_smaller_size_has_its_share_of_everything(pods: int) -> None:
    """To the next whole one; the wide policies are as many at any size, so that a pod is governed by as many."""
    largest, found = count(SIZES[-1]), count(pods)
    assert found.pop("wide") == largest.pop("wide") == WIDE_POLICIES
    assert {kind: round(largest[kind] * pods / SIZES[-1]) for kind in found} == pytest.approx(found, abs=1.01)
