"""Longest-prefix nodes, closed under nesting: a node carries all that holds for the addresses that match it longest.

A longest-prefix match finds one node, so the node must know its ancestors' contents too, less those that it takes away.
Rules of this module: prefixes are canonical text; the families never meet; an except removes from its own peer only.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import TypeVar

from schemas.selectors import parse_network

T = TypeVar("T", bound=Hashable)


def close_prefixes(contents: Mapping[T, tuple[str, Sequence[str]]]) -> dict[str, frozenset[T]]:
    """content -> (prefix, excepts) becomes node -> contents in force there; excepts are nodes as well."""
    added: dict[IPv4Network | IPv6Network, list[T]] = {}
    removed: dict[IPv4Network | IPv6Network, list[T]] = {}
    for content, (cidr, excepts) in contents.items():
        network = parse_network(cidr)
        taken_away = [parse_network(one) for one in excepts]
        if any(_covers(one, network) for one in taken_away):
            continue  # nothing is left of it
        added.setdefault(network, []).append(content)
        for one in taken_away:
            removed.setdefault(one, []).append(content)
    return dict(_walk(added, removed))


def _covers(outer: IPv4Network | IPv6Network, inner: IPv4Network | IPv6Network) -> bool:
    """Whether every address of ``inner`` is in ``outer``."""
    if outer.version != inner.version or outer.prefixlen > inner.prefixlen:
        return False
    return int(inner.network_address) >> (inner.max_prefixlen - outer.prefixlen) == int(outer.network_address) >> (
        outer.max_prefixlen - outer.prefixlen
    )


def _walk(
    added: Mapping[IPv4Network | IPv6Network, Iterable[T]], removed: Mapping[IPv4Network | IPv6Network, Iterable[T]]
) -> Iterator[tuple[str, frozenset[T]]]:
    """Nodes in order of address and length: ancestors come first and stay on the stack while they cover."""
    ordered = sorted(
        added.keys() | removed.keys(), key=lambda one: (one.version, int(one.network_address), one.prefixlen)
    )
    stack: list[tuple[IPv4Network | IPv6Network, frozenset[T]]] = []
    for node in ordered:
        while stack and not _covers(stack[-1][0], node):
            stack.pop()
        inherited = stack[-1][1] if stack else frozenset()
        here = inherited.difference(removed.get(node, ())).union(added.get(node, ()))
        stack.append((node, here))
        yield str(node), here
