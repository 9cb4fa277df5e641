"""What the policy core costs, from objects to rows ready to be published, without bus or kernel.

Every figure is taken at four sizes, each in a process of its own with the collector set as the controller sets it.
Times are the processor's, so that neighbours on the machine count for little; wall time stands in the spread.

    python -m bench.core [PODS [lists]]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.cluster import (
    LARGE,
    TEAMS,
    WORKLOADS,
    Size,
    make_cluster,
    make_many_peers,
    make_namespace,
    make_namespace_policy,
    make_pod,
    make_repeated,
    make_wide_policy,
)
from services.controller.heap import freeze_heap, loading
from services.controller.ledger import Ledger, Snapshot
from services.controller.world import State

SIZES = (1_250, 2_500, 5_000, 10_000)
REPEATED_RULES, DISTINCT_PEERS = 1_000, 20_000
"""At the largest size; in proportion at the others."""
SAMPLES, SAMPLES_WIDE, BUILDS = 100, 24, 3
ROUNDS = 3
"""All sizes in turns, so often: a machine that is slower for a while is so for every size."""

Event = Callable[[State, int], object]


def events(size: Size) -> dict[str, tuple[Event, int]]:
    """What happens to a cluster -> (the event, which takes its turn's number; how often)."""
    changed_pod = size.pods // 2

    def remove(state: State, turn: int) -> None:
        metadata = make_pod(size, size.pods + turn)["metadata"]
        state.delete("Pod", metadata["namespace"], metadata["name"])

    def put(make: Callable[[int], dict[str, Any]]) -> Event:
        return lambda state, turn: state.upsert(make(turn))

    return {
        "pod added": (put(lambda turn: make_pod(size, size.pods + turn)), SAMPLES),
        "pod removed": (remove, SAMPLES),
        "pod relabelled": (put(lambda turn: make_pod(size, changed_pod, app=f"app-{turn % WORKLOADS}")), SAMPLES),
        "policy of a namespace, port edited": (put(lambda turn: make_namespace_policy(7, port=9000 + turn)), SAMPLES),
        "policy of a namespace, peers edited": (put(lambda turn: make_namespace_policy(7, team=turn % TEAMS)), SAMPLES),
        "policy of a namespace, subject edited": (
            put(lambda turn: make_namespace_policy(7, app=f"app-{turn % WORKLOADS}")),
            SAMPLES,
        ),
        "policy of all pods, port edited": (put(lambda turn: make_wide_policy(0, port=1000 + turn)), SAMPLES_WIDE),
        "policy of all pods, peers edited": (
            put(lambda turn: make_wide_policy(0, prefix=f"203.0.113.{turn}/32")),
            SAMPLES_WIDE,
        ),
        "policy of all pods, subject edited": (
            put(lambda turn: make_wide_policy(0, team="" if turn % 2 else "t1")),
            SAMPLES_WIDE,
        ),
        "policy of all pods, priority edited": (
            put(lambda turn: make_wide_policy(0, priority=100 + turn)),
            SAMPLES_WIDE,
        ),
        "namespace relabelled": (
            put(lambda turn: make_namespace(int(LARGE.removeprefix("ns-")), team=f"t{1 + turn % 2}")),
            SAMPLES,
        ),
    }


def measure_size(pods: int) -> dict[str, Any]:
    """Every figure of one size, in this process; the first thing it does, for the sake of its memory."""
    size = Size(pods)
    objects = make_cluster(size)
    state, first = _build(objects)
    peak = _peak_mebibytes()
    builds = [first, *(_build(objects)[1] for _ in range(BUILDS - 1))]
    rows = state.rows()
    ledger = Ledger(Snapshot(rows, {}), epoch="0")
    freeze_heap()
    found = {name: _sample(state, ledger, *event) for name, event in events(size).items()}
    return {
        "pods": pods,
        "cold": builds,
        "peak": peak,
        "rows": len(rows),
        "events": found,
    }


def measure_lists(pods: int) -> dict[str, Any]:
    """The long lists that go with a size, in this process, where no cluster is."""
    share = pods / SIZES[-1]
    return {
        "repeated": [_build(make_repeated(int(REPEATED_RULES * share)))[1] for _ in range(BUILDS)],
        "peers": [_build(make_many_peers(int(DISTINCT_PEERS * share)))[1] for _ in range(BUILDS)],
    }


def _build(objects: list[dict[str, Any]]) -> tuple[State, float]:
    """From objects to rows; -> processor seconds. RuntimeError if the core complains: the figure would be another's."""
    started = time.process_time()
    with loading():
        state = State()
        for obj in objects:
            state.upsert(obj)
        state.changes()
    spent = time.process_time() - started
    errors = [problem for problem in state.problems() if problem.severity == "error"]
    if errors:
        raise RuntimeError(f"the bench's own objects are refused: {errors[:3]}")
    return state, spent


def _sample(state: State, ledger: Ledger, event: Event, turns: int) -> dict[str, Any]:
    """Milliseconds from event to rows ready, and how many rows; what the ledger makes of them is timed apart."""
    state.changes()
    spent, walls, plans, moved = [], [], [], []
    for turn in range(turns):
        wall, started = time.perf_counter(), time.process_time()
        event(state, turn)
        changes = state.changes()
        spent.append((time.process_time() - started) * 1e3)
        walls.append((time.perf_counter() - wall) * 1e3)
        moved.append(len(changes))
        started = time.process_time()
        ledger.plan_rows(changes, trace="")
        ledger.plan_revision(trace="", now_seconds=0.0)
        plans.append((time.process_time() - started) * 1e3)
    return {
        "median": statistics.median(spent),
        "p95": statistics.quantiles(spent, n=20)[18],
        "wall": statistics.median(walls),
        "plan": statistics.median(plans),
        "rows": int(statistics.median(moved)),
    }


def _peak_mebibytes() -> float:
    """Of this process since it was started; ``ru_maxrss`` would hold its parent's as well."""
    (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def measure() -> list[dict[str, Any]]:
    """``measure_size`` and ``measure_lists`` of every size, smallest first; of several rounds, see ``merge``."""
    rounds = [[json.loads(_run(pods)) | json.loads(_run(pods, "lists")) for pods in SIZES] for _ in range(ROUNDS)]
    return [merge(found) for found in zip(*rounds, strict=True)]


def merge(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One size's rounds as one: the middle of every figure, all builds, the highest peak.

    ``least``: the smallest of an event's medians, which is what growth compares: disturbance only adds.
    """
    events = {}
    for name in rounds[0]["events"]:
        found = [each["events"][name] for each in rounds]
        middle = {key: statistics.median(one[key] for one in found) for key in found[0]}
        events[name] = middle | {"rows": int(middle["rows"]), "least": min(one["median"] for one in found)}
    lists = {key: [value for each in rounds for value in each[key]] for key in ("cold", "repeated", "peers")}
    return rounds[0] | lists | {"peak": max(each["peak"] for each in rounds), "events": events}


def _run(pods: int, *asked: str) -> str:
    command = [sys.executable, "-m", "bench.core", str(pods), *asked]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout


def main(asked: list[str]) -> None:
    """Print what was found as JSON: of one size, or of its long lists, or of all."""
    if not asked:
        print(json.dumps(measure(), indent=1))
    elif asked[1:] == ["lists"]:
        print(json.dumps(measure_lists(int(asked[0]))))
    else:
        print(json.dumps(measure_size(int(asked[0]))))


if __name__ == "__main__":
    main(sys.argv[1:])
