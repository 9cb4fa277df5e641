"""The page on audit mode: its commands exist, its words are the code's, and the scenarios quote what it says."""

from __future__ import annotations

import re
from pathlib import Path

import typer.main

from schemas.terms import Reason, Verdict
from services.cli.__main__ import app
from services.controller.policy.parse import MODE_ANNOTATION, MODE_AUDIT, MODES
from services.controller.policy_status import PROGRAMMED
from services.nodeagent.metrics import VERDICTS
from tests.controller.test_policy_status import CASES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "audit.md").read_text()
SUITE = (ROOT / "tests" / "scenarios" / "audit.yaml").read_text()
COMMANDS = [line.split() for line in PAGE.splitlines() if line.startswith("    ")]


def normal(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("`", "")).strip().lower()


def test_its_commands_exist() -> None:
    """Options of ``yett`` by the command line's own account; the annotation with a mode, and taken away."""
    group = typer.main.get_command(app)
    known = group.commands  # type: ignore[attr-defined]  # typer makes a Group of several commands
    for name, *arguments in (words[1:] for words in COMMANDS if words[0] == "yett"):
        options = {option for parameter in known[name].params for option in parameter.opts}
        assert {argument for argument in arguments if argument.startswith("--")} <= options, name
    noted = [words[-1] for words in COMMANDS if words[:2] == ["kubectl", "annotate"]]
    assert noted == [f"{MODE_ANNOTATION}={MODE_AUDIT}", f"{MODE_ANNOTATION}-"]


def test_its_words_are_those_of_the_code() -> None:
    """Modes, verdicts, reasons, the status of a policy under audit, the metric."""
    named = set(re.findall(r"`([^`\n]+)`", PAGE))
    assert {*MODES, PROGRAMMED, *(verdict.name.lower() for verdict in Verdict)} <= named
    assert {word for word in named if re.fullmatch(r"[A-Z]+(_[A-Z]+)*", word)} <= {reason.name for reason in Reason}
    assert "Audited" in named and any(case[4][1] == "Audited" for case in CASES)
    assert f'{VERDICTS.name}{{verdict="{Verdict.AUDIT.name.lower()}"}}' in named


def test_what_the_scenarios_quote_is_said() -> None:
    """Quotations in their comments are the page's own words; two dots stand for what was left out."""
    comments = "\n".join(line for line in SUITE.splitlines() if line.startswith("#"))
    quoted = [part for quote in re.findall(r'"([^"]+)"', comments) for part in quote.split(" .. ")]
    assert len(quoted) > 5
    assert [part for part in quoted if normal(part) not in normal(PAGE)] == []
