"""The maps' owner on real maps: writes differences only, stops at a safe prefix, knows what is there."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from schemas.policy import (
    AnyPeer,
    CidrPeer,
    Config,
    DomainPeer,
    IdentityRow,
    PortRange,
    Ruleset,
    RulesetRule,
    RuleSource,
)
from schemas.terms import Action, Default, Direction, IdentityId
from services.common.bpf import BpfMap
from services.nodeagent import loader, mapcodec
from services.nodeagent.datapath import Datapath, boottime_seconds
from services.nodeagent.enforcer import Enforcer, Place
from services.nodeagent.links import PodLink, Snapshot
from services.nodeagent.memory import Memory, recall
from services.nodeagent.names import Withdrawn
from services.nodeagent.numbers import Capacities, make_spaces
from services.nodeagent.plan import ORDER
from services.nodeagent.policystate import PolicyState
from services.nodeagent.regions import allot_regions
from services.nodeagent.wanted import Wanted
from tests.nodeagent.worlds import BINDINGS, EXTRA_ADDRESSES, NODE, make_state, with_rulesets

pytestmark = pytest.mark.kernel

SIZES = {"PREFIXES": 64, "RESOLUTIONS": 64, "FLOWS": 1024}
SOURCES = (RuleSource(kind="NetworkPolicy", namespace="red", name="p", rule="egress[0]"),)


@pytest.fixture(scope="module")
def pins(request) -> Iterator[dict[str, Path]]:
    root = Path(f"/sys/fs/bpf/yett-test-{id(request):x}")
    try:
        yield dict(loader.load(root, SIZES).maps)
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def datapath(pins) -> Iterator[Datapath]:
    """Every map empty."""
    opened = open_datapath(pins)
    for name in (*ORDER, "resolutions", "credits"):
        opened._maps[name].delete_many(opened._maps[name].keys())
    opened.close()
    opened = open_datapath(pins)
    yield opened
    opened.close()


def open_datapath(pins: dict[str, Path]) -> Datapath:
    opened = Datapath(pins)
    opened.open()
    return opened


def make_ruleset(*peers) -> Ruleset:
    rule = RulesetRule(
        action=Action.ACCEPT, peers=peers, ports=(PortRange(protocol=6, first=443, last=443),), sources=SOURCES
    )
    return Ruleset(direction=Direction.EGRESS, default=Default.DENY, network_policy=(rule,), isolated=True)


def state_with(*peers, number: int = 1, config: Config | None = None) -> PolicyState:
    ingress = Ruleset(direction=Direction.INGRESS, default=Default.DENY)
    facts = make_state(config=config or Config(), identities={IdentityId(256): IdentityRow(id=IdentityId(256))})
    return with_rulesets(facts, make_ruleset(*peers), ingress, number=number)


def enforce(datapath: Datapath, wanted: Wanted, state: PolicyState) -> None:
    wanted.prepare(state, None, BINDINGS, EXTRA_ADDRESSES)
    datapath.apply(datapath.plan(wanted.tables, None))
    wanted.finish(state)
    datapath.apply(datapath.plan(wanted.tables, None))
    wanted.settle()


def read_epoch(datapath: Datapath) -> int:
    return int.from_bytes(datapath._maps["epoch"].get(bytes(4)) or b"", "little")


def test_what_is_wanted_is_present(datapath, pins) -> None:
    """After a plan the maps hold exactly the encoded tables, as another process reads them."""
    wanted = Wanted(NODE, make_spaces())
    enforce(datapath, wanted, state_with(CidrPeer(cidr="192.0.2.0/24"), DomainPeer(pattern="*.example.com")))
    regions = allot_regions(wanted.tables.endpoints, {}, SIZES["FLOWS"])
    encoded = mapcodec.encode_tables(wanted.tables, endpoint_slots=datapath.endpoint_slots, regions=regions)
    again = open_datapath(pins)
    assert {name: again._present[name] for name in ORDER} == {name: encoded.get(name, {}) for name in ORDER}
    again.close()


def test_a_restart_writes_nothing(datapath, pins) -> None:
    """An agent that comes back with its memory finds nothing to do, and flushes nothing."""
    wanted = Wanted(NODE, make_spaces())
    state = state_with(CidrPeer(cidr="192.0.2.0/24"), DomainPeer(pattern="*.example.com"))
    enforce(datapath, wanted, state)
    epoch = read_epoch(datapath)
    again = open_datapath(pins)
    resumed = Wanted(NODE, wanted.spaces)
    resumed.resume(wanted.rulesets(), {})
    enforce(again, resumed, state)
    assert again.written == 0
    assert read_epoch(again) == epoch
    again.close()


def test_touched_entries_are_enough(datapath, pins) -> None:
    """A plan over what was touched leads where a plan over everything does."""
    wanted = Wanted(NODE, make_spaces())
    enforce(datapath, wanted, state_with(CidrPeer(cidr="192.0.2.0/24"), DomainPeer(pattern="*.example.com")))
    wanted.take_touched()
    state = state_with(CidrPeer(cidr="198.51.100.0/24"), AnyPeer(), DomainPeer(pattern="a.example.com"), number=2)
    wanted.prepare(state, {}, BINDINGS, EXTRA_ADDRESSES)
    datapath.apply(datapath.plan(wanted.tables, wanted.take_touched()))
    wanted.finish(state)
    datapath.apply(datapath.plan(wanted.tables, wanted.take_touched()))
    assert datapath.plan(wanted.tables, None) == []
    assert datapath.present_revision() == 2


def test_amnesia_gives_no_number_a_second_meaning(datapath, pins, tmp_path) -> None:
    """Without its memory an agent recognises rulesets and patterns, and numbers everything else above what is there."""
    wanted = Wanted(NODE, make_spaces())
    state = state_with(CidrPeer(cidr="192.0.2.0/24"), DomainPeer(pattern="*.example.com"), DomainPeer(pattern="b.org"))
    enforce(datapath, wanted, state)
    again = open_datapath(pins)
    found = recall(None, again, layout="x", capacities=Capacities())
    assert isinstance(found, Memory)
    assert found.spaces.handles.given == wanted.spaces.handles.given
    assert found.spaces.domain_rows.given == wanted.spaces.domain_rows.given
    taken = set(wanted.spaces.cidr_classes.given.values())
    assert found.spaces.cidr_classes.take("anything") not in taken
    again.close()


async def nothing(_tables, _state) -> None:
    """No names to wait for."""


def test_a_full_map_keeps_the_last_good_state(datapath, tmp_path) -> None:
    """A refused write names the map, changes no endpoint, is taken back, and a smaller state is enforced after it."""
    enforcer = Enforcer(Place(NODE, "layout", tmp_path), datapath, Capacities())
    snapshot = Snapshot(tuple(PodLink(one.link) for one in BINDINGS.values()), EXTRA_ADDRESSES)

    def enforce_state(state: PolicyState) -> bool:
        return asyncio.run(enforcer.enforce(state, None, snapshot, nothing))

    assert enforce_state(local_state(CidrPeer(cidr="192.0.2.0/24")))
    before = {name: dict(entries) for name, entries in datapath._present.items()}
    too_many = [CidrPeer(cidr=f"10.0.{n}.0/24") for n in range(100)]
    assert not enforce_state(local_state(*too_many, number=2))
    assert enforcer.failure is not None
    assert enforcer.failure.object == "map cidrs4"
    assert enforcer.state.number == 1
    assert {name: dict(entries) for name, entries in datapath._present.items()} == before
    assert enforce_state(local_state(CidrPeer(cidr="198.51.100.0/24"), number=3))
    assert enforcer.failure is None
    assert datapath.present_revision() == 3


def local_state(*peers, number: int = 1) -> PolicyState:
    """``state_with``, and the local pod has the address that the host routes to its interface."""
    state = state_with(*peers, number=number)
    (row,) = state.endpoints.values()
    address = BINDINGS[7].link.addresses[0]
    endpoints = {("red", "local"): msgspec.structs.replace(row, addresses=(address,))}
    return make_state(state, number=number, endpoints=endpoints)


def test_names_from_the_bus_have_a_scope_of_their_own(datapath, pins) -> None:
    """Shared names are written page by page, survive a restart, and never touch what the learner wrote."""
    learned_key = mapcodec.encode_resolution_key("192.0.2.1", scope=mapcodec.SCOPE_LEARNED)
    learned = mapcodec.encode_names(mapcodec.NamesPage(((5, 99),) + ((0, 0),) * 7, (1,) * 8, False))
    datapath._maps["resolutions"].put(learned_key, learned)
    expires = boottime_seconds() + 100
    assert all(datapath.learn("192.0.2.1", row, expires) for row in range(1, 11))
    again = open_datapath(pins)
    assert again.count_names() == 10
    pages = [again._maps["resolutions"].get(mapcodec.encode_resolution_key("192.0.2.1", page)) for page in (0, 1, 2)]
    assert [mapcodec.decode_names(page).more for page in pages[:2] if page] == [True, False]
    assert pages[2] is None
    assert again._maps["resolutions"].get(learned_key) == learned
    again.close()


def test_shared_names_leave_room_for_local_ones(datapath) -> None:
    """Other nodes fill at most half of the map; beyond that a name is refused and counted, and the status is told."""
    expires = boottime_seconds() + 100
    taught = [datapath.learn(f"198.51.100.{n}", 1, expires) for n in range(64)]
    assert taught.count(True) == 32
    assert datapath.counters["names_full_map"] == 32 and not datapath.full
    datapath.collect()
    assert datapath.full.startswith("32 of 64 entries are what other nodes told")
    datapath.collect()
    assert not datapath.full


def test_expired_names_leave_a_full_shared_half_after_a_minute(datapath, monkeypatch) -> None:
    """They explain denials for an hour where there is room; here they would shut out what others tell for that long."""
    now = boottime_seconds()
    assert all(datapath.learn(f"198.51.100.{n}", 1, now + 100) for n in range(25))
    for later, entries in ((159, 25), (161, 0)):
        monkeypatch.setattr("services.nodeagent.datapath.boottime_seconds", lambda later=later: now + later)
        datapath.collect()
        assert datapath._shared_pages == entries
    assert all(datapath.learn(f"198.51.100.{n}", 1, now + 300) for n in range(20))
    monkeypatch.setattr("services.nodeagent.datapath.boottime_seconds", lambda: now + 400)
    datapath.collect()
    assert datapath._shared_pages == 20, "there is room"


def test_old_names_go_and_are_credited(datapath, monkeypatch) -> None:
    """What expired long ago is removed and credited to the endpoint that had learned it; the live stays."""
    now = boottime_seconds() + 100_000  # of an agent that is up for longer than expired names are kept
    monkeypatch.setattr("services.nodeagent.datapath.boottime_seconds", lambda: now)
    resolutions = datapath._maps["resolutions"]
    old = mapcodec.NamesPage(((5, 1), (6, 2)) + ((0, 0),) * 6, (3,) * 8, False)
    live = mapcodec.NamesPage(((7, now + 60),) + ((0, 0),) * 7, (3,) * 8, False)
    keys = [mapcodec.encode_resolution_key(one, scope=mapcodec.SCOPE_LEARNED) for one in ("192.0.2.1", "192.0.2.2")]
    resolutions.put(keys[0], mapcodec.encode_names(old))
    resolutions.put(keys[1], mapcodec.encode_names(live))
    assert datapath.collect() == {7}
    assert resolutions.get(keys[0]) is None
    assert resolutions.get(keys[1]) is not None
    assert datapath._maps["credits"].get(mapcodec.encode_index(3)) == (2).to_bytes(4, "little")


def test_names_that_live_are_listed_and_those_whose_time_ended_are_counted_once(datapath, monkeypatch) -> None:
    """By who taught them: an answer here, another node, a resolver outside for one pod alone; renewed ones go on."""
    now, resolutions = boottime_seconds(), datapath._maps["resolutions"]
    pages = {
        ("192.0.2.1", mapcodec.SCOPE_LEARNED): ((5, now + 60), (6, now + 600)),
        ("192.0.2.2", mapcodec.SCOPE_SHARED): ((5, now + 60),),
        ("192.0.2.3", 3): ((5, now + 60),),
    }
    for (address, scope), slots in pages.items():
        page = mapcodec.NamesPage((slots + ((0, 0),) * 8)[:8], (3,) * 8, False)
        resolutions.put(mapcodec.encode_resolution_key(address, 0, scope), mapcodec.encode_names(page))
    datapath.collect()
    assert {(one.endpoint, one.address, one.row) for one in datapath.taught} == {
        *((3, "192.0.2.1", 5), (3, "192.0.2.1", 6), (3, "192.0.2.3", 5)),
    }
    assert datapath.taught[0].expires == now + 600
    assert datapath.read_occupancy()["resolutions"] == (3, resolutions.info.max_entries)
    for later in (61, 75):
        monkeypatch.setattr("services.nodeagent.datapath.boottime_seconds", lambda later=later: now + later)
        datapath.collect()
    assert [datapath.counters[f"names_expired_{one}"] for one in ("learned", "shared", "outside")] == [1, 1, 1]
    assert [(one.address, one.row) for one in datapath.taught] == [("192.0.2.1", 6)]


def test_a_withdrawn_name_leaves_every_scope_and_its_neighbours_stay(datapath, pins) -> None:
    """Of two rows on one address one goes: from what answers taught, to all and to one pod, and from what was shared;
    the learned slot is credited to the endpoint that had it."""
    expires = boottime_seconds() + 100
    resolutions = datapath._maps["resolutions"]
    scopes = (mapcodec.SCOPE_LEARNED, 42)
    page = mapcodec.NamesPage(((5, expires), (6, expires)) + ((0, 0),) * 6, (3, 4) + (0,) * 6, False)
    keys = [mapcodec.encode_resolution_key("192.0.2.1", scope=scope) for scope in scopes]
    for key in keys:
        resolutions.put(key, mapcodec.encode_names(page))
    datapath.learn("192.0.2.1", 5, expires)
    datapath.learn("192.0.2.1", 6, expires)
    datapath.learn("192.0.2.2", 5, expires)
    pair = frozenset({("192.0.2.1", 5)})
    for _ in range(2):
        datapath.unlearn(Withdrawn(pair, pair))
    left = mapcodec.NamesPage(((0, 0), (6, expires)) + ((0, 0),) * 6, (0, 4) + (0,) * 6, False)
    assert [mapcodec.decode_names(resolutions.get(key)) for key in keys] == [left, left]
    assert datapath._maps["credits"].get(mapcodec.encode_index(3)) == (2).to_bytes(4, "little")
    again = open_datapath(pins)
    shared = {address: [slot for slot in slots if slot[0]] for address, slots in again._shared.items()}
    assert shared == {"192.0.2.1": [(6, expires)], "192.0.2.2": [(5, expires)]}
    again.close()
    datapath.unlearn_own()
    assert not any(row for key in keys for row, _ in mapcodec.decode_names(resolutions.get(key)).slots)
    assert datapath.count_names() == 2


def test_what_was_told_is_news_again(datapath, pins) -> None:
    """No entry of ``seen`` is left."""
    with BpfMap(pins["seen"]) as seen:
        key = mapcodec.encode_index(3)
        seen.put(key, b"\1" * seen.info.value_bytes)
        assert dict(seen.items())
        datapath.tell_again()
        assert not any(any(value) for _, value in seen.items())


def test_an_address_that_becomes_a_pods_is_forgotten(datapath) -> None:
    """A name's address that turns out to be a pod's has no name from the moment it is known."""
    expires = boottime_seconds() + 100
    datapath.learn("10.1.2.3", 1, expires)
    key = mapcodec.encode_resolution_key("10.1.2.3", scope=mapcodec.SCOPE_LEARNED)
    page = mapcodec.NamesPage(((5, expires),) + ((0, 0),) * 7, (3,) * 8, False)
    datapath._maps["resolutions"].put(key, mapcodec.encode_names(page))
    wanted = Wanted(NODE, make_spaces())
    state = state_with(AnyPeer())
    wanted.prepare(state, None, BINDINGS, EXTRA_ADDRESSES)
    wanted.tables.ipcache["10.1.2.3"] = 256
    datapath.apply(datapath.plan(wanted.tables, None))
    assert datapath._maps["resolutions"].keys() == []
    assert datapath.count_names() == 0
