"""What the commands share: the forms of output, exit codes, where the bus is.

stdout belongs to answers, stderr to progress and complaints.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from schemas.status import Problem
from services.demo.state import find_runs

EXIT_DIFFERENT = 1
"""Something is not as expected."""
EXIT_UNUSABLE = 2
"""The command could not do its work."""
EXIT_PROBLEMS = 3
"""An object is refused."""

ENVIRONMENT_URL = "YETT_NATS_URL"


class Output(enum.StrEnum):
    """For people, or for programs."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="For people, or for programs.")]
NatsOption = Annotated[
    str, typer.Option("--nats", help=f"NATS URL; else ${ENVIRONMENT_URL}, else the running demo's.", show_default=False)
]


def complain(message: str) -> None:
    """A line on stderr."""
    Console(stderr=True, emoji=False).print(f"[red]yett:[/] {escape(message)}", highlight=False, soft_wrap=True)


def fail(message: str, code: int = EXIT_UNUSABLE) -> NoReturn:
    """Says why, and exits."""
    complain(message)
    raise typer.Exit(code)


def find_nats_url(given: str) -> str:
    """The option, the environment, the newest running demo; fails with words if there is none."""
    if given:
        return given
    if url := os.environ.get(ENVIRONMENT_URL):
        return url
    urls = [run.state.nats_url for run in find_runs() if run.state.nats_url]
    if not urls:
        fail(f"no NATS: give --nats or {ENVIRONMENT_URL}, or leave a demo running with yett demo --keep")
    return urls[-1]


def print_problems(console: Console, problems: Iterable[Problem]) -> None:
    """One line a problem: file, object, field, what is wrong."""
    for problem in problems:
        colour = "red" if problem.severity == "error" else "yellow"
        where = ": ".join(part for part in (problem.file, problem.object, problem.path) if part)
        console.print(
            f"[{colour}]{problem.severity}[/] {escape(where)}: {escape(problem.message)}",
            highlight=False,
            soft_wrap=True,
        )


def are_refusals(problems: Iterable[Problem]) -> bool:
    """Whether any of them is more than a warning."""
    return any(problem.severity == "error" for problem in problems)
