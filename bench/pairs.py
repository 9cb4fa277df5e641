"""Like against like on a machine that does other things too: samples taken in turns, compared within a turn.

A ratio is made of two samples of one turn, seconds apart, and the median of the turns counts, so that what slows the
machine for a while slows both. The control is a third of the same kind: what it differs from one by is noise.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.bounds import Measured

ENFORCED, BARE, CONTROL = "enforced", "bare", "control"
"""Attached; not attached; not attached either."""
FIRST = ("chrt", "--rr", "1")
"""Generators and servers run before whatever else the machine does; otherwise its scheduler is what is measured."""


@dataclass(frozen=True, slots=True)
class Ratios:
    """Quotients turn by turn."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The figure."""
        return statistics.median(self.values)

    @property
    def spread(self) -> str:
        """Median and quartiles, as people read them."""
        low, _, high = statistics.quantiles(self.values, n=4)
        return f"{self.median:.3f} ({low:.3f} to {high:.3f})"


def take_turns(turns: int, measures: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Every measure once a turn; who comes first moves on by one each turn."""
    names = list(measures)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(turns):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(measures[name]())
    return found


def compare(found: Mapping[str, Sequence[float]], name: str, base: str) -> Ratios:
    """``name`` by ``base``, turn by turn."""
    return Ratios(tuple(one / other for one, other in zip(found[name], found[base], strict=True)))


def judge_pairs(
    what: str,
    found: Mapping[str, Sequence[float]],
    bound: float,
    unit: str,
    floors: Mapping[str, Ratios] | None = None,
) -> Measured:
    """Enforced by bare, at least ``bound``; the control's ratio and the bare median (in ``unit``) beside it.

    ``floors``: what else was compared with the bare, in words.
    """
    ratio, control = compare(found, ENFORCED, BARE), compare(found, CONTROL, BARE)
    bare = f"bare {statistics.median(found[BARE]):.4g} {unit}"
    others = "".join(f"; {words} {floor.spread}" for words, floor in (floors or {}).items())
    spread = f"{ratio.spread}; control {control.spread}{others}; {len(ratio.values)} pairs; {bare}"
    return Measured(what, round(ratio.median, 4), "x bare", bound, spread, at_least=True)
