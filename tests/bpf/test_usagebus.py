"""The keeper of usage over real maps: read, kept on disk, taken up again by the next agent and by the next layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from schemas.policy import Ruleset
from schemas.terms import Direction, NodeName
from schemas.usage import PeerKind, RuleCount
from services.nodeagent.enforcer import Enforcer
from services.nodeagent.policystate import PolicyState
from services.nodeagent.reached import Reached
from services.nodeagent.usage import Owner, Watched
from services.nodeagent.usagebus import UsageBus, UsageFile
from services.nodeagent.verdicts import Storyteller
from tests.bpf import packets
from tests.bpf.packets import SYN, TCP, tcp
from tests.bpf.prog_run import SIZES, Kernel
from tests.bpf.worlds import EGRESS, PEER4, POD4, POD_ID, add_cidr, make_tables
from tests.nodeagent.test_usage import make_ruleset

pytestmark = pytest.mark.kernel
FIRST = 192
"""The counter of the first NetworkPolicy rule in these tables, whose Admin tier has all its room."""
NODE = NodeName("node-a")


class Enforced:
    """What the keeper asks the enforcer for: one pod, one ruleset."""

    state = PolicyState()

    def __init__(self, uid: str = "u1", ruleset: Ruleset | None = None) -> None:
        self._uid, self._ruleset = uid, ruleset or make_ruleset("aa")

    def watched(self) -> list[Watched]:
        return [Watched(FIRST, self._ruleset)]

    def owners(self) -> dict[int, Owner]:
        return {POD_ID: Owner("shop", "web", self._uid)}

    def endpoint_ids(self) -> dict[str, int]:
        return {self._uid: POD_ID}

    def patterns_by_row(self) -> dict[int, str]:
        return {}


def as_enforcer(one: Enforced) -> Enforcer:
    return cast(Enforcer, one)


@pytest.fixture(scope="module")
def kernels(loaded_kernel: Kernel) -> Iterator[tuple[Kernel, Kernel]]:
    """Two layouts side by side."""
    other = Kernel(Path("/sys/fs/bpf"), SIZES | {"RULE_COUNTERS": 8192})
    yield loaded_kernel, other
    other.close()


@pytest.fixture
def kernel(kernels: tuple[Kernel, Kernel]) -> Kernel:
    """Both empty, with one pod and one rule; the first of them."""
    for one in kernels:
        one.forget()
        tables = make_tables()
        add_cidr(tables, f"{PEER4}/32", 5, EGRESS, 1 << FIRST)
        one.fill(tables)
    return kernels[0]


def open_reached(kernel: Kernel) -> Reached:
    return Reached(kernel.loaded.maps, SIZES["ENDPOINT_SLOTS"])


def open_bus(kernel: Kernel, folder: Path, *, former: Kernel | None = None, uid: str = "u1") -> UsageBus:
    """As an agent starts: its memory first, then its first change."""
    bus = UsageBus(NODE, folder, open_reached(kernel), kernel.loaded.layout)
    bus.resume(as_enforcer(Enforced(uid)))
    bus.begin(open_reached(former) if former else None)
    bus.follow(as_enforcer(Enforced(uid)), Storyteller(NODE))
    return bus


def connect(kernel: Kernel, *ports: int) -> None:
    for port in ports:
        assert kernel.from_pod(packets.ip(POD4, PEER4, TCP, tcp(40000, port, SYN))).passed


def kept(folder: Path) -> tuple[RuleCount, dict[int, int]]:
    """The rule, and the flows of the pod by port, as they are on disk."""
    totals = UsageFile(folder).read()
    (rule,), (pod,) = totals.rules, totals.pods
    assert all((one.kind, one.peer) == (PeerKind.ADDRESS, PEER4) for one in pod.contacts)
    return rule, {one.port: one.flows for one in pod.contacts if one.direction is Direction.EGRESS}


def test_what_the_kernel_counted_is_on_disk_after_a_reading(kernel: Kernel, tmp_path: Path) -> None:
    """Rules and contacts of real packets, added up over readings."""
    bus = open_bus(kernel, tmp_path)
    connect(kernel, 80, 81)
    bus.read()
    connect(kernel, 82)
    bus.close()
    rule, ports = kept(tmp_path)
    assert rule.flows == 3 and rule.last > 0 and ports == {80: 1, 81: 1, 82: 1}


def test_a_killed_agents_successor_counts_on(kernel: Kernel, tmp_path: Path) -> None:
    """What was counted while nobody read is found by the next agent, once, and nothing is counted twice."""
    open_bus(kernel, tmp_path)._reached.close()
    connect(kernel, 80)
    again = open_bus(kernel, tmp_path)
    connect(kernel, 81)
    again.close()
    rule, ports = kept(tmp_path)
    assert rule.flows == 2 and ports == {80: 1, 81: 1}


def test_without_its_file_an_agent_counts_nothing_that_was_there(kernel: Kernel, tmp_path: Path) -> None:
    """Numbers whose beginning is not known are nobody's; from then on it counts."""
    connect(kernel, 80)
    bus = open_bus(kernel, tmp_path)
    connect(kernel, 81)
    bus.close()
    assert kept(tmp_path)[0].flows == 1


def test_a_new_layout_takes_up_what_the_old_one_counted_to_the_end(
    kernel: Kernel, kernels: tuple[Kernel, Kernel], tmp_path: Path
) -> None:
    """The old programs count until they are replaced; copied counters are not counted again."""
    other = kernels[1]
    bus = open_bus(kernel, tmp_path)
    connect(kernel, 80)
    bus.close()
    connect(kernel, 81)
    other.maps["rule_counters"].put_many(dict(kernel.maps["rule_counters"].items()))
    upgraded = UsageBus(NODE, tmp_path, open_reached(other), other.loaded.layout)
    upgraded.resume(as_enforcer(Enforced()))
    connect(kernel, 82)
    upgraded.begin(open_reached(kernel))
    upgraded.follow(as_enforcer(Enforced()), Storyteller(NODE))
    connect(other, 83)
    upgraded.close()
    rule, ports = kept(tmp_path)
    assert rule.flows == 4 and ports == {80: 1, 81: 1, 82: 1, 83: 1}


def test_a_number_given_to_another_pod_carries_no_contacts(kernel: Kernel, tmp_path: Path) -> None:
    """What the old pod reached is read under its name before the number means another."""
    bus = open_bus(kernel, tmp_path)
    connect(kernel, 80)
    bus.follow(as_enforcer(Enforced("u2")), Storyteller(NODE))
    connect(kernel, 81)
    bus.close()
    pods = {one.usage.uid: {each.port for each in one.contacts} for one in UsageFile(tmp_path).read().pods}
    assert pods == {"u1": {80}, "u2": {81}}


def test_a_file_that_cannot_be_read_begins_a_new_epoch(tmp_path: Path) -> None:
    """Half a file is none, and is said in the log; the next write makes it whole."""
    (tmp_path / "usage").write_bytes(b"\xff")
    before = UsageFile(tmp_path).read()
    UsageFile(tmp_path).write(before)
    assert before.epoch and UsageFile(tmp_path).read() == before
