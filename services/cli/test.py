"""``yett test``: policy unit tests."""

from __future__ import annotations

import contextlib
import enum
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from services.cli.output import EXIT_DIFFERENT, EXIT_UNUSABLE, complain, fail
from services.scenario import files, result
from services.scenario.evaluate_engine import EvaluateEngine
from services.scenario.model import Scenario, ScenarioError
from services.scenario.result import ScenarioResult
from services.scenario.run import Engine, run_scenario


class EngineName(enum.StrEnum):
    """Who judges: the oracle, or the programs in the kernel."""

    EVALUATE = "evaluate"
    KERNEL = "kernel"


class Format(enum.StrEnum):
    """For people, for programs, for CI."""

    TABLE = "table"
    JSON = "json"
    JUNIT = "junit"


EXIT_INTERRUPTED = 130


@dataclass
class Outcome:
    """What a run came to. Results are kept only where they are printed at the end."""

    results: list[ScenarioResult] = field(default_factory=list)
    unusable: list[ScenarioError] = field(default_factory=list)
    impossible: list[str] = field(default_factory=list)
    """Probes of which no packet can be made, with the reason."""
    scenarios: int = 0
    failed: int = 0
    probes: int = 0


def command(
    scenarios: Annotated[list[Path], typer.Argument(help="Files of YAML, JSON or JSON lines, or folders of them.")],
    *,
    engine: Annotated[EngineName, typer.Option("--engine", help="Who judges; kernel needs root.")] = (
        EngineName.EVALUATE
    ),
    output: Annotated[Format, typer.Option("--output", "-o", help="For people, for programs, for CI.")] = Format.TABLE,
) -> None:
    """Judge the probes of scenarios. Exit 0: all as expected; 1: some not; 2: unusable input."""
    try:
        with open_engine(engine) as judge:
            outcome = _run(list(files.read_scenarios(scenarios)), judge, output)
    except files.UnusableInput as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted", EXIT_INTERRUPTED)
    if output is Format.JUNIT:
        sys.stdout.write(result.make_junit(outcome.results, outcome.unusable) + "\n")
    if output is Format.TABLE:
        _print_summary(outcome)
    for fault in [line for each in outcome.unusable for line in each.lines()] + outcome.impossible:
        complain(fault)
    if outcome.unusable or outcome.impossible:
        raise typer.Exit(EXIT_UNUSABLE)
    if outcome.failed:
        raise typer.Exit(EXIT_DIFFERENT)


@contextlib.contextmanager
def open_engine(name: EngineName) -> Iterator[Engine]:
    """The engine, for as long as it is needed; fails with words where it cannot run."""
    if name is EngineName.EVALUATE:
        yield EvaluateEngine()
        return
    from services.scenario import kernel_engine  # the agent's path: half a second that the oracle does not need

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with kernel_engine.open_kernel() as engine:
            yield engine
    except kernel_engine.KernelUnavailable as error:
        fail(str(error))


def _run(scenarios: list[Scenario | ScenarioError], engine: Engine, output: Format) -> Outcome:
    outcome = Outcome()
    with make_progress() as progress:
        task = progress.add_task("scenarios", total=len(scenarios))
        for scenario in scenarios:
            _judge(scenario, engine, output, outcome)
            progress.advance(task)
    return outcome


def _judge(scenario: Scenario | ScenarioError, engine: Engine, output: Format, outcome: Outcome) -> None:
    if isinstance(scenario, ScenarioError):
        _note_unusable(scenario, output, outcome)
        return
    for warning in scenario.warnings:
        complain(f"{scenario.name}: {warning}")
    try:
        found = run_scenario(scenario, files.read_objects(scenario), engine)
    except ScenarioError as error:
        _note_unusable(error, output, outcome)
        return
    except files.UnusableInput as error:
        _note_unusable(ScenarioError(scenario.name, [str(error)], file=scenario.file), output, outcome)
        return
    for each in found.probes:
        if each.note:
            complain(f"{scenario.name}: probe {each.probe.id}: {each.note}")
    outcome.scenarios += 1
    outcome.probes += len(found.probes)
    outcome.failed += not found.is_ok
    outcome.impossible += [
        f"{scenario.name}: probe {each.probe.id}: {each.error}" for each in found.probes if each.error
    ]
    if output is Format.JSON:
        _print_json(result.scenario_to_json(found))
    elif output is Format.JUNIT:
        outcome.results.append(found)
    else:
        _print_scenario(found)


def _note_unusable(error: ScenarioError, output: Format, outcome: Outcome) -> None:
    outcome.unusable.append(error)
    if output is Format.JSON:
        _print_json(result.unusable_to_json(error))


def _print_json(told: dict[str, Any]) -> None:
    try:
        text = msgspec.json.encode(told).decode()
    except UnicodeEncodeError:  # the name of a file that is no UTF-8
        text = json.dumps(told)
    sys.stdout.write(text + "\n")


def make_progress() -> Progress:
    """A bar on stderr, gone when it is done; nothing where stderr is no terminal."""
    console = Console(stderr=True, emoji=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _print_scenario(found: ScenarioResult) -> None:
    console = Console(emoji=False)
    mark = "[green]ok[/]  " if found.is_ok else "[red]FAIL[/]"
    warned = f", {len(found.warnings)} warnings" if found.warnings else ""
    console.print(
        f"{mark} {escape(found.scenario.name)} ({len(found.probes)} probes{warned})", highlight=False, soft_wrap=True
    )
    for line in result.describe_failures(found):
        console.print(f"     {escape(line)}", highlight=False, soft_wrap=True)


def _print_summary(outcome: Outcome) -> None:
    passed = outcome.scenarios - outcome.failed
    Console(emoji=False).print(
        f"{passed} of {outcome.scenarios} scenarios as expected, {outcome.probes} probes", highlight=False
    )
