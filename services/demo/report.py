"""What a person sees: tables of rows, figures, hints. Everything but ``--output json`` goes to stderr or the console.

Deliberately absent: any decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.demo.rows import Row
from services.demo.steps import ALLOWED, Step

COLUMNS = ("source", "destination", "expected", "observed", "policy", "rule", "tier", "reason")


def _shade(word: str) -> str:
    return f"[green]{word}[/]" if word == ALLOWED else f"[yellow]{word}[/]"


def print_step(console: Console, step: Step, rows: Iterable[Row]) -> None:
    """One step's table; rows that do not hold are marked and explained below it."""
    rows = list(rows)
    table = Table(title=f"{step.number}. {step.title}", title_justify="left", title_style="bold", pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for row in rows:
        # A denial without a rule has no policy to show: the name that was asked for says more.
        policy = row.policy or (f"({row.name})" if row.name else "")
        cells = (escape(row.source), escape(row.destination), _shade(row.expected), _shade(row.observed))
        details = (escape(policy), escape(row.rule), row.tier, row.reason)
        table.add_row(*cells, *details, style="bold red" if row.problem else "")
    console.print(table)
    for row in rows:
        if row.problem:
            console.print(f"  [red]✗ {escape(row.source)} → {escape(row.destination)}: {escape(row.problem)}[/]")


def print_figures(console: Console, timings: Mapping[str, object]) -> None:
    """The figures, a line each."""
    table = Table(title="Figures", title_justify="left", title_style="bold", pad_edge=False)
    for column in ("what", "value"):
        table.add_column(column, overflow="fold")
    for name, value in timings.items():
        shown = ", ".join(f"{key} {_round(part)}" for key, part in value.items()) if isinstance(value, dict) else value
        table.add_row(escape(name), escape(_round(shown)))
    console.print(table)


def _round(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
