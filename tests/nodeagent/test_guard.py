"""No name may have an address that leads inward, in any form that embeds it."""

from __future__ import annotations

import pytest

from schemas.policy import Config
from services.nodeagent.guard import build_guard
from services.nodeagent.names import Guard


def guard(config: Config | None = None, frontends: tuple[str, ...] = ()) -> Guard:
    return Guard(build_guard(config or Config(), frontends))


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "127.0.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "168.63.129.16",
        "100.100.100.200",
        "::",
        "::1",
        "::7f00:1",
        "fe80::1",
        "ff02::1",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b::7f00:1",
        "64:ff9b:1::c000:201",
        "64:ff9b:1:ffff:ffff:ffff:ffff:ffff",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "::ffff:192.0.2.1",
    ],
)
def test_never_learned(address) -> None:
    """Loopback, link-local, multicast, unspecified, metadata, and their NAT64, 6to4, compatible and mapped forms."""
    assert guard().refuses(address)


@pytest.mark.parametrize(
    "address", ["192.0.2.1", "10.0.0.1", "2001:db8::1", "64:ff9b::c000:201", "64:ff9b:2::1", "2002:c000:201::1"]
)
def test_other_addresses_may_be_learned(address) -> None:
    """Public and private addresses alike: a database in the VPC has a name too."""
    assert not guard().refuses(address)


def test_services_are_refused_and_have_no_exception() -> None:
    """The Service range and frontends beyond it are judged as Services, whatever an exception says."""
    config = Config(service_cidrs=("10.96.0.0/16",), learn_anyway_cidrs=("10.0.0.0/8", "203.0.113.7/32"))
    checked = guard(config, ("203.0.113.7",))
    assert checked.refuses("10.96.0.1")
    assert checked.refuses("203.0.113.7")
    assert checked.refuses("64:ff9b::a60:1")
    assert not checked.refuses("10.97.0.1")


def test_a_setting_adds_and_another_takes_away() -> None:
    """``never_learn_cidrs`` is refused but for ``learn_anyway_cidrs``, however wide either is."""
    config = Config(never_learn_cidrs=("10.0.0.0/8",), learn_anyway_cidrs=("10.1.0.0/16", "169.254.20.10/32"))
    checked = guard(config)
    assert checked.refuses("10.2.0.1")
    assert not checked.refuses("10.1.0.1")
    assert not checked.refuses("169.254.20.10")
    assert not guard(Config(never_learn_cidrs=("10.1.0.0/16",), learn_anyway_cidrs=("10.0.0.0/8",))).refuses("10.1.0.1")
