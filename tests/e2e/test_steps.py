"""The ten steps, on real packets: one demo, a test for each step."""

from __future__ import annotations

import pytest

from services.demo.rows import describe_destination, describe_source
from services.demo.steps import STEPS
from tests.e2e.conftest import Result

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.mark.parametrize("number", [step.number for step in STEPS], ids=lambda number: f"step{number}")
def test_every_row_of_the_step_is_as_expected(demo_result: Result, number: int) -> None:
    """Each probe of the step gave a row, and what was observed is what was expected."""
    step = STEPS[number - 1]
    expected = [
        (describe_source(probe), describe_destination(probe), probe.expected, probe.expected)
        for phase in step.phases
        for probe in phase.probes
    ]
    rows = [(row["source"], row["destination"], row["expected"], row["observed"]) for row in demo_result.step(number)]
    assert rows == expected, demo_result.stderr


@pytest.mark.parametrize("source", ["curl-frontend", "curl-frontend@node-b"])
def test_a_permission_does_not_leak_to_a_neighbour(demo_result: Result, source: str) -> None:
    """On one node and across two: the unselected pod stays out of what its neighbour was allowed and resolved."""
    (row,) = [row for row in demo_result.step(4) if (row["source"], row["destination"]) == (source, "example.com")]
    assert row["observed"] == "Blocked"
    assert row["tier"] == "NetworkPolicy"
    assert row["reason"].startswith("ISOLATED")


def test_a_denied_name_is_named(demo_result: Result) -> None:
    """``httpbin.org`` is covered by no rule, and yet the denial says it."""
    (row,) = [row for row in demo_result.step(3) if row["destination"] == "httpbin.org:80"]
    assert row["reason"] == "ISOLATED: httpbin.org"


def test_rows_name_policy_rule_and_tier(demo_result: Result) -> None:
    """Where a rule decided."""
    (row,) = [
        row for row in demo_result.step(5) if row["destination"] == "169.254.169.254" and "@" not in row["source"]
    ]
    assert (row["policy"], row["rule"], row["tier"]) == (
        "block-instance-metadata-service",
        "deny-metadata-service",
        "Admin",
    )


def test_an_expired_name_is_the_reason(demo_result: Result) -> None:
    """A new connection to where the database was is denied because the name has moved on, and the row says so."""
    row = demo_result.step(10)[-1]
    assert row["reason"] == "NAME_EXPIRED: db.internal.company.com"


def test_the_demo_ends_well_and_in_time(demo_result: Result) -> None:
    """Exit status 0, at most 120 s."""
    assert demo_result.code == 0, demo_result.stderr
    assert demo_result.timings["total_seconds"] <= 120


def test_no_first_connection_lost_its_syn(demo_result: Result) -> None:
    """A thousand names never seen before, each used right after its answer."""
    assert demo_result.timings["first_connections"] == {"count": 1000, "retransmitted": 0, "failed": 0}


@pytest.mark.parametrize("figure", ["nats_round_trip", "answer_to_other_node", "manifest_to_verdict"])
def test_every_figure_has_its_samples(demo_result: Result, figure: str) -> None:
    """p50 and p99 of at least 200."""
    assert demo_result.timings[figure]["samples"] >= 200
    assert 0 < demo_result.timings[figure]["p50_ms"] <= demo_result.timings[figure]["p99_ms"]
