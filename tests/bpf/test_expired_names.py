"""Names long expired, a live connection at their address, and the agent's clean-up between its packets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from services.nodeagent import mapcodec
from services.nodeagent.datapath import Datapath
from services.nodeagent.mapcodec import SCOPE_LEARNED, SCOPE_SHARED
from services.nodeagent.tables import ConfigEntry
from tests.bpf import packets
from tests.bpf.packets import ACK, FIN, RST, SYN, TCP, UDP, tcp, udp
from tests.bpf.prog_run import Kernel, boot_seconds, open_datapath
from tests.bpf.worlds import NETWORK_POLICY, POD4, POD_ID, add_pattern, make_tables

pytestmark = pytest.mark.kernel
NAME, ROW = "www.example.com", 7
USED, UNUSED = "198.51.100.7", "198.51.100.8"
HOUR = 3600
SCOPES = (SCOPE_LEARNED, SCOPE_SHARED, POD_ID)
OTHER_ID = POD_ID + 1


@pytest.fixture
def datapath(kernel: Kernel) -> Iterator[Datapath]:
    """The maps' owner beside the programs, as in an agent; the pod may use one name."""
    tables = make_tables(egress={"isolated": True}, ingress={"isolated": True})
    tables.endpoints[1] = replace(tables.endpoints[1], scoped_names=True)
    add_pattern(tables, NAME, ROW, 1 << NETWORK_POLICY)
    tables.config = ConfigEntry(names_per_endpoint=64)
    kernel.forget()
    kernel.fill(tables)
    with open_datapath(kernel) as opened:
        yield opened


def send(kernel: Kernel, to: str, flags: int = ACK, *, port: int = 50000) -> bool:
    return kernel.from_pod(packets.ip(POD4, to, TCP, tcp(port, 443, flags))).passed


def connect(kernel: Kernel, to: str) -> None:
    """A connection that both sides are in."""
    assert send(kernel, to, SYN)
    assert kernel.to_pod(packets.ip(to, POD4, TCP, tcp(443, 50000, SYN | ACK))).passed
    assert send(kernel, to)


def expire(kernel: Kernel, datapath: Datapath, scope: int = SCOPE_LEARNED) -> None:
    """The name's time ended a second ago, and its owner has read the maps anew."""
    resolutions = kernel.maps["resolutions"]
    resolutions.delete_many(resolutions.keys())
    for address in (USED, UNUSED):
        kernel.add_name(address, ROW, boot_seconds() - 1, scope=scope)
    datapath.close()
    datapath.open()


def clean_up(datapath: Datapath, monkeypatch: pytest.MonkeyPatch, *hours: float) -> None:
    """Clean-ups by a clock that is so many hours on; the programs' clock stays."""
    for later in hours:
        now = boot_seconds() + int(later * HOUR)
        monkeypatch.setattr("services.nodeagent.datapath.boottime_seconds", lambda now=now: now)
        datapath.collect()


def count_pages(kernel: Kernel, address: str) -> int:
    wanted = mapcodec.encode_resolution_key(address)[:16]
    return sum(key.startswith(wanted) for key in kernel.maps["resolutions"].keys())  # noqa: SIM118 - no mapping


@pytest.mark.parametrize("scope", SCOPES)
def test_a_connection_outlives_its_name_and_then_its_flow(
    kernel: Kernel, datapath: Datapath, monkeypatch: pytest.MonkeyPatch, scope: int
) -> None:
    """Two and twenty hours after the name's end the flow is evicted: its next packet passes. A SYN never does; the name
    of an address without a connection goes, and admits nothing there any more."""
    kernel.add_name(USED, ROW, boot_seconds() + 60, scope=scope)
    connect(kernel, USED)
    expire(kernel, datapath, scope)
    clean_up(datapath, monkeypatch, 2, 20)
    kernel.forget_flows()
    assert not send(kernel, USED, SYN, port=50001) and not send(kernel, UNUSED)
    assert send(kernel, USED) and count_pages(kernel, UNUSED) == 0


def test_a_name_stays_a_day_at_most(kernel: Kernel, datapath: Datapath, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lives at its address."""
    kernel.add_name(USED, ROW, boot_seconds() + 60)
    connect(kernel, USED)
    expire(kernel, datapath)
    clean_up(datapath, monkeypatch, 23, 24.1)
    assert count_pages(kernel, USED) == 0 and send(kernel, USED), "the flow has the row that admitted it"


@pytest.mark.parametrize("where", ["in the map", "with the pod"])
def test_where_there_is_no_room_a_connection_keeps_no_name(
    kernel: Kernel, datapath: Datapath, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A minute after its end it goes, so that a flood cannot use it up for a day."""
    kernel.add_name(USED, ROW, boot_seconds() + 60)
    connect(kernel, USED)
    expire(kernel, datapath)
    if where == "in the map":
        monkeypatch.setattr("services.nodeagent.datapath.FULL", 0.0)
    else:
        key = mapcodec.encode_resolution_key(USED, scope=SCOPE_LEARNED)
        page = mapcodec.decode_names(kernel.maps["resolutions"].get(key) or b"")
        owned = mapcodec.NamesPage(page.slots, (POD_ID,) * 8, page.more)
        kernel.maps["resolutions"].put(key, mapcodec.encode_names(owned))
        kernel.maps["quotas"].put(mapcodec.encode_index(POD_ID), charge(kernel, 64))
    clean_up(datapath, monkeypatch, 0.02)
    assert count_pages(kernel, USED) == 0


def charge(kernel: Kernel, names: int) -> bytes:
    value = kernel.maps["quotas"].get(mapcodec.encode_index(POD_ID)) or b""
    return value[:32] + names.to_bytes(4, "little") + value[36:]


def test_a_pods_own_names_are_kept_by_its_own_connections_alone(
    kernel: Kernel, datapath: Datapath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a resolver outside told another pod goes, though this one is connected to the address."""
    kernel.add_name(USED, ROW, boot_seconds() + 60)
    connect(kernel, USED)
    expire(kernel, datapath, OTHER_ID)
    clean_up(datapath, monkeypatch, 2)
    assert count_pages(kernel, USED) == 0


@pytest.mark.parametrize("end", [FIN | ACK, RST])
def test_a_connection_that_ended_keeps_no_name(
    kernel: Kernel, datapath: Datapath, monkeypatch: pytest.MonkeyPatch, end: int
) -> None:
    """Its flow's time is over, though its entry and its place are there until another needs them."""
    kernel.add_name(USED, ROW, boot_seconds() + 60)
    connect(kernel, USED)
    assert send(kernel, USED, end)
    expire(kernel, datapath)
    monkeypatch.setattr(
        "services.nodeagent.liveflows.time.clock_gettime_ns", lambda clock: (boot_seconds() + 200) << 30
    )
    clean_up(datapath, monkeypatch, 2)
    assert count_pages(kernel, USED) == 0


def test_datagrams_keep_no_name(kernel: Kernel, datapath: Datapath, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing tells one in the middle of something from a first, so an expired name would admit none of them."""
    kernel.add_name(USED, ROW, boot_seconds() + 60)
    assert kernel.from_pod(packets.ip(POD4, USED, UDP, udp(50000, 443))).passed
    expire(kernel, datapath)
    clean_up(datapath, monkeypatch, 2)
    assert count_pages(kernel, USED) == 0


def test_an_evicted_flow_keeps_its_name_for_an_hour(
    kernel: Kernel, datapath: Datapath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is silent after its flow went has that long for its next packet."""
    kernel.add_name(USED, ROW, boot_seconds() + 60)
    connect(kernel, USED)
    expire(kernel, datapath)
    clean_up(datapath, monkeypatch, 2)
    kernel.forget_flows()
    clean_up(datapath, monkeypatch, 2.1, 2.9)
    assert send(kernel, USED)
    kernel.forget_flows()
    clean_up(datapath, monkeypatch, 3.1)
    assert count_pages(kernel, USED) == 0


def test_an_owner_without_flows_keeps_names_for_an_hour_from_its_start(
    kernel: Kernel, datapath: Datapath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names were carried over from a layout before and flows were not: nobody knows yet what was under way."""
    expire(kernel, datapath)
    monkeypatch.setattr("services.nodeagent.datapath.boottime_seconds", lambda: boot_seconds() + 9 * HOUR)
    fresh = Datapath(kernel.loaded.maps)
    fresh.open()
    clean_up(fresh, monkeypatch, 9, 9.9)
    assert send(kernel, USED)
    kernel.forget_flows()
    clean_up(fresh, monkeypatch, 10.1)
    assert not send(kernel, USED)
    fresh.close()
