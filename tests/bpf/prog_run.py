"""The programs on packets of our choosing: load once, fill maps through the codec, BPF_PROG_TEST_RUN.

The interface is loopback (ifindex 1) of the test's own network namespace; its endpoint is the pod under test. State
that one test leaves (flows, names, counters) is cleared before the next.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from schemas.terms import Direction, Reason
from services.common import bpf
from services.nodeagent import mapcodec
from services.nodeagent.datapath import Datapath
from services.nodeagent.events import VerdictRecord, decode_verdict
from services.nodeagent.loader import Loaded, load
from services.nodeagent.moves import move_flows
from services.nodeagent.regions import Region, allot_regions, plan_moves
from services.nodeagent.rowmap import open_table
from services.nodeagent.tables import Tables

IFINDEX = 1
PASS, DROP = -1, 2
SIZES = {
    "ENDPOINT_SLOTS": 64,
    "RULESETS": 256,
    "FLOWS": 1024,
    "FRAGMENTS": 1024,
    "SEEN": 4096,
    "PEER_ROWS": 32,
    "PORT_ROWS": 16,
    "RULE_COUNTERS": 4096,
    "VERDICT_PAGES": 64,
    "RESOLUTION_PAGES": 256,
    "HANDOVER_PAGES": 256,
}
REASONS = 128
_AGENT_MAPS = (
    *("endpoints", "endpoints_far", "endpoint_addresses", "rulesets", "ipcache", "cidrs4", "cidrs6", "classes"),
    *("peers", "port_classes", "ports", "frontends", "mixed", "domains", "resolvers", "guard"),
    *("config", "credits"),
)
_PROGRAM_MAPS = ("resolutions", "seen", "queries", "flows", "places", "fragments", "quotas", "reached")
_counter = itertools.count()


def boot_seconds() -> int:
    return int(time.clock_gettime(time.CLOCK_BOOTTIME))


@dataclass(frozen=True, slots=True)
class Result:
    """One packet: whether it passed, and the verdict event it made, if any."""

    passed: bool
    event: VerdictRecord | None

    @property
    def reason(self) -> Reason:
        assert self.event is not None, "no verdict event"
        return Reason(self.event.reason)


class Kernel:
    """Loaded programs and their maps."""

    def __init__(self, root: Path, sizes: Mapping[str, int] = SIZES) -> None:
        self.root = root / f"yett-test-{Path('/proc/self').readlink().name}-{next(_counter)}"
        self.loaded: Loaded = load(self.root, sizes)
        self.maps = {
            name: open_table(self.loaded.maps, name)
            for name in self.loaded.maps
            if name not in ("verdicts", "resolution_events", "handovers")
        }
        self.verdicts = bpf.RingBuffer(self.loaded.maps["verdicts"])
        self.resolutions = bpf.RingBuffer(self.loaded.maps["resolution_events"])
        self.handovers = bpf.RingBuffer(self.loaded.maps["handovers"])
        self._programs = {name: bpf.open_object(path) for name, path in self.loaded.programs.items()}
        self._wanted: dict[str, dict[bytes, bytes]] = {}
        self.regions: dict[int, Region] = {}

    def close(self) -> None:
        for one in self.maps.values():
            one.close()
        self.verdicts.close()
        self.resolutions.close()
        self.handovers.close()
        shutil.rmtree(self.root)

    # -- state

    def fill(self, tables: Tables) -> None:
        """Make the agent's maps exactly these tables; flows are judged again."""
        regions = allot_regions(tables.endpoints, self.regions, self.maps["places"].info.max_entries)
        for step in plan_moves(self.regions, regions):
            self.put_regions(step)
            self.move_flows()
        self.regions = regions
        slots = self.maps["endpoints"].info.max_entries
        wanted = mapcodec.encode_tables(tables, endpoint_slots=slots, regions=regions)
        for name, entries in wanted.items():
            before = self._wanted.get(name, {})
            gone = [key for key in before if key not in entries]
            if gone:
                self.maps[name].delete_many(gone)
            changed = {key: value for key, value in entries.items() if before.get(key) != value}
            if changed:
                self.maps[name].put_many(changed)
        self._wanted = wanted
        self.bump()

    def put_regions(self, regions: Mapping[int, Region]) -> None:
        """Endpoints as they are, with these regions."""
        self.regions = {**self.regions, **regions}
        for name in ("endpoints", "endpoints_far"):
            for key, value in self._wanted.get(name, {}).items():
                ifindex = mapcodec.decode_region(value)[0]
                self._wanted[name][key] = mapcodec.replace_region(value, self.regions[ifindex])
            self.maps[name].put_many(self._wanted.get(name, {}))

    def move_flows(self) -> None:
        """Flows go where regions are now."""
        move_flows(self.loaded.programs["move_flow"], self.maps["places"].info.max_entries)

    def bump(self) -> None:
        """A new epoch."""
        epoch = self.maps["epoch"]
        now = int.from_bytes(epoch.get(bytes(4)) or bytes(8), "little")
        epoch.put(bytes(4), (now + 1).to_bytes(8, "little"))

    def forget_flows(self) -> None:
        """Flows alone: the next packet of any is a new one."""
        flows = self.maps["flows"]
        flows.delete_many(flows.keys())

    def forget(self) -> None:
        """Flows, names, queries, counters, events: as at first start."""
        for name in (*_PROGRAM_MAPS, "reasons", "rule_counters", "credits"):
            one = self.maps[name]
            one.delete_many(one.keys())
        self.drain()

    def add_name(self, address: str, row: int, expires: int, *, scope: int = mapcodec.SCOPE_LEARNED) -> None:
        """A live (or expired) name of an address, in the first free slot."""
        key = mapcodec.encode_resolution_key(address, 0, scope)
        value = self.maps["resolutions"].get(key)
        page = mapcodec.decode_names(value) if value else mapcodec.NamesPage(((0, 0),) * 8, (0,) * 8, more=False)
        slots = list(page.slots)
        slots[slots.index((0, 0))] = (row, expires)
        self.maps["resolutions"].put(
            key, mapcodec.encode_names(mapcodec.NamesPage(tuple(slots), page.owners, page.more))
        )

    # -- packets

    def from_pod(self, frame: bytes, *, ifindex: int = IFINDEX, gso_segs: int = 0) -> Result:
        """What the pod behind ``ifindex``, an interface of this namespace, sends. ``gso_segs``: of a super-packet."""
        return self._run(
            "from_pod", frame, bpf.make_context(ifindex=ifindex, ingress_ifindex=ifindex, gso_segs=gso_segs)
        )

    def to_pod(self, frame: bytes, *, ingress: int = 77, ifindex: int = IFINDEX, gso_segs: int = 0) -> Result:
        """What the pod is sent. ``ingress``: 0 generated on this node, IFINDEX: hairpin, else some other interface."""
        return self._run("to_pod", frame, bpf.make_context(ifindex=ifindex, ingress_ifindex=ingress, gso_segs=gso_segs))

    def _run(self, program: str, frame: bytes, context: bytes) -> Result:
        self.verdicts.consume(1 << 20)
        done = bpf.PreparedRun(self._programs[program], frame, context, name=program)()
        if done.action not in (PASS, DROP):
            raise AssertionError(f"{program} returned {done.action}")
        events = [decode_verdict(record) for record in self.verdicts.consume(16)]
        return Result(done.action == PASS, events[-1] if events else None)

    def time_program(self, program: str, frame: bytes, *, ingress: int = 77, repeat: int = 100_000) -> int:
        """Nanoseconds a run, mean of ``repeat``."""
        done = bpf.run_program(self._programs[program], frame, ingress_ifindex=ingress, repeat=repeat, name=program)
        return done.nanos

    def drain(self) -> list[bytes]:
        """Resolution events that wait; verdict events and pieces are dropped."""
        self.verdicts.consume(1 << 20)
        self.handovers.consume(1 << 20)
        return self.resolutions.consume(1 << 20)

    def count_reason(self, direction: Direction, reason: Reason) -> int:
        """Packets counted under a reason."""
        key = (int(direction) * REASONS + int(reason)).to_bytes(4, "little")
        value = self.maps["reasons"].get(key)
        return int.from_bytes((value or bytes(8))[:8], "little")

    def names_of(self, address: str, scope: int = mapcodec.SCOPE_LEARNED) -> dict[int, int]:
        """domain row -> expiry, over all pages."""
        found: dict[int, int] = {}
        for page in range(mapcodec.NAME_PAGES):
            value = self.maps["resolutions"].get(mapcodec.encode_resolution_key(address, page, scope))
            if value is None:
                break
            found.update((row, expiry) for row, expiry in mapcodec.decode_names(value).slots if row)
        return found


def all_bits(bits: Iterable[int]) -> int:
    """A rule mask."""
    return sum(1 << bit for bit in set(bits))


@contextlib.contextmanager
def open_datapath(kernel: Kernel) -> Iterator[Datapath]:
    """An agent's, on the test's maps."""
    datapath = Datapath(kernel.loaded.maps)
    datapath.open()
    yield datapath
    datapath.close()
