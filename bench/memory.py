"""What the services keep in memory after the demo's load: proportional set size, so that shared pages count once."""

from __future__ import annotations

import re
from pathlib import Path

from bench.bounds import AGENT_MEGABYTES, CONTROLLER_MEGABYTES, RECORDER_MEGABYTES, Measured
from services.demo.pipeline import CONTROLLER, agent_name, recorder_name
from services.demo.runner import Demo
from services.demo.topology import NODES

_FIELD = re.compile(r"^(Pss|Rss):\s+(\d+) kB$", re.MULTILINE)
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)
_COMPILER = re.compile(r"libbcc\.so")


def read_memory(smaps_rollup: str, status: str) -> dict[str, float]:
    """MB (10^6 bytes) of Pss, Rss and Peak, from two files of /proc/PID; KeyError if one says none."""
    found = {name: int(kilobytes) * 1024 / 1e6 for name, kilobytes in _FIELD.findall(smaps_rollup)}
    peak = _PEAK.search(status)
    if peak is None:
        raise KeyError("VmHWM")
    return {"Pss": found["Pss"], "Rss": found["Rss"], "Peak": int(peak[1]) * 1024 / 1e6}


def measure_memory(demo: Demo) -> list[Measured]:
    """The services of a demo that has done its work; the larger of the two agents and recorders counts."""
    groups = {
        "nodeagent": ([agent_name(node) for node in NODES], AGENT_MEGABYTES),
        "dnsrecorder": ([recorder_name(node) for node in NODES], RECORDER_MEGABYTES),
        CONTROLLER: ([CONTROLLER], CONTROLLER_MEGABYTES),
    }
    rows = []
    for what, (names, bound) in groups.items():
        found = [_read_process(demo.pipeline.processes[name].pid) for name in names]
        largest = max(found, key=lambda one: one["Pss"])
        spread = f"Rss {largest['Rss']:.0f}, peak Rss {largest['Peak']:.0f}; the larger of {len(found)}"
        rows.append(Measured(f"memory of the {what} under the demo's load, Pss", largest["Pss"], "MB", bound, spread))
    return rows


def _read_process(pid: int) -> dict[str, float]:
    folder = Path("/proc", str(pid))
    if _COMPILER.search((folder / "maps").read_text()):
        raise RuntimeError(f"process {pid} has the compiler in it, which a short-lived child was to have")
    return read_memory((folder / "smaps_rollup").read_text(), (folder / "status").read_text())
