"""What one packet costs in the kernel, as ratios to a bare program in the same run.

``bare`` is a TC program that does one LRU lookup with a 40-byte key: what any flow table costs. Everything is measured
by BPF_PROG_TEST_RUN in turns, and the median of the turns is compared, so that a machine that slows down slows all.

    python -m bench.datapath [--turns N]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from bench.floors import FLOORS, floors
from schemas.terms import Default, Direction, Reason
from services.common import bpf
from services.nodeagent import loader
from services.nodeagent.tables import CLASS_CIDR, CLASS_DOMAIN, CidrEntry, EndpointEntry, RulesetEntry, Tables
from tests.bpf import packets
from tests.bpf.messages import answer, query
from tests.bpf.prog_run import IFINDEX, Kernel, boot_seconds

POD4, POD6, PEER4, PEER6, RESOLVER = "10.0.0.5", "fd00::5", "192.0.2.80", "2001:db8::80", "10.96.0.10"
DENIED4 = "100.83.136.80"
"""In the middle of the 10,000 prefixes, where the trie is deepest."""
RULESETS, IDENTITIES, PREFIXES, CLASSES = 200, 5_000, 10_000, 50
PLAIN, NAMED, INWARD = 1, 2, 3
"""Ruleset handles: without domain rules, with them, ingress."""
REPEAT, TOLD, WARM = 100_000, 8_000, 2_000
"""Runs a turn; of those that make an event fewer, so that the ring holds them all."""
SIZES = {"ENDPOINT_SLOTS": 64, "VERDICT_PAGES": 512, "RESOLUTION_PAGES": 64}
ALL_RULES = (1 << 512) - 1
DENY_ADMIN = 1 << 191

_BARE = """
struct key { unsigned char byte[40]; };
BPF_TABLE("lru_hash", struct key, unsigned long long, flows, 65536);
int bare(struct __sk_buff *skb)
{
    struct key key = {};
    unsigned long long *value = flows.lookup(&key);
    return value ? -1 : 2;
}
int empty(struct __sk_buff *skb)
{
    return -1;
}
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure beside its bound, both as multiples of ``bare``; ``spread``: between the quartiles of the turns.

    ``floor``: what its bare primitives cost in the same run (``floors``).
    """

    what: str
    value: float
    bound: float
    nanos: int
    spread: float
    floor: float

    @property
    def met(self) -> bool:
        return self.value <= self.bound


def make_ruleset(number: int, *, domains: bool) -> RulesetEntry:
    return RulesetEntry(
        hash=f"{number:032x}",
        any=0,
        deny=DENY_ADMIN,
        passes=0,
        default=Default.DENY,
        isolated=True,
        dns_implicit=True,
        has_cidrs=True,
        has_identities=True,
        has_domains=domains,
        counters=0,
        admin_rules=192,
        network_policy_rules=256,
        baseline_rules=64,
    )


def make_tables() -> Tables:
    """Full budgets: 200 rulesets of 512 rules, 5,000 identities, 10,000 prefixes; no rule has port 81."""
    tables = Tables()
    tables.endpoints[IFINDEX] = EndpointEntry(IFINDEX, 3, PLAIN, INWARD, address4=POD4, address6=POD6)
    for handle in range(1, RULESETS + 1):
        tables.rulesets[handle] = make_ruleset(handle, domains=handle == NAMED)
        for klass in range(1, CLASSES):
            tables.peers[(handle, klass)] = ALL_RULES >> klass
            tables.peers[(handle, CLASS_CIDR | klass)] = ALL_RULES >> klass
            tables.ports[(handle, klass)] = ALL_RULES & ~DENY_ADMIN
        tables.peers[(handle, CLASS_DOMAIN | 7)] = ALL_RULES
        tables.ports[(handle, CLASSES)] = 0
    for number in range(IDENTITIES):
        tables.ipcache[f"10.{number >> 8}.{number & 255}.9"] = 256 + number
        tables.classes[256 + number] = number % (CLASSES - 1) + 1
    for number in range(PREFIXES):
        tables.cidrs[f"100.{64 + (number >> 8)}.{number & 255}.0/24"] = CidrEntry(
            CLASS_CIDR | number % (CLASSES - 1) + 1
        )
    tables.cidrs["192.0.2.0/24"] = CidrEntry(CLASS_CIDR | 5)
    tables.cidrs["2001:db8::/32"] = CidrEntry(CLASS_CIDR | 5)
    for port in range(65536):
        tables.port_classes[port] = port % (CLASSES - 1) + 1
    tables.port_classes[81] = CLASSES
    tables.domains["www.example.com"] = 7
    tables.resolvers[(RESOLVER, 53)] = 1
    tables.config = replace(tables.config, events_per_second=1 << 30)
    return tables


def load_bare() -> tuple[int, int]:
    """Descriptors of ``bare`` and ``empty``; the bare map has its key."""
    module = loader.Module(_BARE, ["-O2"])
    fd, _ = module.list_maps()["flows"]
    bpf.BpfMap.from_fd(fd, "flows").put(bytes(40), bytes(8))
    return module.load_program("bare"), module.load_program("empty")


def tcp_frame(source: str, destination: str, port: int, flags: int) -> bytes:
    return packets.ip(source, destination, packets.TCP, packets.tcp(5000, port, flags, payload=bytes(20)))


def tcp_reply(source: str, destination: str) -> bytes:
    return packets.ip(source, destination, packets.TCP, packets.tcp(80, 5000, packets.ACK))


def prepare(kernel: Kernel, tables: Tables) -> dict[str, Callable[[], int]]:
    """What to measure -> one turn of it, in nanoseconds a run."""
    kernel.fill(tables)
    frames = {
        "v4": tcp_frame(POD4, PEER4, 80, packets.ACK),
        "v6": tcp_frame(POD6, PEER6, 80, packets.ACK),
        "denied": tcp_frame(POD4, DENIED4, 81, packets.SYN),
    }
    replies = {"v4": tcp_reply(PEER4, POD4), "v6": tcp_reply(PEER6, POD6)}
    for family, reply in replies.items():
        if not kernel.from_pod(frames[family]).passed or not kernel.to_pod(reply).passed:
            raise RuntimeError(f"the established flow {family} does not pass")
    asked = packets.ip(POD4, RESOLVER, packets.UDP, packets.udp(4000, 53, query("www.example.com")))
    kernel.from_pod(asked)
    told = packets.ip(
        RESOLVER,
        POD4,
        packets.UDP,
        packets.udp(53, 4000, answer("www.example.com", *(f"198.51.100.{n}" for n in range(1, 5)))),
    )
    if not kernel.to_pod(told).passed or not kernel.names_of("198.51.100.4"):
        raise RuntimeError("the answer was not learned")
    kernel.add_name(DENIED4, 7, boot_seconds() + 3600)
    named = kernel.maps["endpoints"]
    slot = IFINDEX.to_bytes(4, "little")
    plain_endpoint = named.get(slot) or b""

    def denied(handle: int) -> Callable[[], int]:
        endpoint = plain_endpoint[:8] + handle.to_bytes(4, "little") + plain_endpoint[12:]

        def turn() -> int:
            named.put(slot, endpoint)
            kernel.drain()
            kernel.time_program(
                "from_pod", frames["denied"], ingress=IFINDEX, repeat=WARM
            )  # draining cooled the caches
            nanos = kernel.time_program("from_pod", frames["denied"], ingress=IFINDEX, repeat=TOLD)
            named.put(slot, plain_endpoint)
            return nanos

        return turn

    def answered() -> int:
        """An answered question soon counts no more, so each turn asks again; what nobody asked would cost half."""
        kernel.from_pod(asked)
        unasked = kernel.count_reason(Direction.INGRESS, Reason.LEARN_UNASKED)
        nanos = kernel.time_program("to_pod", told, repeat=REPEAT // 4)
        if kernel.count_reason(Direction.INGRESS, Reason.LEARN_UNASKED) != unasked:
            raise RuntimeError("answers that nobody had asked for were timed")
        return nanos

    return {
        "established_v4": lambda: kernel.time_program("from_pod", frames["v4"], ingress=IFINDEX, repeat=REPEAT),
        "established_v6": lambda: kernel.time_program("from_pod", frames["v6"], ingress=IFINDEX, repeat=REPEAT),
        "denial": denied(PLAIN),
        "denial_names": denied(NAMED),
        "dns_answer_4_known": answered,
    }


BOUNDS = {
    "established_v4": 1.3,
    "established_v6": 1.5,
    "denial": 3.4,
    "denial_names": 4.6,
    "dns_answer_4_known": 7.0,
}


def measure(turns: int) -> tuple[list[Row], dict[str, float]]:
    """All rows, and the nanoseconds of ``bare`` and ``empty``."""
    bare, empty = load_bare()
    frame = tcp_frame(POD4, PEER4, 80, packets.ACK)
    kernel = Kernel(Path("/sys/fs/bpf"), SIZES)
    try:
        with floors(frame) as bare_primitives:
            todo = {
                "bare": lambda: bpf.run_program(bare, frame, repeat=REPEAT).nanos,
                "empty": lambda: bpf.run_program(empty, frame, repeat=REPEAT).nanos,
                **bare_primitives,
                **prepare(kernel, make_tables()),
            }
            found: dict[str, list[int]] = {name: [] for name in todo}
            for _ in range(turns):
                for name, turn in todo.items():
                    found[name].append(turn())
    finally:
        kernel.close()
    base = statistics.median(found["bare"])
    rows = []
    for name, bound in BOUNDS.items():
        quarters = statistics.quantiles(found[name], n=4)
        middle, floor = statistics.median(found[name]), statistics.median(found[FLOORS[name]])
        spread = round((quarters[2] - quarters[0]) / base, 2)
        rows.append(Row(name, round(middle / base, 2), bound, int(middle), spread, round(floor / base, 2)))
    return rows, {name: statistics.median(found[name]) for name in ("bare", "empty")}


def main() -> int:
    """Print the rows as JSON; exit 1 if a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=15)
    rows, base = measure(parser.parse_args().turns)
    print(json.dumps({"nanos": base, "rows": [{**asdict_row(row), "met": row.met} for row in rows]}, indent=1))
    return 0 if all(row.met for row in rows) else 1


def asdict_row(row: Row) -> dict[str, object]:
    return {name: getattr(row, name) for name in ("what", "value", "bound", "nanos", "spread", "floor")}


if __name__ == "__main__":
    sys.exit(main())
