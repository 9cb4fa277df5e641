"""Whose packets never come from elsewhere, and the commands that drop them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from schemas.policy import FrontendRow
from schemas.terms import FrontendKind
from services.nodeagent.nftrules import Command, count_drops
from services.nodeagent.sourcecheck import find_addresses, make_check
from tests.golden import compare

GOLDEN = Path(__file__).parent / "golden"
SERVICE, SERVICE6, BACKEND, OUTSIDE, CACHE, METADATA = (
    *("10.96.0.10", "fd00:96::a", "10.1.2.3"),
    *("8.8.8.8", "169.254.20.10", "169.254.169.254"),
)


def make_fronts(
    *places: tuple[str, int, int], kind: FrontendKind = FrontendKind.CLUSTER_IP
) -> dict[tuple[str, int, int], FrontendRow]:
    rows = (
        FrontendRow(address=address, protocol=protocol, port=port, kind=kind, service="kube-system/kube-dns")
        for address, protocol, port in places
    )
    return {(row.address, row.protocol, row.port): row for row in rows}


def test_only_a_services_address_and_the_nodes_own_cache_are_nobodys_elsewhere() -> None:
    """Neither what stands behind the Service, nor a resolver outside, nor one at a link-local address that is not this
    node's (a cloud's own answers from there); nor another Service, which is no resolver."""
    trusted = [(one, 53) for one in (SERVICE, SERVICE6, OUTSIDE, CACHE, METADATA)] + [(BACKEND, 5353)]
    fronts = make_fronts((SERVICE, 17, 53), (SERVICE6, 6, 53), ("10.96.0.80", 6, 80))
    assert find_addresses(trusted, fronts, {CACHE, "10.0.0.5"}) == {SERVICE, SERVICE6, CACHE}


@pytest.mark.parametrize("kind", [one for one in FrontendKind if one.is_claim])
def test_an_address_that_a_tenant_may_claim_is_not_among_them(kind: FrontendKind) -> None:
    """Or who makes a Service could cut others' packets from there."""
    assert find_addresses([(OUTSIDE, 53)], make_fronts((OUTSIDE, 17, 53), kind=kind), set()) == frozenset()


def test_a_service_at_another_port_of_the_address_says_nothing() -> None:
    """It is the resolver's own port that must be the Service's."""
    assert find_addresses([(OUTSIDE, 53)], make_fronts((OUTSIDE, 17, 54)), set()) == frozenset()


def render(commands: Iterable[Command]) -> str:
    """A command a line."""
    return "".join(f"{json.dumps(one)}\n" for one in commands)


def test_the_commands() -> None:
    """One by one; the loopback's are left alone, and nothing depends on the order in which addresses are told."""
    made = make_check([SERVICE, SERVICE6, CACHE])
    compare(GOLDEN / "sourcecheck.txt", render(made))
    assert made == make_check([CACHE, SERVICE6, SERVICE])
    assert [count_drops(made, family) for family in ("inet", "bridge")] == [2, 2]


def test_without_an_address_nothing_is_added_to_a_set() -> None:
    """nft refuses an element command without elements; what was in the set goes."""
    made = make_check([])
    assert not [one for one in made if "element" in one.get("add", {})]
    assert len([one for one in made if "set" in one.get("flush", {})]) == 4
