"""Where a moment lies on the page: linear while something happens, cut where nothing does. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.story.spans import Span

QUIET_NANOS = 12_000_000
"""Without a span for longer than this the axis is cut."""
CUT_WIDTH = 62.0
LEAST_WIDTH = 46.0
"""Of a stretch, however short: a span of microseconds can still be seen."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A time in which something happens, and its place."""

    start: int
    end: int
    left: float
    width: float


class Axis:
    """From the first span's start to the last one's end, between ``left`` and ``right``."""

    def __init__(self, spans: Iterable[Span], left: float, right: float) -> None:
        times = _find_stretches(sorted((span.start_nanos, span.end_nanos) for span in spans))
        room = right - left - CUT_WIDTH * (len(times) - 1) - LEAST_WIDTH * len(times)
        scale = room / max(1, sum(end - start for start, end in times))
        self.stretches: list[Stretch] = []
        for start, end in times:
            width = LEAST_WIDTH + (end - start) * scale
            self.stretches.append(Stretch(start, end, left, width))
            left += width + CUT_WIDTH
        self.zero = times[0][0]

    def place(self, nanos: int) -> float:
        """Of a moment within a stretch."""
        stretch = next(one for one in self.stretches if nanos <= one.end)
        share = (nanos - stretch.start) / max(1, stretch.end - stretch.start)
        return stretch.left + share * stretch.width


def _find_stretches(times: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for start, end in times:
        if found and start - found[-1][1] <= QUIET_NANOS:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found
