"""One run's record of everything it made, on disk before it is made, so that anything can be removed after a crash.

A run owns a slot: a folder ``/run/yett-demo/<number>``, taken with mkdir, so that parallel runs never share one.
Its number is in the names of its namespaces and in the address of its link to the host.

Rules of this module:

* Only what is recorded is removed. A process is ended only if its pid still has the start time that was recorded.
* Removal is idempotent: what is gone already is fine, so that it may be called twice, and by another process.

Deliberately absent: how things are made (``lab``, ``servers``).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

FOLDER = Path("/run/yett-demo" if os.geteuid() == 0 else f"{tempfile.gettempdir()}/yett-demo-{os.geteuid()}")
"""Without root there is no lab, only a check of manifests; it needs a folder all the same."""
PIN_FOLDER = Path("/sys/fs/bpf/yett-demo")
NETNS_CONFIG = Path("/etc/netns")
NETNS = Path("/run/netns")

MAX_RUNS = 60
"""Each run takes four addresses of 198.18.0.0/24 for its link to the host."""
STOP_SECONDS = 5.0
"""How long a service has to drain after SIGTERM; then it is killed."""


class DemoError(RuntimeError):
    """What the demo cannot work without, in words for a person."""


class Process(msgspec.Struct, frozen=True):
    """A process that the run started: ``started`` is field 22 of /proc/PID/stat, clock ticks since boot."""

    name: str
    pid: int
    started: int


class State(msgspec.Struct):
    """What is on disk. ``owner``: the process that runs the demo, None once it left things running on purpose."""

    slot: int
    owner: Process | None
    nats_url: str = ""
    namespaces: list[str] = []
    processes: list[Process] = []


def read_start_time(pid: int) -> int:
    """Clock ticks since boot at which a process started; 0 if there is none, or only its corpse."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])


def is_alive(process: Process) -> bool:
    """Whether this very process, not another with its number, still runs."""
    return read_start_time(process.pid) == process.started != 0


class Run:
    """One run of the demo: its slot, names, folder, and the record that goes to disk with every change."""

    def __init__(self, state: State) -> None:
        self.state = state

    @classmethod
    def create(cls) -> Run:
        """Takes a free slot, sweeping up slots whose owner died; DemoError if all are in use."""
        for run in find_runs():
            if run.state.owner is not None and not run.is_owned():
                run.remove()
        for slot in range(MAX_RUNS):
            with contextlib.suppress(FileExistsError):
                # With its parents, because a run that ends takes an empty folder with it.
                (FOLDER / str(slot)).mkdir(parents=True)
                owner = Process("yett demo", os.getpid(), read_start_time(os.getpid()))
                run = cls(State(slot=slot, owner=owner))
                run.save()
                return run
        raise DemoError(f"{MAX_RUNS} runs under {FOLDER}; end one with: yett demo --stop")

    @property
    def folder(self) -> Path:
        """Where the run's files are; gone with it."""
        return FOLDER / str(self.state.slot)

    @property
    def logs(self) -> Path:
        """One log a process."""
        return self.folder / "logs"

    @property
    def pins(self) -> Path:
        """The run's folder in bpffs; one folder a node below it."""
        return PIN_FOLDER / str(self.state.slot)

    @property
    def host_address(self) -> str:
        """The host's end of the link to the fabric, a /30."""
        return f"198.18.0.{self.state.slot * 4 + 1}"

    @property
    def fabric_address(self) -> str:
        """The fabric's end of that link: where NATS listens."""
        return f"198.18.0.{self.state.slot * 4 + 2}"

    def namespace(self, name: str) -> str:
        """The network namespace called ``name`` in this run."""
        return f"yett{self.state.slot}-{name}"

    def save(self) -> None:
        """Writes the record; a reader sees the old one or the new one."""
        path = self.folder / "state.json"
        temporary = path.with_suffix(".new")
        temporary.write_bytes(msgspec.json.encode(self.state))
        temporary.rename(path)

    def record_namespace(self, namespace: str) -> None:
        """To be called before the namespace is made."""
        self.state.namespaces.append(namespace)
        self.save()

    def record_process(self, name: str, pid: int) -> Process:
        """To be called as soon as the process runs."""
        process = Process(name, pid, read_start_time(pid))
        self.state.processes.append(process)
        self.save()
        return process

    def is_owned(self) -> bool:
        """Whether the process that made the run still looks after it."""
        return self.state.owner is not None and is_alive(self.state.owner)

    def release(self) -> None:
        """Leaves everything running after this process: nobody sweeps it but ``yett demo --stop``."""
        self.state.owner = None
        self.save()

    def remove(self) -> None:
        """Ends the processes, deletes the namespaces (and with them every link), unpins, forgets the slot."""
        stop_processes(self.state.processes)
        for namespace in self.state.namespaces:
            _remove_namespace(namespace)
        shutil.rmtree(self.pins, ignore_errors=True)
        with contextlib.suppress(OSError):
            PIN_FOLDER.rmdir()
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            FOLDER.rmdir()


def find_runs() -> list[Run]:
    """Every run with a record on this machine, dead or alive; a slot whose record is not yet written is left alone."""
    try:
        slots = sorted(FOLDER.iterdir())
    except FileNotFoundError:
        return []
    runs = []
    for slot in slots:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
            runs.append(Run(msgspec.json.decode((slot / "state.json").read_bytes(), type=State)))
    return runs


def stop_processes(processes: Iterable[Process], seconds: float = STOP_SECONDS) -> None:
    """SIGTERM to those still alive, SIGKILL to those alive after ``seconds``; last started, first stopped."""
    alive = [process for process in processes if is_alive(process)]
    for process in reversed(alive):
        _signal(process, signal.SIGCONT)  # a stopped process cannot drain
        _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while any(map(is_alive, alive)) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in alive:
        if is_alive(process):
            _signal(process, signal.SIGKILL)


def _signal(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)


def _remove_namespace(namespace: str) -> None:
    """Ends what still runs inside (all of it is the run's: nobody else knows the name), then deletes it."""
    if (NETNS / namespace).exists():
        listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
        for pid in map(int, listed.stdout.split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)
    shutil.rmtree(NETNS_CONFIG / namespace, ignore_errors=True)
    with contextlib.suppress(OSError):
        NETNS_CONFIG.rmdir()
