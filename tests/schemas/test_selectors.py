"""The predicate that controller and agent share."""

from __future__ import annotations

import pytest

from schemas.policy import (
    AnyPeer,
    CidrPeer,
    DomainPeer,
    IdentityRow,
    NodePeer,
    PeersetPeer,
    PodPeer,
    Requirement,
    Selector,
)
from schemas.selectors import matches, pattern_covers, peer_covers_address, peer_selects_identity
from schemas.terms import AddressKind, IdentityId


def one(operator: str, *values: str) -> Selector:
    return Selector(requirements=(Requirement(key="app", operator=operator, values=values),))


@pytest.mark.parametrize(
    ("selector", "with_x", "with_y", "without"),
    [
        (Selector(), True, True, True),
        (one("In", "x"), True, False, False),
        (one("In", "x", "y"), True, True, False),
        (one("NotIn", "x"), False, True, True),
        (one("Exists"), True, True, False),
        (one("DoesNotExist"), False, False, True),
        (one("Like", "x"), False, False, False),
    ],
)
def test_operators_are_those_of_kubernetes(selector: Selector, with_x: bool, with_y: bool, without: bool) -> None:
    """NotIn and DoesNotExist hold for a missing key; an unknown operator never holds."""
    assert [matches(selector, labels) for labels in ({"app": "x"}, {"app": "y"}, {})] == [with_x, with_y, without]


def test_all_requirements_must_hold() -> None:
    """Requirements are ANDed."""
    both = Selector(requirements=(*one("Exists").requirements, *one("NotIn", "x").requirements))
    assert matches(both, {"app": "y"}) and not matches(both, {"app": "x"}) and not matches(both, {})


POD = IdentityRow(id=IdentityId(300), namespace="app", labels={"app": "x"})
NODE = IdentityRow(id=IdentityId(301), kind=AddressKind.NODE, labels={"app": "x"})
NAMESPACES = {"app": {"team": "red", "kubernetes.io/metadata.name": "app"}}
RED = Selector(requirements=(Requirement(key="team", operator="In", values=("red",)),))


def test_peers_select_identities_by_what_they_are() -> None:
    """Pods by namespace and pod labels, nodes by node labels, each kind only its own; any peer selects both."""
    assert peer_selects_identity(PodPeer(namespaces=RED, pods=one("In", "x")), POD, NAMESPACES)
    assert not peer_selects_identity(PodPeer(namespaces=RED), POD, {})
    assert not peer_selects_identity(PodPeer(), NODE, NAMESPACES)
    assert peer_selects_identity(NodePeer(nodes=one("In", "x")), NODE, NAMESPACES)
    assert not peer_selects_identity(NodePeer(), POD, NAMESPACES)
    assert peer_selects_identity(AnyPeer(), POD, NAMESPACES) and peer_selects_identity(AnyPeer(), NODE, NAMESPACES)


def test_an_unknown_namespace_bears_its_name() -> None:
    """Without a row a namespace still has the one label that nobody can take from it."""
    by_name = Requirement(key="kubernetes.io/metadata.name", operator="In", values=("app",))
    assert peer_selects_identity(PodPeer(namespaces=Selector(requirements=(by_name,))), POD, {})


def test_prefixes_and_names_select_no_identity() -> None:
    """They are properties of addresses."""
    for peer in (CidrPeer(cidr="0.0.0.0/0"), DomainPeer(pattern="*.x"), PeersetPeer(hash="ab")):
        assert not peer_selects_identity(peer, POD, NAMESPACES)


def test_prefixes_cover_addresses_but_for_their_exceptions() -> None:
    """An exception takes away, families never mix."""
    block = CidrPeer(cidr="10.0.0.0/8", excepts=("10.1.0.0/16",))
    assert peer_covers_address(block, "10.2.3.4") and not peer_covers_address(block, "10.1.3.4")
    assert not peer_covers_address(block, "11.0.0.1") and not peer_covers_address(block, "fd00::1")
    assert peer_covers_address(CidrPeer(cidr="::/0"), "fd00::1")
    assert peer_covers_address(AnyPeer(), "10.0.0.1") and not peer_covers_address(PodPeer(), "10.0.0.1")


def test_a_wildcard_is_whole_labels_below() -> None:
    """``*.x`` covers a.x and b.a.x, and neither x nor ax (NPEP-133)."""
    covered = [pattern_covers("*.x.com", name) for name in ("a.x.com", "b.a.x.com", "x.com", "ax.com", ".x.com")]
    assert covered == [True, True, False, False, False]
    assert pattern_covers("x.com", "x.com") and not pattern_covers("x.com", "a.x.com")
