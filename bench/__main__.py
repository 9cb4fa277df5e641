"""``python -m bench [PART...]``: every figure beside its bound, measured in one run.

``pipeline``: on the demo's lab, from manifest or answer to packets, and the services' memory after it.
``datapath``: one packet's cost in the kernel, and prefixes into it.
``traffic``, ``dns``: what enforcement leaves of both.
``verdicts``: from the ring to NATS. ``spans``: what tracing costs. ``core``: from objects to rows, at four sizes.
``scenarios``: ``yett test`` by both engines. ``bus``: what a fleet of simulated agents costs it, without a bound.
``kube``: a real API server: from kubectl to packets, a restart on 10,000 pods, requests at rest.
Without a part, all of them. Prints a table and what each part took, ends with status 1 if a bound is missed, and writes
``build/bench.json`` after each part: a run that is cut off leaves what it has measured.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from bench import core, datapath, scenarios
from bench.bounds import Measured, judge_core, judge_pipeline, judge_scenarios
from bench.dns import measure_dns
from bench.fleet import measure_fleet
from bench.kube import measure_kube
from bench.memory import measure_memory
from bench.prefixes import measure_prefixes
from bench.spans import measure_spans
from bench.tracing import measure_tracing
from bench.traffic import measure_traffic
from bench.verdicts import measure_verdicts
from services.demo import figures
from services.demo.app import owned_run, until_signalled
from services.demo.runner import Demo, Options, check_machine
from services.demo.state import DemoError

OUTPUT = Path("build/bench.json")
DATAPATH_TURNS = 15


def measure_pipeline(console: Console) -> list[Measured]:
    """The demo's ten steps, every figure of ``figures`` with as many samples as its tails need, then the memory."""
    check_machine()
    rows: list[Measured] = []
    with owned_run() as run:
        demo = Demo(run, console, Options())

        async def work() -> None:
            try:
                await demo.build()
                await demo.start_services()
                await demo.play()
                rows.extend(judge_pipeline(await figures.measure(demo, figures.LONG)))
                rows.extend(measure_memory(demo))
            finally:
                await demo.close()

        uvloop.run(until_signalled(work()))
    return rows


def measure_datapath() -> list[Measured]:
    """Ratios to the bare program of the same run."""
    rows, base = datapath.measure(DATAPATH_TURNS)
    nanos = f"bare {base['bare']:g} ns"
    spreads = [f"{row.nanos} ns, quartiles {row.spread:g} apart; floor {row.floor:g}; {nanos}" for row in rows]
    return [
        Measured(row.what, row.value, "x bare", row.bound, spread) for row, spread in zip(rows, spreads, strict=True)
    ]


def print_rows(console: Console, rows: list[Measured]) -> None:
    """One line a row."""
    table = Table(*("what", "value", "bound", "spread", ""), title="Bench", title_justify="left", title_style="bold")
    for row in rows:
        outcome = "[green]met[/]" if row.met else "[red]missed[/]"
        table.add_row(
            row.what,
            f"{row.value:.4g} {row.unit}",
            f"{'at least' if row.at_least else 'at most'} {row.bound:g}" if row.bound is not None else "",
            row.spread,
            outcome if row.bound is not None else "",
        )
    console.print(table)


def _run(console: Console, part: str, measure: Callable[[], list[Measured]]) -> list[Measured]:
    started = time.monotonic()
    rows = measure()
    console.print(f"{part}: {time.monotonic() - started:.0f} s")
    return rows


def main(asked: list[str]) -> int:
    """Exit status: 1 if a bound is missed, 2 if a part is unknown or cannot run here."""
    console = Console()
    parts: dict[str, Callable[[], list[Measured]]] = {
        "core": lambda: judge_core(core.measure()),
        "scenarios": lambda: judge_scenarios(scenarios.measure()),
        "bus": measure_fleet,
        "datapath": lambda: [*measure_datapath(), *measure_prefixes()],
        "traffic": measure_traffic,
        "dns": measure_dns,
        "verdicts": measure_verdicts,
        "spans": lambda: [*measure_spans(), *measure_tracing()],
        "pipeline": lambda: measure_pipeline(console),
        "kube": measure_kube,
    }
    unknown = [part for part in asked if part not in parts]
    if unknown:
        print(f"bench: no part {', '.join(unknown)}; there are {', '.join(parts)}", file=sys.stderr)
        return 2
    rows: list[Measured] = []
    OUTPUT.parent.mkdir(exist_ok=True)
    started = time.monotonic()
    try:
        for part in asked or parts:
            rows += _run(console, part, parts[part])
            OUTPUT.write_text(json.dumps([row.to_json() for row in rows], indent=1) + "\n")
    except DemoError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    print_rows(console, rows)
    console.print(f"all: {time.monotonic() - started:.0f} s")
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
