"""How long 100,000 prefixes take into the kernel: the agent's own adapter applies its own plan, in batches."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from bench.bounds import PREFIXES_SECONDS, Measured
from services.nodeagent.datapath import Datapath
from services.nodeagent.tables import CLASS_CIDR, CidrEntry, Tables
from tests.bpf.prog_run import Kernel

PREFIXES, CLASSES, TURNS = 100_000, 50, 5
SIZES = {"ENDPOINT_SLOTS": 64, "PREFIXES": 131_072, "VERDICT_PAGES": 64, "RESOLUTION_PAGES": 64}


def make_tables() -> Tables:
    """As many different /24 as there are to be, from 11.0.0.0 up."""
    tables = Tables()
    for number in range(PREFIXES):
        prefix = f"{11 + (number >> 16)}.{number >> 8 & 255}.{number & 255}.0/24"
        tables.cidrs[prefix] = CidrEntry(CLASS_CIDR | number % CLASSES + 1)
    return tables


def measure_prefixes() -> list[Measured]:
    """Seconds on the wall of ``Datapath.apply``, into an empty map, the median of the turns."""
    kernel = Kernel(Path("/sys/fs/bpf"), SIZES)
    try:
        planned, applied = zip(*(write_once(kernel, make_tables()) for _ in range(TURNS)), strict=True)
    finally:
        kernel.close()
    spread = f"{', '.join(f'{one:.3f}' for one in applied)}; comparing and encoding {statistics.median(planned):.2f} s"
    what = f"{PREFIXES} prefixes into the kernel, batched, median"
    return [Measured(what, statistics.median(applied), "s", PREFIXES_SECONDS, spread)]


def write_once(kernel: Kernel, tables: Tables) -> tuple[float, float]:
    """Seconds that planning and applying took; the kernel has no prefix before and none after."""
    datapath = Datapath(kernel.loaded.maps)
    datapath.open()
    try:
        started = time.perf_counter()
        ops = datapath.plan(tables, None)
        planned = time.perf_counter()
        datapath.apply(ops)
        ended = time.perf_counter()
        count_written(kernel, PREFIXES)
        datapath.apply(datapath.plan(Tables(), None))
        count_written(kernel, 0)
    finally:
        datapath.close()
    return planned - started, ended - planned


def count_written(kernel: Kernel, wanted: int) -> None:
    """RuntimeError unless so many IPv4 prefixes are in the kernel."""
    if (found := len(kernel.maps["cidrs4"].keys())) != wanted:
        raise RuntimeError(f"{found} prefixes in the kernel instead of {wanted}")
