"""Seeds by the thousand, in as many processes as there are processors, each with programs and maps of its own.

Maps go from one cluster to the next by the agent's plan, never emptied in between: every cluster is a transition too.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.util
import os
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from services.scenario.kernel_engine import KernelEngine, open_kernel
from services.scenario.model import ScenarioError
from services.scenario.run import Engine
from tests.strategies import Scene, seeded_scene
from tests.twins.document import Document, format_document, make_document, read_document
from tests.twins.proof import (
    Coverage,
    Difference,
    RefusedObjects,
    expect_probes,
    find_differences,
    make_question,
)
from tests.twins.reduction import reduce_document

PACKETS = 100
"""Of each cluster; one may be judged at several interfaces."""
BATCH = 25


@dataclass
class Outcome:
    """``packets``: sent through the programs. ``failure``: what differs and the scenario that shows it, or empty."""

    clusters: int = 0
    packets: int = 0
    coverage: Coverage = field(default_factory=Counter)
    failure: str = ""

    def add(self, other: Outcome) -> None:
        self.clusters += other.clusters
        self.packets += other.packets
        self.coverage += other.coverage
        self.failure = self.failure or other.failure


def prove_scene(scene: Scene, engine: Engine, name: str, outcome: Outcome) -> list[Difference]:
    """Ask both of a scene: its packets as probes, and those that no probe can say as they are."""
    bare = [packet for packet in scene.packets if packet.from_own_node]
    question = make_question(read_document(make_document(scene, name)), bare)
    outcome.clusters += 1
    outcome.packets += sum(not each.is_local for each in question.crossings)
    return find_differences(question, engine, outcome.coverage)


def prove_seed(seed: int, engine: Engine, folder: Path, *, packets: int = PACKETS) -> Outcome:
    """One cluster. A difference is reduced and written as a scenario into ``folder``."""
    outcome, scene = Outcome(), seeded_scene(seed, packets=packets)
    differences = prove_scene(scene, engine, f"seed-{seed}", outcome)
    if differences:
        outcome.failure = f"seed {seed}: " + report(make_document(scene, f"seed-{seed}"), differences, engine, folder)
    return outcome


def report(document: Document, differences: list[Difference], engine: Engine, folder: Path) -> str:
    """A difference in words, with the smallest scenario that shows one."""
    told = f"{len(differences)} differences, the first:\n{differences[0]}\n"
    if not any(each.probe is not None for each in differences):
        return told + "no probe can say these packets; the seed replays them"
    small = reduce_document(document, lambda trial: differs(trial, engine))
    path = write_scenario(small, folder)
    return f"{told}the smallest scenario that differs, in {path} for `yett test`:\n{path.read_text()}"


def write_scenario(document: Document, folder: Path) -> Path:
    """``document`` as a file, each probe with the oracle's verdict as its ``expect``."""
    path = folder / f"{document['name']}.yaml"
    path.write_text(format_document(expect_probes(document, make_question(read_document(document)))))
    return path


def differs(document: Document, engine: Engine) -> bool:
    """Whether some probe of a scenario is judged differently; not if the scenario is no good."""
    try:
        question = make_question(read_document(document))
    except (ScenarioError, RefusedObjects):
        return False
    return any(each.probe is not None for each in find_differences(question, engine))


# ---------------------------------------------------------------------------------------------------------------------
# Many


def prove_seeds(seeds: range, folder: Path, *, packets: int = PACKETS, seconds_max: float = 3600.0) -> Outcome:
    """All of them, or until the first difference. TimeoutError if that takes longer than ``seconds_max``."""
    batches = [seeds[start : start + BATCH] for start in range(0, len(seeds), BATCH)]
    outcome, started = Outcome(), time.monotonic()
    with ProcessPoolExecutor(_count_processors(), multiprocessing.get_context("spawn"), _open_engine) as pool:
        try:
            futures = [pool.submit(_prove_batch, batch, folder, packets) for batch in batches]
            for future in as_completed(futures, timeout=seconds_max):
                outcome.add(future.result())
                _tell(outcome, len(seeds), started)
                if outcome.failure:
                    return outcome
        finally:
            pool.shutdown(cancel_futures=True)
    return outcome


def _count_processors() -> int:
    return max(1, len(os.sched_getaffinity(0)))


def _tell(outcome: Outcome, clusters: int, started: float) -> None:
    """Progress, for who runs pytest with -s."""
    seconds = time.monotonic() - started
    print(f"twins: {outcome.clusters}/{clusters} clusters, {outcome.packets} packets, {seconds:.0f} s", flush=True)


_engines: list[KernelEngine] = []
"""This worker's own."""


def _open_engine() -> None:
    stack = contextlib.ExitStack()
    _engines.append(stack.enter_context(open_kernel()))
    multiprocessing.util.Finalize(None, stack.close, exitpriority=1)


def _prove_batch(seeds: range, folder: Path, packets: int) -> Outcome:
    outcome = Outcome()
    for seed in seeds:
        outcome.add(prove_seed(seed, _engines[0], folder, packets=packets))
        if outcome.failure:
            break
    return outcome
