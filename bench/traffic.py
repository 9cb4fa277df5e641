"""What enforcement leaves of the traffic between two pods: bulk TCP by iperf3, requests by ``roundtrips.c``.

Three pairs of pods of one node, taken in turns: one enforced, one not attached, and one not attached as the control.
Beside request and response two floors (``floors``): filters that do nothing, and filters that find a flow and count in
it, at the same hooks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from bench.bounds import TRAFFIC_RATIO, Measured
from bench.floors import FILTERS, pinned_filters
from bench.pairs import BARE, FIRST, compare, judge_pairs, take_turns
from bench.pods import PAIRS, Laboratory, check_tools, laboratory
from services.demo.lab import run_command
from services.demo.state import NETNS
from services.demo.topology import Pod
from tests.e2e.onenode import make_pod
from tests.generators import compile_generator

TURNS = 15
BULK_PORT, REQUEST_PORT = 5201, 5202
BULK_BYTES = "512M"
"""Of each sample."""
MESSAGE_BYTES = 64
ROUNDS, EXCHANGES = 100, 200
"""Rounds a turn, and exchanges of each pair in a round: 3 ms, so that all pairs meet the same machine.

A connection lasts a turn: each new one is news to the agent, whose work is not what is measured here.
"""
FLOOR_PAIRS = {
    name: (make_pod(41 + 10 * index, "u"), make_pod(42 + 10 * index, "u")) for index, name in enumerate(FILTERS)
}


def measure_traffic() -> list[Measured]:
    """Both kinds."""
    check_tools("iperf3", "gcc", "chrt")
    with laboratory() as lab:
        for name, (_, server) in PAIRS.items():
            lab.serve(f"iperf3-{name}", server, BULK_PORT, *FIRST, "iperf3", "--server", "--port", str(BULK_PORT))
        bulk = take_turns(TURNS, {name: partial(send_bulk, lab, *pods) for name, pods in PAIRS.items()})
        add_floor_pairs(lab)
        requests = ask_and_wait(lab, {**PAIRS, **FLOOR_PAIRS})
    floors = {words: compare(requests, name, BARE) for name, words in FILTERS.items()}
    return [
        judge_pairs("bulk TCP between two pods, attached to not", bulk, TRAFFIC_RATIO, "Gbit/s"),
        judge_pairs(
            "requests and responses between two pods, attached to not", requests, TRAFFIC_RATIO, "a second", floors
        ),
    ]


def add_floor_pairs(lab: Laboratory) -> None:
    """The pods whose interfaces have the floors' filters, where ours would be; all gone with the laboratory."""
    with pinned_filters() as pins:
        for name, pods in FLOOR_PAIRS.items():
            for pod in pods:
                lab.node.lab.add_pod(pod)
                on = ("dev", pod.interface)
                lab.node.in_node("tc", "qdisc", "add", *on, "clsact")
                for hook in ("ingress", "egress"):
                    program = ("bpf", "da", "object-pinned", str(pins[name]))
                    lab.node.in_node("tc", "filter", "add", *on, hook, *program)


def send_bulk(lab: Laboratory, client: Pod, server: Pod) -> float:
    """Gbit a second that arrived over one connection."""
    command = ["iperf3", "--client", server.address, "--port", str(BULK_PORT), "--bytes", BULK_BYTES, "--json"]
    said = json.loads(run_command(lab.inside(client, *FIRST, *command)))
    return float(said["end"]["sum_received"]["bits_per_second"]) / 1e9


def ask_and_wait(lab: Laboratory, pairs: Mapping[str, tuple[Pod, Pod]]) -> dict[str, list[float]]:
    """Answers a second, one question under way at a time, by pair and turn."""
    program = compile_generator(Path(__file__).with_name("roundtrips.c"), lab.node.run.folder)
    where = {pod: str(NETNS / lab.node.lab.pod_namespace(pod)) for pods in pairs.values() for pod in pods}
    given = [f"{where[client]},{where[server]},{server.address}" for client, server in pairs.values()]
    numbers = [str(number) for number in (REQUEST_PORT, TURNS, ROUNDS, EXCHANGES, MESSAGE_BYTES)]
    return read_turns(list(pairs), run_command([*FIRST, str(program), *numbers, *given]), ROUNDS * EXCHANGES)


def read_turns(names: Sequence[str], said: str, exchanges: int) -> dict[str, list[float]]:
    """Exchanges a second by name and turn, of a line of nanoseconds a turn; ValueError where some are missing."""
    turns = [[int(nanos) for nanos in line.split()] for line in said.splitlines()]
    if not turns or any(len(turn) != len(names) for turn in turns):
        raise ValueError(f"not every turn has {len(names)} figures")
    return {name: [exchanges * 1e9 / turn[index] for turn in turns] for index, name in enumerate(names)}
