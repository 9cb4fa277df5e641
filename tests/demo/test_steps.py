"""The steps say what the issue and the seeds say, row by row."""

from __future__ import annotations

import pytest
import yaml

from services.demo.folder import read_manifest
from services.demo.rows import describe_destination, describe_source
from services.demo.steps import ALLOWED, BLOCKED, STEPS, Apply, Configure, parse_selection


def rows_of(number: int) -> list[tuple[str, str, str]]:
    """Source, destination, expected of a step."""
    return [
        (describe_source(probe), describe_destination(probe), probe.expected)
        for phase in STEPS[number - 1].phases
        for probe in phase.probes
    ]


def test_there_are_ten_steps_in_order() -> None:
    """One a number, each with something to try."""
    assert [step.number for step in STEPS] == list(range(1, 11))
    assert all(any(phase.probes for phase in step.phases) for step in STEPS)


def test_step_1_is_the_first_table_of_the_seed() -> None:
    """All three routes are Blocked without a policy."""
    assert rows_of(1) == [
        ("curl-backend", "backend Service", BLOCKED),
        ("curl-backend", "example.com", BLOCKED),
        ("curl-frontend", "backend Service", BLOCKED),
    ]


def test_step_3_is_the_second_table_of_the_seed() -> None:
    """The domain rule opens one name to the pods it selects."""
    assert rows_of(3) == [
        ("curl-backend", "example.com:80", ALLOWED),
        ("curl-backend", "httpbin.org:80", BLOCKED),
        ("curl-frontend", "example.com:80", BLOCKED),
    ]


def test_step_4_is_the_last_table_of_the_seed_without_its_leak_and_once_more_across_nodes() -> None:
    """``curl-frontend -> example.com`` is Blocked, on one node and across two."""
    expected = [ALLOWED, ALLOWED, BLOCKED, ALLOWED, BLOCKED, BLOCKED]
    rows = rows_of(4)
    assert [row[2] for row in rows] == expected * 2
    assert ("curl-frontend", "example.com", BLOCKED) in rows
    assert ("curl-frontend@node-b", "example.com", BLOCKED) in rows


def test_step_5_blocks_the_metadata_service_and_nothing_else() -> None:
    """The permissive policy opens the rest."""
    assert {(row[1] == "169.254.169.254", row[2]) for row in rows_of(5)} == {(True, BLOCKED), (False, ALLOWED)}


def test_step_8_switches_the_default_and_switches_it_back() -> None:
    """Deny, allow, deny, and no namespace but the step's own is tried."""
    assert [row[2] for row in rows_of(8)] == [BLOCKED] * 2 + [ALLOWED] * 2 + [BLOCKED] * 2
    settings = [action for phase in STEPS[7].phases for action in phase.actions if isinstance(action, Configure)]
    assert [dict(action.settings).get("default", "deny") for action in settings] == ["allow", "deny"]


def test_every_manifest_of_a_step_comes_with_the_demo_and_is_used_once() -> None:
    """Files are numbered by the step that applies them."""
    used = [
        (step.number, manifest)
        for step in STEPS
        for phase in step.phases
        for action in phase.actions
        if isinstance(action, Apply)
        for manifest in action.manifests
    ]
    assert len({manifest for _, manifest in used}) == len(used)
    for number, manifest in used:
        assert manifest.startswith(f"{number}-")
        assert all(document["metadata"]["name"] for document in yaml.safe_load_all(read_manifest(manifest)))


@pytest.mark.parametrize(("text", "chosen"), [("1-3", {1, 2, 3}), ("7", {7}), ("1-2, 9", {1, 2, 9})])
def test_a_selection_is_numbers_and_ranges(text: str, chosen: set[int]) -> None:
    """``--steps`` takes what a print dialogue takes."""
    assert parse_selection(text) == chosen


@pytest.mark.parametrize("text", ["", "0", "11", "3-1", "a", "1-b", "-3"])
def test_a_selection_that_means_nothing_is_refused_in_words(text: str) -> None:
    """The message quotes what was given."""
    with pytest.raises(ValueError, match="step"):
        parse_selection(text)
