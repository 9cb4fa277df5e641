"""``yett demo``."""

from __future__ import annotations

import enum
import json
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from services.cli.output import (
    EXIT_DIFFERENT,
    EXIT_PROBLEMS,
    Output,
    OutputOption,
    are_refusals,
    complain,
    fail,
    print_problems,
)
from services.demo import app, report, servers, steps
from services.demo.runner import Options, Outcome
from services.demo.sabotage import SABOTAGES, Sabotage
from services.demo.state import DemoError


class SabotageName(enum.StrEnum):
    """The keys of ``SABOTAGES``."""

    DETACH = "detach"
    OPEN = "open"
    NO_BUS = "no-bus"
    NODE_SCOPE = "node-scope"


class Mode(enum.StrEnum):
    """Whether an interface is shut until its filters stand."""

    STANDARD = "standard"
    STRICT = "strict"


EXIT_INTERRUPTED = 130


def command(
    *,
    output: OutputOption = Output.TABLE,
    chosen: Annotated[str, typer.Option("--steps", help="Only these, such as 1-3 or 4,7.")] = f"1-{len(steps.STEPS)}",
    keep: Annotated[bool, typer.Option("--keep", help="Leave it running, and say how to use it.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Remove what was kept, or left behind by a crash.")] = False,
    manifests: Annotated[
        Path | None, typer.Option("--manifests", help="Only check the manifests in this folder; exit 3 on a problem.")
    ] = None,
    sabotage: Annotated[
        SabotageName | None, typer.Option("--sabotage", help="Break one thing on purpose: rows must fail.")
    ] = None,
    mode: Annotated[Mode, typer.Option("--mode", help="strict: no interface is open before it is judged.")] = (
        Mode.STANDARD
    ),
    figures: Annotated[bool, typer.Option("--figures/--no-figures", help="Measure after the steps.")] = True,
    nats_server: Annotated[
        Path | None, typer.Option("--nats-server", help="Another NATS server's program.", show_default=False)
    ] = None,
) -> None:
    """Two nodes, real packets, ten steps: every row must come out as expected. Needs root."""
    nats_server = nats_server or servers.find_nats_server()
    try:
        if stop:
            _stop()
        elif manifests is not None:
            _check(manifests, nats_server, output)
        else:
            options = Options(
                selection=steps.parse_selection(chosen),
                sabotage=SABOTAGES[sabotage.value]() if sabotage else Sabotage(),
                mode=mode.value,
                nats_server=nats_server,
                with_figures=figures and sabotage is None,
            )
            _run(options, output, keep=keep)
    except (DemoError, ValueError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted; everything it made is removed", EXIT_INTERRUPTED)


def _run(options: Options, output: Output, *, keep: bool) -> None:
    outcome = app.run_demo(options, report.make_console(stderr=output is Output.JSON), keep=keep)
    if output is Output.JSON:
        json.dump(to_json(outcome), sys.stdout)
        sys.stdout.write("\n")
    different = [row for row in outcome.rows if row.problem]
    if not outcome.is_as_expected:
        for row in different:
            complain(f"step {row.step}: {row.source} -> {row.destination}: {row.problem}")
        fail(f"{len(different)} of {len(outcome.rows)} rows are not as expected", EXIT_DIFFERENT)


def to_json(outcome: Outcome) -> dict[str, object]:
    """What ``--output json`` prints."""
    return {"rows": [row.to_json() for row in outcome.rows], "timings": outcome.timings}


def _check(manifests: Path, nats_server: Path, output: Output) -> None:
    problems = app.check_manifests(manifests, nats_server)
    if output is Output.JSON:
        json.dump({"problems": msgspec.to_builtins(problems)}, sys.stdout)
        sys.stdout.write("\n")
    else:
        print_problems(Console(emoji=False), problems)
    if are_refusals(problems):
        raise typer.Exit(EXIT_PROBLEMS)


def _stop() -> None:
    stopped, busy = app.stop_runs()
    print(f"{stopped} removed", file=sys.stderr)
    for run in busy:
        owner = run.state.owner
        complain(f"run {run.state.slot} is still in the hands of process {owner.pid if owner else 0}: end that one")
