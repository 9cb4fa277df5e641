"""A missed bound is said to be missed."""

from __future__ import annotations

from bench.bounds import judge_pipeline

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
