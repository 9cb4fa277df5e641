"""Pages that say what the code does are compared with the code."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from schemas.terms import Reason
from services.cli import audit
from services.common.settings import CONFIG_VARIABLE, SERVICES
from services.controller.policy.parse_settings import SETTINGS
from services.scenario.explain import MARKS
from services.scenario.lint import LINTS
from services.scenario.model import PROBE_FIELDS, SCENARIO_FIELDS
from services.scenario.usage import Use
from tests import run_kernels

DOCS = Path(__file__).parents[2] / "docs"


def first_cells(page: str) -> list[str]:
    """The first cell of every table row, header rows and rules left out."""
    rows = re.findall(r"^\| ?([^|]+?) ?\|", (DOCS / page).read_text(), re.M)
    return [cell.strip("`") for cell in rows if not set(cell) <= {"-", ":"}]


def test_every_reason_is_explained_and_none_is_invented() -> None:
    """docs/reasons.md has one row for every member of the enum."""
    explained = [cell for cell in first_cells("reasons.md") if cell != "reason"]
    assert sorted(explained) == sorted(reason.name for reason in Reason)


def test_every_reason_says_what_to_look_at_and_what_to_do() -> None:
    """Four cells a row, none empty, none a placeholder."""
    rows = re.findall(r"^\| ([A-Z_]+) \|(.*)\|$", (DOCS / "reasons.md").read_text(), re.M)
    cells = {name: [cell.strip() for cell in rest.split(" | ")] for name, rest in rows}
    assert cells.keys() == {reason.name for reason in Reason}
    assert all(len(found) == 3 and all(len(cell) > 5 for cell in found) for found in cells.values())


def variables() -> set[str]:
    return {f"YETT_{field.name.upper()}" for kind in SERVICES for field in msgspec.structs.fields(kind)}


def test_every_setting_is_on_the_page_and_none_is_invented() -> None:
    """docs/settings.md has exactly one row for every variable and every key of the cluster's configuration."""
    listed = [cell for cell in first_cells("settings.md") if cell not in ("setting", "variable")]
    assert sorted(listed) == sorted(variables() | {CONFIG_VARIABLE} | SETTINGS.keys())


def test_defaults_on_the_page_are_those_of_the_code() -> None:
    """A default that is written down is the one in force."""
    rows = dict(re.findall(r"^\| (YETT_\w+) \| ([^|]+?) \|", (DOCS / "settings.md").read_text(), re.M))
    for kind in SERVICES:
        for field in msgspec.structs.fields(kind):
            said, value = rows.get(f"YETT_{field.name.upper()}"), field.default
            if said is not None and field.name != "controller_name" and not field.required:
                text = ",".join(value) if isinstance(value, tuple) else str(value)
                assert said == text, field.name


def test_every_lint_and_every_field_of_a_scenario_is_on_the_page() -> None:
    """docs/cli.md knows the lints, the fields and the commands that there are, and no others."""
    cells = first_cells("cli.md")
    fields = {word for cell in cells for word in cell.split(", ")}
    assert fields >= LINTS.keys() | set(SCENARIO_FIELDS) | set(PROBE_FIELDS)
    heads = {"command", "field", "mark", "lint"}
    marks = {mark.strip() for mark in MARKS.values()} - {""}
    commands = {f"yett {name}" for name in ("test", "explain", "check", "diff")}
    page = (DOCS / "cli.md").read_text()
    assert all(f"yett audit {one.name}" in page for one in audit.app.registered_commands)
    assert all(f"- `{use}`:" in page for use in Use if use is not Use.USED)
    known = LINTS.keys() | set(SCENARIO_FIELDS) | set(PROBE_FIELDS) | heads | marks | commands
    assert {field.strip("` ") for field in fields} <= known


def test_the_kernels_on_the_page_are_those_that_are_run() -> None:
    """docs/kernels.md claims what ``make test-kernels`` runs, and nothing else; no other page claims a kernel."""
    claimed = [cell for cell in first_cells("kernels.md") if cell != "kernel"]
    assert tuple(claimed) == run_kernels.KERNELS
    pages = [*DOCS.glob("*.md"), DOCS.parent / "README.md"]
    named = {version for page in pages for version in re.findall(r"(?:[Kk]ernels?|Linux) (\d+\.\d+)", page.read_text())}
    assert named <= set(run_kernels.KERNELS)


def test_every_claim_of_the_threat_model_names_a_test_that_exists() -> None:
    """A renamed or removed test does not leave a claim that nothing holds."""
    named = set(re.findall(r"`(test_\w+)`", (DOCS / "threat-model.md").read_text()))
    defined = {
        name
        for path in (DOCS.parent / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert named and named <= defined
