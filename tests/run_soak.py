"""What ``make test`` proves, ten times over: longer runs with other seeds, one part after the other.

Each part is a pytest run with its own settings, bounded in time; it prints its progress and its seed, so that what it
finds can be repeated: ``make soak ONLY=twins SEED=20000``. All parts run even if one fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field

SEED = 100_000
"""Far from the seeds of ``make test``."""


@dataclass(frozen=True)
class Part:
    """``tests``: what pytest is given; ``settings``: its environment; ``seconds_max``: after that it is stopped.

    ``is_program``: ``tests`` is a program of its own and not pytest's.
    """

    name: str
    tests: tuple[str, ...]
    settings: dict[str, str] = field(default_factory=dict)
    seconds_max: int = 3600
    is_program: bool = False

    @property
    def command(self) -> tuple[str, ...]:
        """What is run."""
        if self.is_program:
            return (sys.executable, *self.tests)
        return (sys.executable, "-m", "pytest", "-q", "-s", "-o", f"timeout={self.seconds_max}", *self.tests)


PARTS = (
    Part(
        "twins",
        ("tests/bpf/test_twins.py",),
        {"YETT_TWIN_CLUSTERS": "20000", "YETT_TWIN_EXAMPLES": "600", "YETT_TWIN_SECONDS": "7200"},
        seconds_max=3 * 3600,
    ),
    Part(
        "learner",
        ("tests/bpf/test_learner_differential.py",),
        {"YETT_LEARNER_MESSAGES": "2000000"},
    ),
    Part("ports", ("tests/bpf/test_port_tables.py",), {"YETT_PORT_TABLES": "60"}),
    Part(
        "kernels",  # two of them, one after the other, each with a bound of its own
        ("tests/run_kernels.py",),
        {"YETT_KERNEL_SECONDS": "5400"},
        seconds_max=2 * 5400 + 1800,
        is_program=True,
    ),
)
"""Add a part here; ``tests/test_soak.py`` holds each to a test that exists."""


def run_part(part: Part, seed: int) -> tuple[str, float]:
    """(what came of it, seconds)."""
    print(f"\n=== soak: {part.name}, seed {seed}, at most {part.seconds_max} s", flush=True)
    environment = {**os.environ, **part.settings, "YETT_SEED": str(seed)}
    started = time.monotonic()
    try:
        code = subprocess.run(part.command, env=environment, timeout=part.seconds_max, check=False).returncode
        outcome = "passed" if code == 0 else f"failed (exit {code})"
    except subprocess.TimeoutExpired:
        outcome = f"stopped after {part.seconds_max} s"
    return outcome, time.monotonic() - started


def main(arguments: list[str]) -> int:
    """Exit code: 0 only if every part passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help="all if none is named: " + ", ".join(part.name for part in PARTS))
    parser.add_argument("--seed", type=int, default=SEED)
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - {part.name for part in PARTS}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    chosen = [part for part in PARTS if part.name in given.parts or not given.parts]
    results = {part.name: run_part(part, given.seed) for part in chosen}
    print("\npart        seconds")
    for name, (outcome, seconds) in results.items():
        print(f"{name:10} {seconds:8.1f}  {outcome}")
    return 0 if all(outcome == "passed" for outcome, _ in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
