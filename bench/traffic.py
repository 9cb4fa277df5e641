"""What enforcement leaves of the traffic between two pods: bulk TCP by iperf3, request and response by sockperf.

Three pairs of pods of one node, taken in turns: one enforced, one not attached, and one not attached as the control.
"""

from __future__ import annotations

import json
import re
from functools import partial

from bench.bounds import TRAFFIC_RATIO, Measured
from bench.pairs import FIRST, judge_pairs, take_turns
from bench.pods import PAIRS, Laboratory, check_tools, laboratory
from services.demo.lab import run_command
from services.demo.state import DemoError
from services.demo.topology import Pod

TURNS = 15
BULK_PORT, REQUEST_PORT = 5201, 5202
BULK_BYTES, REQUEST_SECONDS = "512M", 1
"""Of each sample."""
MESSAGE_BYTES = 64
_MESSAGES = re.compile(r"\[Valid Duration\] RunTime=([0-9.]+) sec; SentMessages=\d+; ReceivedMessages=(\d+)")


def measure_traffic() -> list[Measured]:
    """Both kinds, each pair's servers running from the start."""
    check_tools("iperf3", "sockperf", "chrt")
    with laboratory() as lab:
        for name, (_, server) in PAIRS.items():
            lab.serve(f"iperf3-{name}", server, BULK_PORT, *FIRST, "iperf3", "--server", "--port", str(BULK_PORT))
            lab.serve(f"sockperf-{name}", server, REQUEST_PORT, *FIRST, *_sockperf("server", server))
        bulk = take_turns(TURNS, {name: partial(send_bulk, lab, *pods) for name, pods in PAIRS.items()})
        requests = take_turns(TURNS, {name: partial(ask_and_wait, lab, *pods) for name, pods in PAIRS.items()})
    return [
        judge_pairs("bulk TCP between two pods, attached to not", bulk, TRAFFIC_RATIO, "Gbit/s"),
        judge_pairs("requests and responses between two pods, attached to not", requests, TRAFFIC_RATIO, "a second"),
    ]


def send_bulk(lab: Laboratory, client: Pod, server: Pod) -> float:
    """Gbit a second that arrived over one connection."""
    command = ["iperf3", "--client", server.address, "--port", str(BULK_PORT), "--bytes", BULK_BYTES, "--json"]
    said = json.loads(run_command(lab.inside(client, *FIRST, *command)))
    return float(said["end"]["sum_received"]["bits_per_second"]) / 1e9


def ask_and_wait(lab: Laboratory, client: Pod, server: Pod) -> float:
    """Answers a second on one connection, one question under way at a time."""
    said = run_command(lab.inside(client, *FIRST, *_sockperf("ping-pong", server)))
    found = _MESSAGES.search(said)
    if found is None or not int(found[2]):
        raise DemoError(f"sockperf told no figures: {said[-1000:]}")
    return int(found[2]) / float(found[1])


def _sockperf(mode: str, server: Pod) -> list[str]:
    command = ["sockperf", mode, "--tcp", "--ip", server.address, "--port", str(REQUEST_PORT)]
    if mode == "server":
        return command
    return [*command, "--msg-size", str(MESSAGE_BYTES), "--time", str(REQUEST_SECONDS)]
