"""Where the cases of ``tests/scenarios`` come from, and how many there are."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[1] / "scenarios"
SUITES = sorted(FOLDER.glob("*.yaml"))
SCENARIOS_MIN = 400
EXPECTS_MIN = 1000
REFUSALS_MIN = 180
_SOURCE = re.compile(r"# source: (https://[a-z0-9.-]+/\S*|docs/audit\.md)")
"""Audit mode is our own: no other page says what it means."""


def read_documents(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(text, scenario), one a document of the file."""
    texts = path.read_text().split("\n---\n")
    return [(text, yaml.safe_load(text)) for text in texts]


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_every_scenario_begins_with_the_address_of_its_source(path: Path) -> None:
    """The first line of a scenario is a comment with the address of the page that decides it."""
    for text, scenario in read_documents(path):
        assert _SOURCE.fullmatch(text.lstrip().splitlines()[0]), scenario["name"]


def test_the_suites_are_strong() -> None:
    """At least 400 scenarios, 1,000 probes with an ``expect``, and 180 faults that must be refused."""
    scenarios = [scenario for path in SUITES for _, scenario in read_documents(path)]
    assert len(scenarios) >= SCENARIOS_MIN
    assert sum("expect" in probe for each in scenarios for probe in each["probes"]) >= EXPECTS_MIN
    assert sum(len(each.get("expect_problems", [])) for each in scenarios) >= REFUSALS_MIN


def test_names_and_ids_say_which_case_failed() -> None:
    """A scenario's name is its own among all suites, a probe's id within its scenario."""
    scenarios = [scenario for path in SUITES for _, scenario in read_documents(path)]
    assert [name for name, count in Counter(each["name"] for each in scenarios).items() if count > 1] == []
    for each in scenarios:
        assert [key for key, count in Counter(probe["id"] for probe in each["probes"]).items() if count > 1] == []


def test_suites_name_objects_that_exist() -> None:
    """Shared clusters and the seeds' objects are named by paths beside the suite."""
    for path in SUITES:
        for _, scenario in read_documents(path):
            assert all((path.parent / name).is_file() for name in scenario.get("files", []))
