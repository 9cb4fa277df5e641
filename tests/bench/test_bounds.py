"""A missed bound is said to be missed."""

from __future__ import annotations

from typing import Any

import pytest

from bench.bounds import Measured, judge_core, judge_pipeline, judge_scenarios
from bench.fleet import judge_fleet

FOUND = {
    "nats_round_trip": {"p50_ms": 0.2, "p99_ms": 0.5, "samples": 500},
    "answer_to_other_node": {"p50_ms": 1.0, "p99_ms": 4.0, "samples": 200, "p50_ratio": 5.0, "p99_ratio": 20.0},
    "manifest_to_verdict": {"p50_ms": 12.0, "p99_ms": 30.0, "samples": 200},
    "first_connections": {"count": 1000, "retransmitted": 0, "failed": 0},
}


def test_figures_within_their_bounds_are_met() -> None:
    """All four."""
    assert [row.met for row in judge_pipeline(FOUND)] == [True] * 4


def test_each_figure_beyond_its_bound_is_missed() -> None:
    """One lost SYN in a thousand is one too many."""
    found = {
        "nats_round_trip": FOUND["nats_round_trip"],
        "answer_to_other_node": {**FOUND["answer_to_other_node"], "p50_ratio": 8.1, "p99_ratio": 40.1},
        "manifest_to_verdict": {**FOUND["manifest_to_verdict"], "p50_ms": 20.1},
        "first_connections": {"count": 1000, "retransmitted": 1, "failed": 0},
    }
    rows = judge_pipeline(found)
    assert [row.met for row in rows] == [False] * 4
    assert rows[-1].to_json()["unit"] == "of 1000"


def core_found(*, scale: float = 1.0) -> list[dict[str, Any]]:
    """Four sizes at which everything takes as long as there is of it."""

    def event(millis: float) -> dict[str, float]:
        return {
            "median": millis * scale,
            "least": millis * scale,
            "p95": millis,
            "wall": millis,
            "plan": millis,
            "rows": 2,
        }

    return [
        {
            "pods": 1250 * times,
            "cold": [0.5 * times * scale] * 3,
            "peak": 40.0 * times * scale,
            "rows": 25_000,
            "events": {
                "pod added": event(0.3 * times),
                "policy of all pods, port edited": event(6.0 * times),
                "namespace relabelled": event(12.0 * times),
            },
            "repeated": [0.1 * times],
            "peers": [0.1 * times],
        }
        for times in (1, 2, 4, 8)
    ]


def test_the_cores_figures_are_held_to_their_bounds_and_to_linear_growth() -> None:
    """A figure of each kind at the size given, and what it grew by from an eighth of it."""
    assert [row.met for row in judge_core(core_found())] == [True] * 11
    slow = judge_core(core_found(scale=1.3))
    absolute = [row.met for row in slow if row.unit != "x"]
    assert absolute == [False] * 5
    quadratic = core_found()
    quadratic[0] |= {"cold": [0.1], "repeated": [0.01], "peers": [0.01]}
    assert [row.what.split(":")[0] for row in judge_core(quadratic) if not row.met] == [
        "cold compile",
        "one prefix in 1000 rules over 8 subjects",
        "20000 peers in one rule",
    ]


def test_a_part_of_the_scenarios_has_a_part_of_the_time() -> None:
    """A tenth of the probes has a tenth of the seconds; one probe judged differently is one too many."""
    spent = {"evaluate": {"cpu": 11.0, "wall": 11.0}, "kernel": {"cpu": 29.0, "wall": 29.0}}
    found = {"scenarios": 100, "probes": 25_000, **spent, "different": 0, "examples": []}
    assert [row.met for row in judge_scenarios(found)] == [True] * 3
    found |= {
        "evaluate": {"cpu": 13.0, "wall": 13.0},
        "kernel": {"cpu": 31.0, "wall": 31.0},
        "different": 1,
        "examples": ["seed-1 probe 2"],
    }
    assert [row.met for row in judge_scenarios(found)] == [False] * 3


def test_a_figure_of_which_nothing_was_promised_misses_nothing() -> None:
    """It is printed, and the run does not fail for it."""
    assert Measured("start storm", 100.0, "s", None).met


def test_the_fleet_says_every_figure_that_was_asked_for() -> None:
    """The storm, the server's processor time and memory, the last ack at p50 and p99; none has a bound."""
    found = {
        "addresses": 5000,
        "storm": {"median": 2.0, "last": 4.0},
        "storm_cpu": 3.0,
        "memory": 100.0,
        "revisions_cpu": 0.5,
        "acks": [float(millis) for millis in range(1, 101)],
    }
    rows = judge_fleet(found)
    assert [row.value for row in rows] == [4.0, 3.0, 100.0, 50.5, pytest.approx(100.0, abs=1.0), 5.0]
    assert all(row.bound is None for row in rows)
