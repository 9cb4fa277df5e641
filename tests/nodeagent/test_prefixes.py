"""A longest-prefix match finds one node; the node knows everything that holds there."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from services.nodeagent.prefixes import close_prefixes

CIDRS = [
    f"10.{a}.{b}.0/{bits}" for bits, a, b in ((8, 0, 0), (16, 1, 0), (24, 1, 2), (23, 1, 2), (32, 1, 2), (16, 2, 0))
]
CIDRS += ["0.0.0.0/0", "::/0", "2001:db8::/32", "2001:db8:1::/48"]
ADDRESSES = [
    "10.1.2.0",
    "10.1.2.9",
    "10.1.3.9",
    "10.1.9.9",
    "10.2.0.1",
    "10.9.9.9",
    "192.0.2.1",
    "2001:db8:1::5",
    "::5",
]

peers = st.lists(st.tuples(st.sampled_from(CIDRS), st.sets(st.sampled_from(CIDRS), max_size=2).map(tuple)), max_size=6)


def holds(cidr: str, excepts: tuple[str, ...], address: str) -> bool:
    here = ip_address(address)
    networks = [ip_network(one) for one in (cidr, *excepts)]
    inside = [here.version == one.version and here in one for one in networks]
    return inside[0] and not any(inside[1:])


def look_up(nodes: dict[str, frozenset[int]], address: str) -> frozenset[int]:
    found = [one for one in nodes if holds(one, (), address)]
    return nodes[max(found, key=lambda one: ip_network(one).prefixlen)] if found else frozenset()


@given(peers)
def test_the_longest_match_carries_all_that_covers(contents) -> None:
    """For every address, the peers of its longest node are exactly those whose CIDR has it and whose excepts do not."""
    nodes = close_prefixes(dict(enumerate(contents)))
    for address in ADDRESSES:
        expected = {number for number, (cidr, excepts) in enumerate(contents) if holds(cidr, excepts, address)}
        assert look_up(nodes, address) == expected, address


def test_an_except_takes_from_its_own_peer_only() -> None:
    """Two peers over one range: the except of one leaves the other whole."""
    nodes = close_prefixes({"a": ("10.0.0.0/8", ("10.1.0.0/16",)), "b": ("10.0.0.0/8", ())})
    assert nodes == {"10.0.0.0/8": {"a", "b"}, "10.1.0.0/16": {"b"}}


def test_many_prefixes_close_in_linear_time() -> None:
    """Every prefix is one node, in one pass."""
    contents = {n: (f"10.{n >> 8}.{n & 255}.0/24", ()) for n in range(20_000)} | {-1: ("0.0.0.0/0", ())}
    nodes = close_prefixes(contents)
    assert len(nodes) == 20_001
    assert nodes["10.1.2.0/24"] == {258, -1}
