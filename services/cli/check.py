"""``yett check``: what is refused, and what is legal and probably not meant."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from schemas.status import Problem
from services.cli.output import EXIT_DIFFERENT, Output, OutputOption, fail, print_problems
from services.scenario import files, lint
from services.scenario.result import problem_to_json
from services.scenario.world import assemble_cluster


def command(
    paths: Annotated[list[Path], typer.Argument(help="Files or folders of manifests.")],
    *,
    output: OutputOption = Output.TABLE,
) -> None:
    """Lint manifests. Exit 1 if there is anything to look at."""
    try:
        objects = files.read_manifests(paths)
    except files.UnusableInput as error:
        fail(str(error))
    cluster = assemble_cluster(objects)
    findings = lint.find_all(lint.make_case(cluster, objects))
    if output is Output.JSON:
        _print_json(cluster.problems, findings)
    else:
        _print_table(cluster.problems, findings)
    if cluster.problems or findings:
        raise typer.Exit(EXIT_DIFFERENT)


def _print_json(problems: tuple[Problem, ...], findings: list[lint.LintFinding]) -> None:
    told = [{"severity": each.severity, **problem_to_json(each)} for each in problems]
    json.dump({"problems": told, "findings": [asdict(each) for each in findings]}, sys.stdout, indent=2)
    sys.stdout.write("\n")


def _print_table(problems: tuple[Problem, ...], findings: list[lint.LintFinding]) -> None:
    console = Console(emoji=False)
    print_problems(console, problems)
    for each in findings:
        where = ": ".join(part for part in (each.file, each.object, each.path) if part)
        console.print(
            f"[yellow]{each.lint}[/] {escape(where)}: {escape(each.message)}", highlight=False, soft_wrap=True
        )
    count = len(problems) + len(findings)
    console.print(f"{count} {'thing' if count == 1 else 'things'} to look at" if count else "nothing to look at")
