"""One demo for all its rows, and one running pipeline for what is done to it: both cost seconds, so both are shared."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import uvloop
from rich.console import Console

from services.demo.app import owned_run
from services.demo.convergence import read_revision
from services.demo.runner import Demo, Options

T = TypeVar("T")

DEMO_SECONDS = 240
"""The demo promises 120 s; a machine that several tests share gets twice that before it is given up."""


@dataclass(frozen=True)
class Result:
    """What ``yett demo --output json`` gave."""

    code: int
    rows: list[dict[str, Any]]
    timings: dict[str, Any]
    seconds: float
    stderr: str

    def step(self, number: int) -> list[dict[str, Any]]:
        """The rows of one step."""
        return [row for row in self.rows if row["step"] == number]


def run_demo(*arguments: str) -> Result:
    """The command as a user runs it; stdout must be JSON and nothing else."""
    started = time.monotonic()
    command = [sys.executable, "-m", "services.cli", "demo", "--output", "json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEMO_SECONDS)
    assert done.stdout, f"no output, exit {done.returncode}:\n{done.stderr}"
    shown = json.loads(done.stdout)
    return Result(done.returncode, shown["rows"], shown["timings"], time.monotonic() - started, done.stderr)


@pytest.fixture(scope="session")
def demo_result() -> Result:
    """The whole demo, once."""
    return run_demo()


class Running:
    """A lab with the services in it, and the loop on which its bus listens."""

    def __init__(self, demo: Demo, runner: asyncio.Runner) -> None:
        self.demo = demo
        self._runner = runner

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Carries ``work`` out on the loop."""
        return self._runner.run(work)

    def revision(self) -> int:
        """The newest published one."""
        return self.run(read_revision(self.demo.bus))

    def settle(self, above: int) -> int:
        """Waits until a revision newer than ``above`` is enforced on both nodes; which one."""
        return self.run(self.demo.settle(above))

    def apply(self, name: str, text: str | None = None) -> int:
        """One of the demo's manifests, or ``text``, into the folder; the revision that enforces it."""
        before = self.revision()
        if text is None:
            self.demo.folder.write_policy(name)
        else:
            self.demo.folder.write(name, text)
        return self.settle(before)


@contextmanager
def start_running(before_services: Callable[[Running], None] = lambda running: None) -> Iterator[Running]:
    """A pipeline under default deny, gone afterwards. ``before_services``: called when the lab stands."""
    with owned_run() as run, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        demo = Demo(run, Console(stderr=True), Options())
        runner.run(demo.build())
        running = Running(demo, runner)
        before_services(running)
        try:
            runner.run(demo.start_services())
            yield running
        finally:
            runner.run(demo.close())


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """For one module's tests to ill-treat."""
    with start_running() as started:
        yield started
