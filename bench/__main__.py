"""``python -m bench``: the pipeline's figures at length, on the demo's lab; every row beside its bound.

Prints a table, writes ``build/bench.json``, and ends with status 1 if a bound is missed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from bench.bounds import Measured, judge_pipeline
from services.demo import figures
from services.demo.app import owned_run, until_signalled
from services.demo.runner import Demo, Options, check_machine
from services.demo.state import DemoError

OUTPUT = Path("build/bench.json")


def measure_pipeline(console: Console) -> dict[str, object]:
    """Every figure of ``figures``, with as many samples as its tails need."""
    check_machine()
    found: dict[str, object] = {}
    with owned_run() as run:
        demo = Demo(run, console, Options())

        async def work() -> None:
            try:
                await demo.build()
                await demo.start_services()
                found.update(await figures.measure(demo, figures.LONG))
            finally:
                await demo.close()

        uvloop.run(until_signalled(work()))
    return found


def print_rows(console: Console, rows: list[Measured]) -> None:
    """One line a row."""
    table = Table(*("what", "value", "bound", "spread", ""), title="Bench", title_justify="left", title_style="bold")
    for row in rows:
        outcome = "[green]met[/]" if row.met else "[red]missed[/]"
        table.add_row(row.what, f"{row.value:.4g} {row.unit}", f"{row.bound:g} {row.unit}", row.spread, outcome)
    console.print(table)


def main() -> int:
    """Exit status."""
    console = Console()
    try:
        rows = judge_pipeline(measure_pipeline(console))
    except DemoError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps([row.to_json() for row in rows], indent=1) + "\n")
    print_rows(console, rows)
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
