"""``yett test`` on generated scenarios, by both engines: how long they take, and whether they ever differ.

The command itself is run, reading a file of JSON lines as a user's would be. Seconds are the processor's, of the
command and its children; the whole of what is promised takes minutes, so that ``make bench`` runs a fixed part of it.

    python -m bench.scenarios [SCENARIOS]
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.bounds import PROBES, SCENARIOS
from tests.strategies import AT, RandomDice, make_scene

PART = SCENARIOS // 10
"""How many scenarios ``make bench`` runs; the first ones of all."""
EXAMPLES = 3
"""How many of those that the engines judge differently are shown."""
PROBES_EACH = PROBES // SCENARIOS
LIMIT_SECONDS = 1_800
_COMMAND = "from services.cli.__main__ import main; main()"


def make_scenario(seed: int) -> dict[str, Any]:
    """A cluster with policies of every kind, what its pods were told, and probes between anything and anything."""
    scene = make_scene(RandomDice(random.Random(seed)), packets=PROBES_EACH)
    told = [
        {"name": each.name, "addresses": list(each.addresses), "ttl": each.ttl_seconds, "at": each.at}
        for each in scene.answers
    ]
    probes: list[dict[str, Any]] = []
    for number, packet in enumerate(scene.packets):
        ends = {"from": {"address": packet.source}, "to": {"address": packet.destination}}
        port = {"port": packet.port} if packet.port else {}
        probes.append({"id": number, **ends, "protocol": packet.protocol, **port, "at": AT})
    objects = scene.cluster + scene.policies
    return {"name": f"seed-{seed}", "objects": objects, "resolutions": told, "probes": probes}


def measure(scenarios: int = PART) -> dict[str, Any]:
    """Both engines on the same file. RuntimeError if the command could not judge every probe."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "generated.jsonl"
        with path.open("w") as file:
            for seed in range(scenarios):
                file.write(json.dumps(make_scenario(seed)) + "\n")
        evaluate, told = _run(path, "evaluate")
        kernel, other = _run(path, "kernel")
    different = [line for pair in zip(told, other, strict=True) for line in _find_different(*pair)]
    return {
        "scenarios": scenarios,
        "probes": scenarios * PROBES_EACH,
        "evaluate": evaluate,
        "kernel": kernel,
        "different": len(different),
        "examples": different[:EXAMPLES],
    }


def _run(path: Path, engine: str) -> tuple[dict[str, float], list[dict[str, Any]]]:
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-c", _COMMAND, "test", str(path), "--engine", engine, "--output", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"yett test --engine {engine}: status {done.returncode}: {done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu": cpu, "wall": time.perf_counter() - wall}, [json.loads(line) for line in done.stdout.splitlines()]


def _find_different(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Probes with another verdict, tier, policy, rule or reason, in words: a seed makes its scenario again."""
    pairs = zip(one["probes"], other["probes"], strict=True)
    return [
        f"{one['name']} probe {mine['id']}: {mine} {theirs}"
        for mine, theirs in pairs
        if _judgement(mine) != _judgement(theirs)
    ]


def _judgement(probe: dict[str, Any]) -> list[object]:
    """What must agree. Which of an address's several names is told need not: each of them admits it."""
    sides = [
        {key: value for key, value in (probe[side] or {}).items() if key != "name"} for side in ("egress", "ingress")
    ]
    return [probe["id"], probe["verdict"], *sides]


def main(asked: list[str]) -> None:
    """Print what was found as JSON."""
    print(json.dumps(measure(int(asked[0]) if asked else PART)))


if __name__ == "__main__":
    main(sys.argv[1:])
