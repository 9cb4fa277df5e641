"""Runs the named rings, each as a pytest of its own, and says how many seconds each took, and all of them.

What waits for most of its time runs beside something else, and its output follows: the parts of ``kube``, which waits
for servers, leases and watches, beside the rings that compute, and beside each other once these are through; ``e2e``
beside ``nats``, but for the files that promise seconds or a rate, which run alone after them. All run even if one
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
"""What runs beside what, where there is a processor for either."""
WAITING_PARTS = (
    ("tests/kube/e2e",),
    ("tests/kube", "--ignore=tests/kube/e2e", "--ignore-glob=tests/kube/test_[a-l]*"),
    ("tests/kube", "--ignore=tests/kube/e2e", "--ignore-glob=tests/kube/test_[!a-l]*"),
)
"""Each with servers of its own; the second has the two minutes of ``test_minutes`` beside it."""
PACKETS, MESSAGES = "e2e", "nats"
"""The first waits too, for names and verdicts, and runs beside the second, but for ``TIMED``."""
TIMED = tuple(f"tests/e2e/test_{name}.py" for name in ("forged_answers", "kill", "lifecycle", "steps", "upgrade"))
"""Of ``PACKETS``: what is given seconds, or makes a rate that is asserted."""
UNTIMED = tuple(f"--ignore={path}" for path in TIMED)

Result = tuple[int, float]


def run_ring(ring: str, part: Sequence[str] = ()) -> Result:
    """pytest's exit code and the seconds that the ring, or the part of it, took."""
    print(f"\n=== ring: {ring}", flush=True)
    return _run(ring, None, part)


def _run(ring: str, output: IO[str] | None, part: Sequence[str] = ()) -> Result:
    started = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-m", RINGS[ring], *part]
    environment = {**os.environ, "YETT_RING": ring}
    code = subprocess.run(command, env=environment, stdout=output, stderr=output, check=False).returncode
    return code, time.monotonic() - started


def run_rings(rings: list[str]) -> dict[str, Result]:
    """All of them, two at a time where two are named of which one waits and there is a processor for either."""
    found: dict[str, Result] = {}
    if (os.cpu_count() or 1) >= 2:
        if WAITING in rings and (computing := [ring for ring in COMPUTING if ring in rings]):
            found |= _run_waiting_beside(computing)
        if PACKETS in rings and MESSAGES in rings:
            found |= _run_packets_beside_messages()
    return {ring: found[ring] if ring in found else run_ring(ring) for ring in rings}


def _run_waiting_beside(computing: list[str]) -> dict[str, Result]:
    with tempfile.TemporaryFile("w+") as first, tempfile.TemporaryFile("w+") as second, ThreadPoolExecutor(1) as pool:
        print(f"=== ring: {WAITING}, beside {' and '.join(computing)}; its output follows", flush=True)
        parts = iter(WAITING_PARTS)
        waiting = pool.submit(_run_parts, parts, first)
        found = {ring: run_ring(ring) for ring in computing}
        found[WAITING] = _add(_run_parts(parts, second) + waiting.result())
        _print_outputs(WAITING, first, second)
    return found


def _run_packets_beside_messages() -> dict[str, Result]:
    with tempfile.TemporaryFile("w+") as output, ThreadPoolExecutor(1) as pool:
        print(f"\n=== ring: {PACKETS}, the untimed part, beside {MESSAGES}; its output follows", flush=True)
        untimed = pool.submit(_run, PACKETS, output, UNTIMED)
        messages = run_ring(MESSAGES)
        untimed.result()
        _print_outputs(PACKETS, output)
    return {MESSAGES: messages, PACKETS: _add([untimed.result(), run_ring(PACKETS, TIMED)])}


def _print_outputs(ring: str, *outputs: IO[str]) -> None:
    for output in outputs:
        output.seek(0)
    print(f"\n=== ring: {ring}\n{''.join(output.read() for output in outputs)}", flush=True)


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
