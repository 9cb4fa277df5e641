"""The demo from start to end: lab, services, steps, rows; what is made is recorded, so that it can be removed.

Deliberately absent: what the steps are (``steps``), how a row is judged (``rows``), what it looks like (``report``).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from services.common.bus import Bus
from services.common.cancellation import heeding_cancellation
from services.demo import control, objects, report, servers, steps, topology
from services.demo.actions import WRITES, Actor
from services.demo.convergence import ENFORCED_SECONDS, START_SECONDS, read_revision, wait_enforced
from services.demo.folder import ManifestFolder, Objects
from services.demo.lab import Lab
from services.demo.pipeline import Pipeline
from services.demo.probing import Prober
from services.demo.rows import Row, make_row
from services.demo.sabotage import Sabotage, Stage
from services.demo.state import DemoError, Run
from services.demo.steps import Phase, Probe, Step
from services.demo.traffic import Traffic

TOOLS = ("ip", "tc", "nft", "nsenter", "curl", "dig", "knotd", "knotc", "unbound")
BPFFS = Path("/sys/fs/bpf")


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for."""

    selection: frozenset[int] = frozenset(step.number for step in steps.STEPS)
    sabotage: Sabotage = field(default_factory=Sabotage)
    mode: str = "standard"
    nats_server: Path = field(default_factory=servers.find_nats_server)
    with_figures: bool = True


@dataclass(slots=True)
class Outcome:
    """What came of a run."""

    rows: list[Row] = field(default_factory=list)
    timings: dict[str, object] = field(default_factory=dict)

    @property
    def is_as_expected(self) -> bool:
        """Whether every row holds; a run without rows proves nothing."""
        return bool(self.rows) and not any(row.problem for row in self.rows)


def check_machine() -> None:
    """DemoError with what is missing: root, bpffs, programs."""
    if os.geteuid() != 0:
        raise DemoError("the demo makes network namespaces and loads eBPF: run it as root")
    if not any(line.split()[1:3] == [str(BPFFS), "bpf"] for line in Path("/proc/mounts").read_text().splitlines()):
        raise DemoError(f"no bpffs at {BPFFS}: mount -t bpf bpf {BPFFS}")
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise DemoError(f"not installed: {', '.join(missing)}; make setup installs them")


class Demo:
    """One run: the lab, the services, and the bus they speak on. Tests drive the same object.

    ``folder``: where objects go, if not into a folder of the run that the controller reads. ``make_pipeline``: the
    services, if they are started in another way.
    """

    def __init__(
        self,
        run: Run,
        console: Console,
        options: Options,
        *,
        folder: Objects | None = None,
        make_pipeline: Callable[[Lab], Pipeline] | None = None,
    ) -> None:
        self.run = run
        self.options = options
        self.lab = Lab(run)
        self.pipeline = make_pipeline(self.lab) if make_pipeline else Pipeline(self.lab, mode=options.mode)
        self.folder: Objects = folder or ManifestFolder(run.folder / "manifests")
        self.traffic = Traffic(self.lab)
        self.outcome = Outcome()
        self._console = console
        self._actor = Actor(self.lab, self.folder, self.traffic, overrides=options.sabotage.settings)
        self._bus: Bus | None = None

    @property
    def bus(self) -> Bus:
        """Open from ``start_services`` on."""
        assert self._bus is not None
        return self._bus

    async def build(self) -> None:
        """The lab and its daemons, without Yett; DemoError unless every route is open."""
        version = servers.check_nats_server(self.options.nats_server)
        self.say(f"lab: 2 nodes, {len(topology.PODS)} pods, fabric; namespaces {self.run.namespace('*')}")
        self.lab.build()
        self.say(f"NATS {version}, knot, unbound, web servers")
        self.pipeline.start_nats(self.options.nats_server)
        servers.start_outside(self.lab)
        servers.start_pod_servers(self.lab, list(self.lab.pods.values()))
        if closed := await control.find_closed_routes(self.traffic, self.lab.pods.values()):
            raise DemoError("without Yett every route must be open, but: " + "; ".join(closed))
        self.say("control: without Yett every route of every row is open")

    async def start_services(self) -> None:
        """Controller, agents, recorders; both nodes enforce the cluster without a policy when it returns."""
        started = time.monotonic()
        self._actor.configure({})
        self.folder.write("01-cluster.yaml", objects.render(objects.make_cluster()))
        self._bus = await self.pipeline.open_bus()
        count = len(self.pipeline.controllers)
        services = f"{count} controller{'s' if count > 1 else ''}, 2 nodeagents, 2 dnsrecorders"
        self.say(f"services: {services}; {self.options.mode} mode, default deny")
        self.pipeline.start()
        revision = await self.settle(0, seconds=START_SECONDS)
        self.outcome.timings["start_seconds"] = round(time.monotonic() - started, 3)
        self.say(f"revision {revision} is enforced on both nodes")
        self._say_windows()
        self.options.sabotage.after_start(Stage(self.lab, self.pipeline, self.folder))

    async def play(self, chosen: Sequence[Step] = steps.STEPS) -> None:
        """The steps in order; those not selected are applied, because later ones stand on them, but not tried."""
        last = max(self.options.selection)
        for step in (step for step in chosen if step.number <= last):
            started = time.monotonic()
            is_tried = step.number in self.options.selection
            with heeding_cancellation():
                rows = await self._play_step(step, is_tried=is_tried)
            if is_tried:
                self.outcome.rows += rows
                self.outcome.timings[f"step_{step.number}_seconds"] = round(time.monotonic() - started, 3)
                report.print_step(self._console, step, rows)

    async def close(self) -> None:
        """Ends this process's connections; what runs goes on."""
        self.traffic.close()
        if self._bus is not None:
            await self._bus.close()

    def say(self, text: str) -> None:
        """Progress."""
        self._console.print(f"[dim]·[/] {text}", highlight=False, soft_wrap=True)

    async def _play_step(self, step: Step, *, is_tried: bool) -> list[Row]:
        rows: list[Row] = []
        for phase in step.phases:
            await self._change(phase, self.options.sabotage.manifests_for(step.number))
            if is_tried:
                rows += await self.try_probes(step.number, phase.probes)
        return rows

    async def _change(self, phase: Phase, extra: dict[str, str]) -> None:
        """Every action in order; a change of policy is enforced before anything is done that depends on it."""
        before = await read_revision(self.bus)
        is_pending = False
        for action in phase.actions:
            if isinstance(action, WRITES):
                is_pending = True
                for name, text in extra.items():
                    self.folder.write(name, text)
            elif is_pending:
                await self.settle(before)
                is_pending = False
            await self._actor.perform(action)
        if is_pending:
            await self.settle(before)

    async def settle(self, before: int, *, seconds: float = ENFORCED_SECONDS) -> int:
        """The revision after ``before`` that both nodes enforce; DemoError says what is missing, and what died."""
        # A setting that sabotage holds fast makes no revision: there is nothing to wait for.
        above = before if not self.options.sabotage.settings else -1
        try:
            return await wait_enforced(self.bus, self.lab.pods.values(), above=above, seconds=seconds)
        except DemoError as error:
            dead = [process.name for process in self.pipeline.find_dead()]
            logs = [f"{name} has ended:\n{servers.read_log_end(self.run, name)}" for name in dead]
            raise DemoError("\n".join([str(error), *logs])) from error

    async def try_probes(self, step: int, probes: Sequence[Probe]) -> list[Row]:
        """All at once; then the verdicts; a row each, in order."""
        prober = Prober(self.traffic, self.bus)
        stage = Stage(self.lab, self.pipeline, self.folder)
        since = time.monotonic()
        self.options.sabotage.before_probes(stage)
        attempts = await asyncio.gather(*(prober.attempt(probe) for probe in probes))
        self.options.sabotage.after_probes(stage)
        pairs = list(zip(probes, attempts, strict=True))
        verdicts = await asyncio.gather(*(prober.explain(probe, tried, since) for probe, tried in pairs))
        return [make_row(step, probe, tried, said) for (probe, tried), said in zip(pairs, verdicts, strict=True)]

    def _say_windows(self) -> None:
        windows = [
            endpoint.window_millis
            for status in self.bus.agents.values()
            for endpoint in status.endpoints
            if endpoint.window_millis >= 0
        ]
        if self.options.mode == "standard" and windows:
            self.say(f"standard mode: interfaces were open for up to {max(windows):.0f} ms until their filters stood")
