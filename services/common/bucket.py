"""Token buckets by key, bounded in number. Pure: time comes in."""

from __future__ import annotations

from collections import OrderedDict

MAX_KEYS = 10_000
"""Budgets kept; the one used longest ago is dropped, and starts full when it returns."""


class Buckets:
    """A token bucket a key: ``burst`` tokens at once, ``rate`` new ones a second."""

    def __init__(self, *, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str, now: float) -> bool:
        """Whether there is a token for ``key`` at ``now`` (seconds, any monotonic clock); takes it."""
        level, since = self._levels.pop(key, (self._burst, now))
        level = min(self._burst, level + (now - since) * self._rate)
        allowed = level >= 1.0
        self._levels[key] = (level - 1.0 if allowed else level, now)
        if len(self._levels) > MAX_KEYS:
            self._levels.popitem(last=False)
        return allowed
