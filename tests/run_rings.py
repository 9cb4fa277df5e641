"""Runs the named rings, each as a pytest of its own, and says how many seconds each took, and all of them.

One after the other, but for ``kube``, which waits for servers, leases and watches for most of its time: its parts run
beside those that compute, and beside each other once these are through; their output follows. All run even if one
fails. The exit code is 0 only if every ring passed; a ring, or a part of it, in which no test was found fails too,
unless this machine cannot run it and ``YETT_REQUIRE`` does not ask for it. More than ``LIMIT_SECONDS`` from first to
last is said, and fails nothing: machines differ.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO

RINGS = {
    "pure": "not kernel and not nats and not e2e and not kube",
    "kernel": "kernel and not e2e and not kube",
    "nats": "nats and not kernel and not e2e and not kube",
    "e2e": "e2e and not kube",
    "kube": "kube",
}
NO_TESTS_COLLECTED = 5
LIMIT_SECONDS = 25 * 60.0
WAITING, COMPUTING = "kube", ("pure", "kernel")
"""What runs beside what, where there is a processor for either. Not ``e2e`` and ``nats``: their figures are seconds."""
WAITING_PARTS = (
    ("tests/kube/e2e",),
    ("tests/kube", "--ignore=tests/kube/e2e", "--ignore-glob=tests/kube/test_[a-l]*"),
    ("tests/kube", "--ignore=tests/kube/e2e", "--ignore-glob=tests/kube/test_[!a-l]*"),
)
"""Each with servers of its own; the second has the two minutes of ``test_minutes`` beside it."""

Result = tuple[int, float]


def run_ring(ring: str) -> Result:
    """pytest's exit code and the seconds that the ring took."""
    print(f"\n=== ring: {ring}", flush=True)
    return _run(ring, None)


def _run(ring: str, output: IO[str] | None, part: Sequence[str] = ()) -> Result:
    started = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-m", RINGS[ring], *part]
    environment = {**os.environ, "YETT_RING": ring}
    code = subprocess.run(command, env=environment, stdout=output, stderr=output, check=False).returncode
    return code, time.monotonic() - started


def run_rings(rings: list[str]) -> dict[str, Result]:
    """All of them; the parts of ``WAITING`` beside ``COMPUTING`` where both are named."""
    beside = [ring for ring in COMPUTING if ring in rings]
    if WAITING not in rings or not beside or (os.cpu_count() or 1) < 2:
        return {ring: run_ring(ring) for ring in rings}
    with tempfile.TemporaryFile("w+") as first, tempfile.TemporaryFile("w+") as second, ThreadPoolExecutor(1) as pool:
        print(f"=== ring: {WAITING}, beside {' and '.join(beside)}; its output follows", flush=True)
        parts = iter(WAITING_PARTS)
        waiting = pool.submit(_run_parts, parts, first)
        found = {ring: run_ring(ring) for ring in beside}
        found[WAITING] = _add(_run_parts(parts, second) + waiting.result())
        for output in (first, second):
            output.seek(0)
        print(f"\n=== ring: {WAITING}\n{first.read()}{second.read()}", flush=True)
    return {ring: found[ring] if ring in found else run_ring(ring) for ring in rings}


def _run_parts(parts: Iterator[tuple[str, ...]], output: IO[str]) -> list[Result]:
    """Those that nobody else has taken when their turn comes."""
    return [_run(WAITING, output, part) for part in parts]


def _add(parts: Sequence[Result]) -> Result:
    """Of a ring: the first code that is none of a part that passed, and the seconds of all."""
    return next((code for code, _ in parts if code), 0), sum(seconds for _, seconds in parts)


def main(rings: list[str]) -> int:
    """Exit code for the named rings; unknown names are refused."""
    if unknown := [ring for ring in rings if ring not in RINGS]:
        print(f"no such ring: {', '.join(unknown)}; there are {', '.join(RINGS)}", file=sys.stderr)
        return 2
    started = time.monotonic()
    results = run_rings(rings)
    lines, code = judge(results, time.monotonic() - started)
    print("\n".join(["", *lines]), flush=True)
    return code


def judge(results: dict[str, Result], total_seconds: float) -> tuple[list[str], int]:
    """What is printed, and the exit code. The total is less than the sum where rings ran beside each other."""
    lines = ["ring     seconds"]
    for ring, (code, seconds) in results.items():
        outcome = {0: "passed", NO_TESTS_COLLECTED: "no test found"}.get(code, f"failed (pytest exit {code})")
        lines.append(f"{ring:8} {seconds:7.1f}  {outcome}")
    late = f"  more than the {LIMIT_SECONDS:.0f} that are promised" if total_seconds > LIMIT_SECONDS else ""
    lines.append(f"total    {total_seconds:7.1f}{late}")
    failed = [ring for ring, (code, _) in results.items() if code != 0]
    lines.append(f"rings: {len(results) - len(failed)} passed, {len(failed)} failed")
    return lines, 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(RINGS)))
