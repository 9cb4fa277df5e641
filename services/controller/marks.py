"""Sets that are gone through in order of arrival.

What came together lies together in memory. To go through ten thousand pods in the order of a hash is to wait for memory
at each of them, half as long again in a large cluster as in one that the processor's cache holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


class Marks(dict[T, None]):
    """What is marked until somebody has seen to it."""

    def add(self, item: T) -> None:
        self[item] = None

    def add_all(self, items: Iterable[T]) -> None:
        self.update(dict.fromkeys(items))
