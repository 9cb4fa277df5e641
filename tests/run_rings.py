"""Runs the named rings one after the other, each as a pytest of its own, and says how many seconds each took.

All run even if one fails. The exit code is 0 only if every ring passed; a ring in which no test was found fails too,
unless this machine cannot run it and ``YETT_REQUIRE`` does not ask for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

RINGS = {
    "pure": "not kernel and not nats and not e2e and not kube",
    "kernel": "kernel and not e2e and not kube",
    "nats": "nats and not kernel and not e2e and not kube",
    "e2e": "e2e and not kube",
    "kube": "kube",
}
NO_TESTS_COLLECTED = 5


def run_ring(ring: str) -> tuple[int, float]:
    """pytest's exit code and the seconds that the ring took."""
    print(f"\n=== ring: {ring}", flush=True)
    started = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-m", RINGS[ring]]
    code = subprocess.run(command, env={**os.environ, "YETT_RING": ring}, check=False).returncode
    return code, time.monotonic() - started


def main(rings: list[str]) -> int:
    """Exit code for the named rings; unknown names are refused."""
    if unknown := [ring for ring in rings if ring not in RINGS]:
        print(f"no such ring: {', '.join(unknown)}; there are {', '.join(RINGS)}", file=sys.stderr)
        return 2
    results = {ring: run_ring(ring) for ring in rings}
    print("\nring     seconds")
    for ring, (code, seconds) in results.items():
        outcome = {0: "passed", NO_TESTS_COLLECTED: "no test found"}.get(code, f"failed (pytest exit {code})")
        print(f"{ring:8} {seconds:7.1f}  {outcome}")
    failed = [ring for ring, (code, _) in results.items() if code != 0]
    print(f"rings: {len(results) - len(failed)} passed, {len(failed)} failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(RINGS)))
