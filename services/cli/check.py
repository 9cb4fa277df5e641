"""``yett check``: what is refused, and what is legal and probably not meant."""

from __future__ import annotations

import asyncio
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
from services.operate.pruned import Pruned, find_pruned
from services.operate.way import NoWay
from services.scenario import files, lint
from services.scenario.result import problem_to_json
from services.scenario.world import assemble_cluster


def command(
    paths: Annotated[list[Path] | None, typer.Argument(help="Files or folders of manifests.")] = None,
    *,
    live: Annotated[
        bool, typer.Option("--live", help="Also what the API server of $KUBECONFIG dropped of what was applied.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Lint manifests, or look at what a cluster stored of them. Exit 1 if there is anything to look at."""
    if not paths and not live:
        fail("files or folders of manifests are wanted, or --live")
    try:
        objects = files.read_manifests(paths or [])
        pruned = asyncio.run(_read_pruned()) if live else []
    except (files.UnusableInput, NoWay) as error:
        fail(str(error))
    cluster = assemble_cluster(objects)
    findings = lint.find_all(lint.make_case(cluster, objects))
    if output is Output.JSON:
        _print_json(cluster.problems, findings, pruned)
    else:
        _print_table(cluster.problems, findings, pruned)
    if cluster.problems or findings or pruned:
        raise typer.Exit(EXIT_DIFFERENT)


async def _read_pruned() -> list[Pruned]:
    from services.operate.reach import open_api  # a second that other commands do not need
    from services.operate.stored import read_policies

    async with open_api() as api:
        return [each for obj in await read_policies(api) for each in find_pruned(obj)]


def _print_json(problems: tuple[Problem, ...], findings: list[lint.LintFinding], pruned: list[Pruned]) -> None:
    told = [{"severity": each.severity, **problem_to_json(each)} for each in problems]
    gone = [{**asdict(each), "message": each.message} for each in pruned]
    shown = {"problems": told, "findings": [asdict(each) for each in findings], "pruned": gone}
    json.dump(shown, sys.stdout, indent=2)
    sys.stdout.write("\n")


def _print_table(problems: tuple[Problem, ...], findings: list[lint.LintFinding], pruned: list[Pruned]) -> None:
    console = Console(emoji=False)
    print_problems(console, problems)
    told = [(each.lint, (each.file, each.object, each.path), each.message) for each in findings]
    told += [("pruned", ("", each.object, each.path), each.message) for each in pruned]
    for name, place, message in told:
        where = ": ".join(part for part in place if part)
        console.print(f"[yellow]{name}[/] {escape(where)}: {escape(message)}", highlight=False, soft_wrap=True)
    count = len(problems) + len(told)
    console.print(f"{count} {'thing' if count == 1 else 'things'} to look at" if count else "nothing to look at")
