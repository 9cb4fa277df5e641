"""The bounds of the pipeline's and the core's figures: pure, so that a test can hold them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

SWITCH_P50_MILLIS = 20.0
SHARE_P50_RATIO = 8.0
SHARE_P99_RATIO = 40.0
"""To the p50 of the bare NATS round trip of the same run."""

COLD_SECONDS, PEAK_MEBIBYTES = 5.0, 400.0
POD_MILLIS, POLICY_MILLIS, NAMESPACE_MILLIS = 3.0, 50.0, 100.0
GROWTH_MAX = 10.0
"""Near-linear: eight times the work in at most so many times the time."""
SCENARIOS, PROBES = 1_000, 250_000
EVALUATE_SECONDS, KERNEL_SECONDS = 120.0, 300.0
"""For so many scenarios with so many probes in all."""
TRAFFIC_RATIO = 0.97
"""What enforcement leaves of the traffic between two pods."""
DNS_STEADY_RATIO, DNS_LIMIT_RATIO, FORWARDER_RATIO = 0.97, 0.92, 1.0
"""What it leaves of the answers at a steady rate, and at the resolver's limit; what a forwarder may do of ours."""
PREFIXES_SECONDS = 1.0
APPLY_P50_MILLIS, APPLY_P99_MILLIS, ENFORCED_P99_MILLIS = 100.0, 400.0, 300.0
"""From kubectl's return to packets; from a pod's status to its first packet."""
RESTART_SECONDS = 5.0
LIST_SECONDS, LIST_MEGABYTES = 3.0, 150.0
AGENT_MEGABYTES, RECORDER_MEGABYTES, CONTROLLER_MEGABYTES = 100.0, 80.0, 120.0


@dataclass(frozen=True)
class Measured:
    """One figure and what was promised of it: ``value`` at most ``bound``, or at least where ``at_least``.

    ``bound`` None: nothing was promised.
    """

    what: str
    value: float
    unit: str
    bound: float | None
    spread: str = ""
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the promise is kept, if there is one."""
        if self.bound is None:
            return True
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def to_json(self) -> dict[str, object]:
        """As ``build/bench.json`` has it."""
        shown = {**asdict(self), "met": self.met}
        del shown["at_least"]
        return shown


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


def judge_core(found: Sequence[Mapping[str, Any]]) -> list[Measured]:
    """Rows for what ``core.measure`` found at its sizes, the smallest first; KeyError if a figure is missing."""
    last = found[-1]
    what = f"{last['pods']} pods"
    peaks = f"1x, 2x, 4x, 8x: {_join(each['peak'] for each in found)}"
    rows = [
        _grown(f"cold compile of {what}", "s", COLD_SECONDS, [statistics.median(each["cold"]) for each in found]),
        Measured(f"peak memory of it, {last['rows']} rows", last["peak"], "MiB", PEAK_MEBIBYTES, peaks),
    ]
    for name, event in last["events"].items():
        medians = [each["events"][name]["median"] for each in found]
        row = _grown(f"{name}, {what}", "ms", _bound_of(name), medians)
        words = f"p95 {event['p95']:.3g}, wall {event['wall']:.3g}, {event['rows']} rows"
        spread = f"{words}; their messages {event['plan']:.3g}; {row.spread}"
        rows += [replace(row, spread=spread), _growth(name, [each["events"][name]["least"] for each in found])]
    rows.insert(1, _growth("cold compile", [min(each["cold"]) for each in found]))
    for key, name in (("repeated", "one prefix in 1000 rules over 8 subjects"), ("peers", "20000 peers in one rule")):
        rows.append(_growth(name, [min(each[key]) for each in found], unit="s"))
    return rows


def judge_scenarios(found: Mapping[str, Any]) -> list[Measured]:
    """Rows for what ``scenarios.measure`` found; the bounds are in proportion where it ran a part of the probes."""
    share = found["probes"] / PROBES
    size = f"{found['scenarios']} scenarios with {found['probes']} probes"
    rows = []
    for engine, bound in (("evaluate", EVALUATE_SECONDS), ("kernel", KERNEL_SECONDS)):
        spent = found[engine]
        spread = f"wall {spent['wall']:.3g} s; all {PROBES}: {spent['cpu'] / share:.3g} of {bound:g} s"
        rows.append(Measured(f"{size} by {engine}", spent["cpu"], "s", bound * share, spread))
    different = Measured("probes that the engines judge differently", found["different"], "probes", 0)
    rows.append(replace(different, spread="; ".join(found["examples"])))
    return rows


def _bound_of(event: str) -> float:
    return {"pod": POD_MILLIS, "policy": POLICY_MILLIS, "namespace": NAMESPACE_MILLIS}[event.split(maxsplit=1)[0]]


def _grown(what: str, unit: str, bound: float, values: Sequence[float]) -> Measured:
    """The figure at the size given, with the smaller sizes' beside it."""
    return Measured(what, values[-1], unit, bound, f"1x, 2x, 4x, 8x: {_join(values)}")


def _growth(what: str, values: Sequence[float], *, unit: str = "") -> Measured:
    spread = f"{_join(values)} {unit}".strip()
    return Measured(f"{what}: 8x the size to 1x", values[-1] / values[0], "x", GROWTH_MAX, spread)


def _join(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
