"""What a person sees: tables of rows, figures, hints. Everything but ``--output json`` goes to stderr or the console.

Deliberately absent: any decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.demo.rows import Row
from services.demo.state import Run
from services.demo.steps import ALLOWED, Step

LINE_COLUMNS = 190
COLUMNS = ("source", "destination", "expected", "observed", "policy", "rule", "tier", "reason")


def _shade(word: str) -> str:
    return f"[green]{word}[/]" if word == ALLOWED else f"[yellow]{word}[/]"


def make_console(*, stderr: bool = False) -> Console:
    """A terminal's own width; wide enough for a row on one line where there is no terminal."""
    console = Console(stderr=stderr, emoji=False)
    return console if console.is_terminal else Console(stderr=stderr, width=LINE_COLUMNS, emoji=False)


def make_table(title: str, columns: Iterable[str]) -> Table:
    """The look of every table: no boxes, so that a line can be copied."""
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_step(console: Console, step: Step, rows: Iterable[Row]) -> None:
    """One step's table; rows that do not hold are marked and explained below it."""
    rows = list(rows)
    table = make_table(f"{step.number}. {step.title}", COLUMNS)
    for row in rows:
        cells = (escape(row.source), escape(row.destination), _shade(row.expected), _shade(row.observed))
        details = (escape(row.policy), escape(row.rule), row.tier, escape(str(row.to_json()["reason"])))
        table.add_row(*cells, *details, style="bold red" if row.problem else "")
    console.print(table)
    for row in rows:
        if row.problem:
            console.print(f"  [red]✗ {escape(row.source)} → {escape(row.destination)}: {escape(row.problem)}[/]")


def print_timings(console: Console, timings: Mapping[str, object]) -> None:
    """The figures and the seconds, a line each."""
    table = make_table("Figures and times", ("what", "value"))
    for name, value in timings.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        table.add_row(name, ", ".join(f"{key} {_round(part)}".strip() for key, part in parts))
    console.print(table)


def print_hints(console: Console, run: Run) -> None:
    """How to go on with a lab that was left running."""
    pod = run.namespace("app-curl-backend")
    console.print(
        "\nThe lab is still running. To enter a pod, follow verdicts, see who enforces what, and stop:\n\n"
        f"  ip netns exec {pod} curl --max-time 2 http://example.com\n"
        f"  yett flows --nats {run.state.nats_url}\n"
        f"  yett status --nats {run.state.nats_url}\n"
        "  yett demo --stop\n\n"
        f"Its manifests, watched: {run.folder}/manifests. Its logs: {run.logs}",
        highlight=False,
        soft_wrap=True,
    )


def _round(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
