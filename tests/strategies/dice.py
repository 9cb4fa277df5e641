"""Two dice for one generator: ``RandomDice`` rolls evenly from a seed, for volume; ``DrawnDice`` lets hypothesis
choose, for shrinking. The first option is always the simplest."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from hypothesis import strategies as st

Obj = dict[str, Any]
T = TypeVar("T")


class Dice(Protocol):
    """Where randomness comes from."""

    def pick(self, options: Sequence[T]) -> T: ...


@dataclass
class RandomDice:
    """Even, from a seed."""

    random: random.Random

    def pick(self, options: Sequence[T]) -> T:
        return self.random.choice(options)


@dataclass
class DrawnDice:
    """Hypothesis' choice."""

    draw: st.DrawFn

    def pick(self, options: Sequence[T]) -> T:
        return self.draw(st.sampled_from(options))


def is_rare(dice: Dice, one_in: int) -> bool:
    """True once in so many times; the simplest answer is no."""
    return dice.pick((*(False,) * (one_in - 1), True))
