"""``yett diff``: which flows change their verdict between two sets of manifests."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from services.cli.output import EXIT_DIFFERENT, Output, OutputOption, fail, print_problems
from services.scenario import compare, files
from services.scenario.compare import Change
from services.scenario.result import describe_finding, finding_to_json
from services.scenario.words import format_list
from services.scenario.world import Placed, assemble_cluster


def command(
    old: Annotated[Path, typer.Argument(help="File or folder of manifests: as it is.")],
    new: Annotated[Path, typer.Argument(help="File or folder of manifests: as it would be.")],
    *,
    common: Annotated[
        list[Path] | None, typer.Option("--with", help="Manifests of both: pods and namespaces, for instance.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Flows between the pods of both, and with the names and prefixes in rules. Exit 1 if any verdict changes."""
    try:
        both = files.read_manifests(common or [])
        before, after = (files.read_manifests([path]) for path in (old, new))
    except files.UnusableInput as error:
        fail(str(error))
    changes = _compare([*both, *before], [*both, *after])
    if output is Output.JSON:
        json.dump({"changes": [_to_json(change) for change in changes]}, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        _print(changes)
    if changes:
        raise typer.Exit(EXIT_DIFFERENT)


def _compare(before: list[Placed], after: list[Placed]) -> list[Change]:
    """Both sides know every name that either side's rules could be asked about."""
    policies = [policy for objects in (before, after) for policy in assemble_cluster(objects).policies]
    asked = [(end.name, 0.0) for end in compare.list_outside(policies) if end.name]
    clusters = [assemble_cluster(objects, asked=asked) for objects in (before, after)]
    for cluster in clusters:
        print_problems(Console(stderr=True, emoji=False), cluster.problems)
    return compare.compare_clusters(clusters[0], clusters[1])


def _print(changes: list[Change]) -> None:
    console = Console(emoji=False)
    for (source, destination, before, after), group in compare.group_changes(changes).items():
        ports = format_list(compare.format_port(change.protocol, change.port) for change in group)
        line = f"{source} -> {destination} on {ports}: {before} -> {after}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        first = group[0]
        for word, result in (("was", first.before), ("is", first.after)):
            why = f"egress {describe_finding(result.egress)}, ingress {describe_finding(result.ingress)}"
            console.print(f"    {word} {why}", markup=False, highlight=False, soft_wrap=True)
    count = len(changes)
    console.print(f"{count} {'flow changes' if count == 1 else 'flows change'}" if count else "no flow changes")


def _to_json(change: Change) -> dict[str, Any]:
    return {
        "from": str(change.source),
        "to": str(change.destination),
        "alike": list(change.alike),
        "protocol": change.protocol,
        "port": change.port,
        **{
            word: {
                "verdict": result.verdict.name.lower() if result.verdict is not None else None,
                "egress": finding_to_json(result.egress),
                "ingress": finding_to_json(result.ingress),
            }
            for word, result in (("before", change.before), ("after", change.after))
        },
    }
