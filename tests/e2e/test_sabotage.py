"""What is broken on purpose is seen: the rows that depend on it fail, and only those."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Result, run_demo

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def failing(result: Result) -> set[tuple[int, str, str]]:
    """Step, source and destination of rows that were not observed as expected."""
    return {
        (row["step"], row["source"], row["destination"]) for row in result.rows if row["observed"] != row["expected"]
    }


def test_detached_filters_are_seen() -> None:
    """The pod without filters reaches what it must not; every other pod's rows hold."""
    result = run_demo("--sabotage", "detach", "--steps", "3-4")
    assert result.code == 1
    assert failing(result) == {
        (3, "curl-frontend", "example.com:80"),
        (4, "curl-frontend", "example.com"),
        (4, "curl-frontend", "httpbin.org"),
    }


def test_an_open_default_is_seen() -> None:
    """Without a policy everything passes that must not."""
    result = run_demo("--sabotage", "open", "--steps", "1")
    assert result.code == 1
    assert failing(result) == {(row["step"], row["source"], row["destination"]) for row in result.rows} != set()


def test_a_bus_that_carries_no_names_is_seen() -> None:
    """What only the other node resolved stays shut."""
    result = run_demo("--sabotage", "no-bus", "--steps", "6-7")
    assert result.code == 1
    assert failing(result) == {(7, "s3-client", "198.51.100.13:443")}


def test_the_seeds_defect_is_seen() -> None:
    """Names that are the node's open the neighbour's door; on the other node it stays shut."""
    result = run_demo("--sabotage", "node-scope", "--steps", "3-4")
    assert result.code == 1
    assert failing(result) == {(3, "curl-frontend", "example.com:80"), (4, "curl-frontend", "example.com")}
