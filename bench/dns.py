"""What enforcement leaves of DNS, by dnsperf from a pod through the cluster's DNS Service to unbound.

The enforced pod has a domain rule that covers every name asked for, so each answer is parsed and its name is known.
The same path through a forwarder in user space, dnsdist on the node, is what reading answers costs elsewhere.
"""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from bench.bounds import DNS_LIMIT_RATIO, DNS_STEADY_RATIO, FORWARDER_RATIO, Measured
from bench.pairs import BARE, ENFORCED, FIRST, compare, judge_pairs, take_turns
from bench.pods import PAIRS, Laboratory, check_tools, laboratory
from services.demo import servers, topology
from services.demo.lab import in_namespace, run_command
from services.demo.state import DemoError
from services.demo.topology import NODE_A, Pod

FORWARDER = "forwarder"
FORWARDER_PORT = 5300
TURNS, LIMIT_TURNS = 15, 31
"""At the limit samples of one pod differ by a tenth, so there are more of them."""
SECONDS = 1
"""Of each sample."""
NAMES = 200
"""Asked for again and again: the resolver has them cached, the learner knows them."""
STEADY_RATE = 50_000
CLIENTS, OUTSTANDING = 4, 200
_RATE = re.compile(r"Queries per second:\s+([0-9.]+)")
_ANSWERED = re.compile(r"NOERROR \d+ \(([0-9.]+)%\)")


def measure_dns() -> list[Measured]:
    """At a steady rate, at the resolver's limit, and through the forwarder."""
    check_tools("dnsperf", "dnsdist", "chrt")
    with laboratory() as lab:
        folder = lab.node.run.folder
        questions = folder / "questions"
        questions.write_text("".join(f"{topology.fresh_name(number)[0]} A\n" for number in range(1, NAMES + 1)))
        configuration = start_forwarder(lab, folder)
        run_first(lab, "unbound")
        ask = partial(ask_for_a_second, lab, questions)
        direct = {name: pods[0] for name, pods in PAIRS.items()}
        for pod in direct.values():
            ask(pod)
        steady = take_turns(TURNS, {name: partial(ask, pod, rate=STEADY_RATE) for name, pod in direct.items()})
        at_limit = {name: partial(ask, pod) for name, pod in direct.items()}
        at_limit[FORWARDER] = partial(ask, direct[BARE], through=(NODE_A.address, FORWARDER_PORT))
        limit = take_turns(LIMIT_TURNS, at_limit)
    return [
        judge_pairs(f"DNS at {STEADY_RATE} questions a second, attached to not", steady, DNS_STEADY_RATIO, "q/s"),
        judge_pairs("DNS at the resolver's limit, attached to not", limit, DNS_LIMIT_RATIO, "q/s"),
        judge_forwarder(limit, configuration),
    ]


def judge_forwarder(found: Mapping[str, Sequence[float]], configuration: str) -> Measured:
    """The forwarder's rate by ours, both printed."""
    ratio = compare(found, FORWARDER, ENFORCED)
    ours, its = (statistics.median(found[name]) for name in (ENFORCED, FORWARDER))
    spread = f"{ratio.spread}; ours {ours:.0f} q/s, the forwarder's {its:.0f} q/s; {configuration}"
    what = "DNS through a forwarder on the node, to ours"
    return Measured(what, round(ratio.median, 4), "x", FORWARDER_RATIO, spread)


def start_forwarder(lab: Laboratory, folder: Path) -> str:
    """dnsdist in the node's namespace, a thread a core each way; its configuration in words."""
    threads = os.cpu_count() or 1
    path = folder / "dnsdist.conf"
    path.write_text(render_forwarder(threads))
    command = [*FIRST, "dnsdist", "--supervised", "--disable-syslog", "--config", str(path)]
    run = lab.node.run
    process = servers.start_process(run, "dnsdist", in_namespace(lab.node.namespace, *command))
    listening = in_namespace(lab.node.namespace, "ss", "-Hlun", f"sport = :{FORWARDER_PORT}")
    servers.wait_until(run, process, lambda: bool(run_command(listening).strip()))
    return f"dnsdist, {threads} listeners with SO_REUSEPORT, {threads} sockets to the resolver, no cache, warm"


def render_forwarder(threads: int) -> str:
    """dnsdist's configuration: as many listeners and ways to the resolver as threads, and nothing else."""
    listener = f'("{NODE_A.address}:{FORWARDER_PORT}", {{reusePort=true}})\n'
    server = f'address="{topology.FABRIC_DNS}:53", sockets={threads}, checkName="example.com."'
    return (
        f'setACL({{"0.0.0.0/0"}})\nsetSecurityPollSuffix("")\nsetMaxUDPOutstanding(65535)\n'
        f"setLocal{listener}{f'addLocal{listener}' * (threads - 1)}newServer({{{server}}}):setUp()\n"
    )


def run_first(lab: Laboratory, name: str) -> None:
    """A daemon of the laboratory, with all its threads, before other work of the machine."""
    pids = [process.pid for process in lab.node.run.state.processes if process.name == name]
    run_command(["chrt", "--all-tasks", "--rr", "--pid", "1", str(pids[-1])])


def ask_for_a_second(
    lab: Laboratory, questions: Path, pod: Pod, *, rate: int = 0, through: tuple[str, int] = (topology.DNS_SERVICE, 53)
) -> float:
    """Answers a second; ``rate``: 0 as many as come. DemoError unless nearly all are answers of use."""
    command = ["dnsperf", "-s", through[0], "-p", str(through[1]), "-d", str(questions), "-l", str(SECONDS)]
    command += ["-c", str(CLIENTS), "-q", str(OUTSTANDING), "-t", "1", *(["-Q", str(rate)] if rate else [])]
    return read_rate(run_command(lab.inside(pod, *FIRST, *command)))


def read_rate(said: str) -> float:
    """Answers a second of what dnsperf said; DemoError where they are not NOERROR."""
    rate, answered = _RATE.search(said), _ANSWERED.search(said)
    if rate is None or answered is None or float(answered[1]) < 99:
        raise DemoError(f"dnsperf told no figures of use: {said[-1000:]}")
    return float(rate[1])
