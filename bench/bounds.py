"""The bounds of the pipeline's figures: pure, so that a test can hold them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

SWITCH_P50_MILLIS = 20.0
SHARE_P50_RATIO = 8.0
SHARE_P99_RATIO = 40.0
"""To the p50 of the bare NATS round trip of the same run."""


@dataclass(frozen=True)
class Measured:
    """One figure and what was promised of it; ``value`` at most ``bound``."""

    what: str
    value: float
    unit: str
    bound: float
    spread: str = ""

    @property
    def met(self) -> bool:
        """Whether the promise is kept."""
        return self.value <= self.bound

    def to_json(self) -> dict[str, object]:
        """As ``build/bench.json`` has it."""
        return {**asdict(self), "met": self.met}


def judge_pipeline(found: dict[str, Any]) -> list[Measured]:
    """Rows for what ``figures.measure`` found; KeyError if a figure is missing."""
    bare, shared, switch = found["nats_round_trip"], found["answer_to_other_node"], found["manifest_to_verdict"]
    first = found["first_connections"]
    spread = f"p50 {shared['p50_ms']:g} ms, p99 {shared['p99_ms']:g} ms, bare p50 {bare['p50_ms']:g} ms"
    return [
        Measured(
            what="manifest event to verdict changed on both nodes, p50",
            value=switch["p50_ms"],
            unit="ms",
            bound=SWITCH_P50_MILLIS,
            spread=f"p99 {switch['p99_ms']:g} ms of {switch['samples']}",
        ),
        Measured(
            what="answer on one node to its use on the other, p50",
            value=shared["p50_ratio"],
            unit="x bare",
            bound=SHARE_P50_RATIO,
            spread=spread,
        ),
        Measured(
            what="answer on one node to its use on the other, p99",
            value=shared["p99_ratio"],
            unit="x bare",
            bound=SHARE_P99_RATIO,
            spread=spread,
        ),
        Measured(
            what="first connections that lost a SYN, or failed",
            value=first["retransmitted"] + first["failed"],
            unit=f"of {first['count']}",
            bound=0,
        ),
    ]
