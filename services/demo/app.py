"""What ``yett demo`` does: a run with its clean-up, the check of a user's manifests, the end of runs left over.

Deliberately absent: the command line (``cli.demo``), the steps and their judging.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console

from schemas.status import ControllerStatus, Problem
from services.common.bus import Bus
from services.common.cancellation import heeding_cancellation
from services.demo import figures, report, servers
from services.demo.pipeline import make_environment
from services.demo.runner import Demo, Options, Outcome, check_machine
from services.demo.state import DemoError, Run, find_runs

CHECK_SECONDS = 20.0


@contextlib.contextmanager
def owned_run(*, keep: bool = False) -> Iterator[Run]:
    """A run of its own, removed at the end whatever happens; left alone only if ``keep`` and nothing was raised."""
    run = Run.create()
    try:
        yield run
    except BaseException:
        remove_quietly(run)
        raise
    if keep:
        run.release()
    else:
        remove_quietly(run)


def remove_quietly(run: Run) -> None:
    """Removes a run; a second Ctrl-C does not stop it half-way."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    former = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        run.remove()
        servers.reap_children()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


async def until_signalled(work: Coroutine[Any, Any, None]) -> None:
    """Runs ``work``; SIGTERM and SIGHUP cancel it as Ctrl-C does, so that clean-up happens."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    await task


def run_demo(options: Options, console: Console, *, keep: bool = False) -> Outcome:
    """The steps and the figures; DemoError if the machine or the services do not let it get that far."""
    check_machine()
    with owned_run(keep=keep) as run:
        demo = Demo(run, console, options)

        async def work() -> None:
            started = time.monotonic()
            try:
                for stage in (demo.build, demo.start_services, demo.play):
                    with heeding_cancellation():
                        await stage()
                if options.with_figures:
                    with heeding_cancellation():
                        demo.outcome.timings.update(await figures.measure(demo, figures.SHORT))
            finally:
                await demo.close()
            demo.outcome.timings["total_seconds"] = round(time.monotonic() - started, 3)

        uvloop.run(until_signalled(work()))
        report.print_timings(console, demo.outcome.timings)
        if keep:
            report.print_hints(console, run)
    return demo.outcome


def check_manifests(folder: Path, nats_server: Path) -> tuple[Problem, ...]:
    """What the controller has to say about a user's manifests: NATS and a controller on this host, nothing else."""
    if not folder.is_dir():
        raise DemoError(f"{folder}: no such folder")
    servers.check_nats_server(nats_server)
    with owned_run() as run:
        url = servers.start_local_nats(run, nats_server)
        environment = make_environment({"YETT_NATS_URL": url, "YETT_MANIFESTS": str(folder.resolve())})
        command = [sys.executable, "-m", "services.controller"]
        controller = servers.start_process(run, "controller", command, environment)
        status = uvloop.run(_wait_for_controller(url))
        if status is None:
            servers.fail_with_log(run, controller)
        return status.problems


async def _wait_for_controller(url: str) -> ControllerStatus | None:
    """Its status once it has read the folder and published a revision."""
    bus = await Bus.open(url)
    try:
        deadline = time.monotonic() + CHECK_SECONDS
        while time.monotonic() < deadline:
            status = await bus.ask_controller()
            if status is not None and status.revision > 0:
                return status
            await asyncio.sleep(0.02)
        return None
    finally:
        await bus.close()


def stop_runs() -> tuple[int, list[Run]]:
    """Removes every run that was kept or whose owner died: how many, and those still in their owner's hands."""
    stopped, busy = 0, []
    for run in find_runs():
        if run.is_owned():
            busy.append(run)
            continue
        remove_quietly(run)
        stopped += 1
    return stopped, busy
