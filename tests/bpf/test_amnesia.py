"""An agent's memory of numbers is lost, its maps are not: what old answers taught opens nothing under a new name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.nodeagent.datapath import Datapath
from services.nodeagent.mapcodec import SCOPE_LEARNED, SCOPE_SHARED
from services.nodeagent.memory import recall
from services.nodeagent.numbers import Capacities
from tests.bpf import packets
from tests.bpf.packets import ACK, SYN, TCP, tcp
from tests.bpf.prog_run import Kernel, boot_seconds
from tests.bpf.worlds import NETWORK_POLICY, POD4, POD_ID, add_pattern, make_tables

pytestmark = pytest.mark.kernel
OLD, NEW = "old.example.com", "new.example.com"
KEPT, KEPT_ROW = "kept.example.com", 5
OLD_ROW = KEPT_ROW + 1
"""The first above those of the patterns in force: whoever starts above these gives it to the next pattern."""
WEB = "198.51.100.7"
RULE = 1 << NETWORK_POLICY


def fill(kernel: Kernel, **patterns: int) -> None:
    """The pod may use these names, and one more all along."""
    tables = make_tables(egress={"isolated": True}, ingress={"isolated": True})
    tables.endpoints[1] = replace(tables.endpoints[1], scoped_names=True)
    for pattern, row in {KEPT: KEPT_ROW, **patterns}.items():
        add_pattern(tables, pattern, row, RULE)
    kernel.fill(tables)


def number_anew(kernel: Kernel) -> int:
    """The row that an agent without memory gives to a pattern that it has not met."""
    datapath = Datapath(kernel.loaded.maps)
    datapath.open()
    spaces = recall(None, datapath, layout=kernel.loaded.layout, capacities=Capacities()).spaces
    datapath.close()
    assert spaces.domain_rows.find(KEPT) == KEPT_ROW and not spaces.domain_rows.find(OLD)
    return spaces.domain_rows.take(NEW)


def send(kernel: Kernel, flags: int) -> bool:
    return kernel.from_pod(packets.ip(POD4, WEB, TCP, tcp(50000, 443, flags))).passed


@pytest.mark.parametrize("scope", [SCOPE_LEARNED, SCOPE_SHARED, POD_ID])
def test_an_old_names_address_does_not_open_under_a_new_one(kernel: Kernel, scope: int) -> None:
    """The pattern is withdrawn, its row is in no rule any more, and answers of its time are in the map still."""
    kernel.forget()
    fill(kernel, **{OLD: OLD_ROW})
    kernel.add_name(WEB, OLD_ROW, boot_seconds() + 600, scope=scope)
    assert send(kernel, SYN)
    kernel.forget_flows()
    fill(kernel)
    fill(kernel, **{NEW: number_anew(kernel)})
    assert not send(kernel, SYN) and not send(kernel, ACK)


def test_an_old_names_connection_does_not_go_on_under_a_new_one(kernel: Kernel) -> None:
    """No answer is left, but the flow bears the row that admitted it, by which it is judged again."""
    kernel.forget()
    fill(kernel, **{OLD: OLD_ROW})
    kernel.add_name(WEB, OLD_ROW, boot_seconds() + 600)
    assert send(kernel, SYN)
    kernel.maps["resolutions"].delete_many(kernel.maps["resolutions"].keys())
    fill(kernel)
    fill(kernel, **{NEW: number_anew(kernel)})
    assert not send(kernel, ACK)
