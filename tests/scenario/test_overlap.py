"""When one rule is part of another, and when two meet."""

from __future__ import annotations

import pytest

from schemas.policy import AnyPeer, CidrPeer, DomainPeer, NodePeer, Peer, PodPeer, PortRange, Requirement, Selector
from services.controller.policy.model import ANY_PORT, NamedPort, PortSpec, World
from services.scenario.overlap import peer_covers, peers_overlap, port_covers
from services.scenario.world import assemble_cluster
from tests import builders as k8s


def pods(**labels: str) -> PodPeer:
    wanted = tuple(Requirement(key=key, operator="In", values=tuple(value.split(","))) for key, value in labels.items())
    return PodPeer(pods=Selector(requirements=wanted))


def cidr(text: str, *excepts: str) -> CidrPeer:
    return CidrPeer(cidr=text, excepts=excepts)


def name(pattern: str) -> DomainPeer:
    return DomainPeer(pattern=pattern)


@pytest.mark.parametrize(
    ("wide", "narrow", "covers"),
    [
        (AnyPeer(), pods(app="x"), True),
        (pods(app="x"), AnyPeer(), False),
        (cidr("10.0.0.0/8"), cidr("10.1.0.0/16"), True),
        (cidr("10.1.0.0/16"), cidr("10.0.0.0/8"), False),
        (cidr("10.0.0.0/8", "10.1.0.0/16"), cidr("10.2.0.0/16"), True),
        (cidr("10.0.0.0/8", "10.1.0.0/16"), cidr("10.1.2.0/24"), False),
        (cidr("10.0.0.0/8", "10.1.0.0/16"), cidr("10.0.0.0/9", "10.1.0.0/16"), True),
        (cidr("0.0.0.0/0"), cidr("::/0"), False),
        (name("*.x.com"), name("a.x.com"), True),
        (name("*.x.com"), name("*.a.x.com"), True),
        (name("*.x.com"), name("x.com"), False),
        (name("x.com"), name("*.x.com"), False),
        (pods(), pods(app="x"), True),
        (pods(app="x,y"), pods(app="x"), True),
        (pods(app="x"), pods(app="x", tier="y"), True),
        (pods(app="x", tier="y"), pods(app="x"), False),
        (cidr("0.0.0.0/0"), pods(app="x"), False),
    ],
)
def test_what_a_peer_covers(wide: Peer, narrow: Peer, covers: bool) -> None:
    """Only what is certain from the two alone."""
    assert peer_covers(wide, narrow) is covers


@pytest.mark.parametrize(
    ("wide", "narrow", "covers"),
    [
        (ANY_PORT, PortRange(protocol=6, first=80, last=80), True),
        (ANY_PORT, NamedPort(6, "http"), True),
        (PortRange(protocol=6), NamedPort(6, "http"), True),
        (PortRange(protocol=6), NamedPort(17, "dns"), False),
        (PortRange(protocol=6, first=80, last=90), PortRange(protocol=6, first=80, last=91), False),
        (PortRange(protocol=6), ANY_PORT, False),
        (NamedPort(6, "http"), PortRange(protocol=6, first=80, last=80), False),
    ],
)
def test_what_a_port_covers(wide: PortSpec, narrow: PortSpec, covers: bool) -> None:
    """A name is known to be inside its whole protocol only."""
    assert port_covers(wide, narrow) is covers


WORLD = assemble_cluster(
    [("", k8s.pod("app/x", "10.0.0.1", app="x")), ("", k8s.pod("app/y", "10.0.0.2", app="y"))]
).world


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        (cidr("10.0.0.0/8"), cidr("10.0.0.0/24"), True),
        (cidr("10.0.0.0/8"), cidr("192.0.2.0/24"), False),
        (cidr("10.0.0.0/8"), cidr("::/0"), False),
        (pods(app="x"), pods(), True),
        (pods(app="x"), pods(app="y"), False),
        (pods(app="x"), cidr("10.0.0.1/32"), True),
        (pods(app="x"), cidr("10.0.0.2/32"), False),
        (name("x.com"), cidr("0.0.0.0/0"), True),
        (name("x.com"), name("*.com"), True),
        (name("x.com"), name("y.com"), False),
        (name("x.com"), pods(), False),
        (NodePeer(), pods(), False),
        (AnyPeer(), name("x.com"), True),
    ],
)
def test_what_meets(one: Peer, other: Peer, meet: bool) -> None:
    """By the pods there are; a name may have any address outside."""
    assert peers_overlap(one, other, WORLD) is meet
    assert peers_overlap(other, one, WORLD) is meet


def test_without_pods_selectors_may_meet() -> None:
    """A folder of policies alone says nothing of who there is."""
    assert peers_overlap(pods(app="x"), pods(app="y"), World())
    assert peers_overlap(pods(app="x"), cidr("10.0.0.0/8"), World())
