"""Domain patterns as nodes of a longest-prefix tree over reversed names.

A node's longest match must stand for every pattern that covers the name. Because patterns nest (a name, then ``*.`` of
each of its parents), the most specific node knows all of them; no node but the patterns themselves is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set


def covering_candidates(node: str) -> Iterator[str]:
    """Every pattern that could cover all names of ``node`` (``x`` or ``*.x``), the most specific first."""
    yield node
    name = node.removeprefix("*.")
    parents = name.split(".")[1:]
    for depth in range(len(parents)):
        yield "*." + ".".join(parents[depth:])


def find_covering(node: str, patterns: Set[str]) -> frozenset[str]:
    """Those of ``patterns`` that cover every name of ``node``."""
    return frozenset(one for one in covering_candidates(node) if one in patterns)


def find_node(name: str, nodes: Set[str]) -> str:
    """The longest match of a name: itself, or the deepest ``*.parent``; empty if none."""
    return next((one for one in covering_candidates(name) if one in nodes), "")


def reduce_patterns(patterns: Iterable[str]) -> list[str]:
    """A smallest set that covers the same names, sorted: a pattern below another one is left out."""
    given = frozenset(patterns)
    return sorted(one for one in given if len(find_covering(one, given)) == 1)


def coarsen_patterns(patterns: Iterable[str], limit: int) -> list[str]:
    """At most ``limit`` patterns that cover at least the same names: deepest siblings give way to their parent.

    ``limit`` at least 1. The result may be ``*`` (all names) in the worst case.
    """
    current = set(reduce_patterns(patterns))
    while len(current) > limit:
        deepest = max(_depth(one) for one in current)
        coarser = {_parent(one) if _depth(one) == deepest else one for one in current}
        if "*" in coarser:
            return ["*"]
        current = set(reduce_patterns(coarser))
    return sorted(current)


def _depth(pattern: str) -> int:
    return len(pattern.removeprefix("*.").split(".")) + (0 if pattern.startswith("*.") else 1)


def _parent(pattern: str) -> str:
    """``x.y`` -> ``*.y``; ``*.x.y`` -> ``*.y``; of a single label: ``*``."""
    _, _, parent = pattern.removeprefix("*.").partition(".")
    return f"*.{parent}" if parent else "*"
