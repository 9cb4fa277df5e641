"""No prose unexecuted: what the README tells one to type exists."""

from __future__ import annotations

import re
from pathlib import Path

import typer.main

from services.cli.__main__ import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = [line.strip().partition("#")[0].split() for line in README.splitlines() if line.startswith("    ")]


def test_every_make_target_of_the_readme_exists_and_is_explained() -> None:
    """``make`` lists it."""
    explained = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {words[1] for words in COMMANDS if words[:1] == ["make"]}
    assert {"demo", "test"} <= named <= explained


def test_every_yett_command_and_option_of_the_readme_exists() -> None:
    """By the command line's own account."""
    group = typer.main.get_command(app)
    known = group.commands  # type: ignore[attr-defined]  # typer makes a Group of several commands
    used = [words[1:] for words in COMMANDS if words[:1] == ["yett"]]
    assert used
    for name, *arguments in used:
        command = known[name]
        if hasattr(command, "commands"):
            command = command.commands[arguments[0]]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {argument for argument in arguments if argument.startswith("--")} <= options, name


def test_every_command_is_in_the_readme() -> None:
    """A command that nobody is told of is not there."""
    group = typer.main.get_command(app)
    used = {words[1] for words in COMMANDS if words[:1] == ["yett"]}
    assert used == set(group.commands)  # type: ignore[attr-defined]  # as above
