"""Many addresses for a name, many names on an address, names that move and vanish, floods of fresh ones."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from schemas.terms import Direction, Reason
from services.nodeagent import mapcodec
from services.nodeagent.datapath import Datapath
from services.nodeagent.expired import KEEP_WHEN_FULL_SECONDS
from services.nodeagent.tables import ConfigEntry, Tables
from tests.bpf import packets
from tests.bpf.messages import address, answer, query
from tests.bpf.prog_run import Kernel, boot_seconds, open_datapath
from tests.bpf.worlds import (
    NETWORK_POLICY,
    POD4,
    POD_ID,
    RESOLVER,
    add_pattern,
    make_tables,
    with_dns,
)

pytestmark = pytest.mark.kernel
NAME, OTHER = "www.example.com", "other.example.com"
ROW, OTHER_ROW, WILD_ROW = 7, 8, 9
WEB, WEB2 = "198.51.100.7", "198.51.100.8"
RULE = 1 << NETWORK_POLICY
PORT = 40000
QUOTA = 4096
FRESH = int(os.environ.get("YETT_FRESH_NAMES", "10000"))


def tables(*, quota: int = QUOTA) -> Tables:
    made = with_dns(make_tables(egress={"isolated": True}, ingress={"isolated": True}))
    for pattern, row in ((NAME, ROW), (OTHER, OTHER_ROW), ("*.wild.example", WILD_ROW)):
        add_pattern(made, pattern, row, RULE)
    made.config = ConfigEntry(names_per_endpoint=quota)
    return made


@pytest.fixture
def dns(kernel: Kernel) -> Kernel:
    kernel.fill(tables())
    return kernel


def resolve(kernel: Kernel, name: str, *addresses: str, ttl: int = 300, pod: str = POD4) -> None:
    """The pod asks, and is told these addresses."""
    asked = packets.ip(pod, RESOLVER, packets.UDP, packets.udp(PORT, 53, query(name)))
    assert kernel.from_pod(asked).passed
    told = answer(name, *(address(one, ttl=ttl) for one in addresses))
    assert kernel.to_pod(packets.ip(RESOLVER, pod, packets.UDP, packets.udp(53, PORT, told))).passed


def connects(kernel: Kernel, to: str, port: int = 50000) -> bool:
    return kernel.from_pod(packets.ip(POD4, to, packets.TCP, packets.tcp(port, 443))).passed


def count_learned(kernel: Kernel) -> int:
    return int.from_bytes((kernel.maps["quotas"].get(POD_ID.to_bytes(4, "little")) or bytes(36))[32:36], "little")


def count_pages(kernel: Kernel) -> int:
    return len(kernel.maps["resolutions"].keys())


def test_a_name_may_have_a_thousand_addresses(dns: Kernel) -> None:
    """A resolver that rotates through 1,000 addresses, 100 an answer: all of them are open at once."""
    many = [f"198.18.{n // 250}.{n % 250 + 1}" for n in range(1000)]
    for at in range(0, 1000, 100):
        resolve(dns, NAME, *many[at : at + 100])
    assert all(set(dns.names_of(one)) == {ROW} for one in many)
    assert count_learned(dns) == count_pages(dns) == 1000
    assert connects(dns, many[0]) and connects(dns, many[-1])


def test_an_address_that_moves_between_names_has_both_until_the_first_runs_out(dns: Kernel) -> None:
    """What the old name opened closes with its time, not before; the new name opens at once."""
    resolve(dns, NAME, WEB, ttl=30)
    resolve(dns, NAME, WEB2, ttl=300)
    resolve(dns, OTHER, WEB, ttl=3600)
    names = dns.names_of(WEB)
    assert set(names) == {ROW, OTHER_ROW} and names[ROW] < names[OTHER_ROW]
    assert set(dns.names_of(WEB2)) == {ROW}


def test_a_pattern_that_is_removed_closes_what_was_learned_under_it(dns: Kernel) -> None:
    """The name stays a fact; the permission is gone at once, and comes back with the pattern."""
    resolve(dns, NAME, WEB)
    assert connects(dns, WEB)
    removed = tables()
    del removed.domains[NAME]
    del removed.peers[next(key for key in removed.peers if key[1] & 0xFFFF == ROW and key[1] >> 31)]
    dns.fill(removed)
    assert not connects(dns, WEB)
    assert set(dns.names_of(WEB)) == {ROW}
    dns.fill(tables())
    assert connects(dns, WEB)


def test_a_more_specific_pattern_takes_over_with_the_next_answer(dns: Kernel) -> None:
    """What was learned under the wildcard stays open under it; the answer after the change is the exact row's."""
    resolve(dns, "a.wild.example", WEB)
    more = tables()
    add_pattern(more, "a.wild.example", 50, RULE)
    dns.fill(more)
    assert set(dns.names_of(WEB)) == {WILD_ROW} and connects(dns, WEB)
    resolve(dns, "a.wild.example", WEB)
    assert set(dns.names_of(WEB)) == {WILD_ROW, 50}


def test_a_flood_of_fresh_subdomains_stops_at_the_quota(dns: Kernel) -> None:
    """10,000 fresh names below an allowed wildcard, each with an address of its own: 4,096 are learned, the rest is
    counted; the map holds no more; the pod's own earlier name and its neighbour's are unharmed."""
    resolve(dns, NAME, WEB)
    neighbour = 1
    dns.add_name(WEB2, OTHER_ROW, boot_seconds() + 600)
    for n in range(FRESH):
        resolve(dns, f"n{n}.wild.example", f"10.{64 + (n >> 16)}.{n >> 8 & 255}.{n & 255}")
    learned = min(FRESH + 1, QUOTA)
    assert count_learned(dns) == learned
    assert count_pages(dns) == learned + neighbour
    refused = dns.count_reason(Direction.INGRESS, Reason.LEARN_QUOTA)
    assert refused == FRESH + 1 - learned
    assert set(dns.names_of(WEB)) == {ROW} and connects(dns, WEB) and connects(dns, WEB2, 50001)


def test_fresh_names_on_one_address_cost_one_slot(dns: Kernel) -> None:
    """Names below one wildcard are one domain row: 2,000 of them on an address are one slot, one of the quota."""
    for n in range(2000):
        resolve(dns, f"n{n}.wild.example", WEB)
    assert set(dns.names_of(WEB)) == {WILD_ROW}
    assert count_pages(dns) == count_learned(dns) == 1


def test_what_the_agent_credits_may_be_learned_anew_without_growth(dns: Kernel) -> None:
    """Ten rounds of a full quota, each collected and credited: never more pages than the quota."""
    dns.fill(tables(quota=200))
    for round_number in range(10):
        for n in range(250):
            resolve(dns, f"r{round_number}n{n}.wild.example", f"10.{round_number}.0.{n + 1}")
        assert count_pages(dns) == 200
        dns.maps["resolutions"].delete_many(dns.maps["resolutions"].keys())
        dns.maps["credits"].put(POD_ID.to_bytes(4, "little"), count_learned(dns).to_bytes(4, "little"))
    assert dns.count_reason(Direction.INGRESS, Reason.LEARN_QUOTA) == 10 * 50


@pytest.fixture
def datapath(dns: Kernel) -> Iterator[Datapath]:
    """The maps' owner beside the programs, as in an agent."""
    with open_datapath(dns) as opened:
        yield opened


def learn_many(kernel: Kernel, count: int) -> list[str]:
    many = [f"198.18.{n // 250}.{n % 250 + 1}" for n in range(count)]
    for at in range(0, count, 100):
        resolve(kernel, NAME, *many[at : at + 100])
    assert count_learned(kernel) == count
    return many


def let_expire(kernel: Kernel, addresses: list[str], *, seconds_ago: int) -> None:
    """The learner's pages of these addresses, each with one name, as they are so long after its time."""
    resolutions, expiry = kernel.maps["resolutions"], boot_seconds() - seconds_ago
    keys = {mapcodec.encode_resolution_key(one, scope=mapcodec.SCOPE_LEARNED) for one in addresses}
    pages = {key: mapcodec.decode_names(value) for key, value in resolutions.items() if key in keys}
    assert pages.keys() == keys
    for key, page in pages.items():
        aged = mapcodec.NamesPage(((ROW, expiry), *page.slots[1:]), page.owners, page.more)
        resolutions.put(key, mapcodec.encode_names(aged))


def test_a_pod_at_its_quota_learns_again_once_its_names_expired(dns: Kernel, datapath: Datapath) -> None:
    """Few of them alive and the map nearly empty: what expired a minute ago makes room, what expired just now still
    explains a denial."""
    many = learn_many(dns, QUOTA)
    resolve(dns, OTHER, WEB)
    assert dns.count_reason(Direction.INGRESS, Reason.LEARN_QUOTA) == 1 and not dns.names_of(WEB)
    let_expire(dns, many[2:], seconds_ago=KEEP_WHEN_FULL_SECONDS + 1)
    let_expire(dns, many[1:2], seconds_ago=1)
    datapath.collect()
    resolve(dns, OTHER, WEB)
    assert set(dns.names_of(WEB)) == {OTHER_ROW} and connects(dns, WEB)
    assert connects(dns, many[0], 50001) and count_pages(dns) == 3
    assert explain(dns, many[1]) is Reason.NAME_EXPIRED and explain(dns, many[2]) is Reason.ISOLATED


@pytest.mark.parametrize("held", [QUOTA // 2, QUOTA // 2 + 1])
def test_with_half_of_its_quota_free_a_pods_expired_names_explain_denials(
    dns: Kernel, datapath: Datapath, held: int
) -> None:
    """An hour long, as before; one name more, and those that expired a minute ago go."""
    many = learn_many(dns, held)
    let_expire(dns, many[:1], seconds_ago=KEEP_WHEN_FULL_SECONDS + 1)
    datapath.collect()
    assert explain(dns, many[0]) is (Reason.NAME_EXPIRED if held <= QUOTA // 2 else Reason.ISOLATED)
    datapath.collect()  # what was credited counts no more
    let_expire(dns, many[1:2], seconds_ago=KEEP_WHEN_FULL_SECONDS + 1)
    datapath.collect()
    assert explain(dns, many[1]) is Reason.NAME_EXPIRED


def explain(kernel: Kernel, to: str) -> Reason:
    result = kernel.from_pod(packets.ip(POD4, to, packets.TCP, packets.tcp(50002, 443)))
    assert not result.passed
    return result.reason


def test_what_was_charged_for_slots_that_are_others_now_is_given_back(dns: Kernel, datapath: Datapath) -> None:
    """Of nine names on an address with room for eight, two take each other's slot, whose time is over, again and again;
    each time is charged. At its quota the pod holds eight, and after a clean-up it is charged for those alone."""
    made, quota = tables(quota=40), 40
    for n in range(9):
        add_pattern(made, f"t{n}.example.com", 20 + n, RULE)
    dns.fill(made)
    datapath.close()
    datapath.open()
    key = mapcodec.encode_resolution_key(WEB, scope=mapcodec.SCOPE_LEARNED)
    for n in range(quota):
        resolve(dns, f"t{n if n < 8 else (n + 1) % 2 * 8}.example.com", WEB)
        page = mapcodec.decode_names(dns.maps["resolutions"].get(key) or b"")
        aged = tuple((row, boot_seconds() - 1 if row else 0) for row, _ in page.slots)
        dns.maps["resolutions"].put(key, mapcodec.encode_names(mapcodec.NamesPage(aged, page.owners, page.more)))
    assert count_learned(dns) == quota and count_pages(dns) == 1
    resolve(dns, NAME, WEB2)
    assert dns.count_reason(Direction.INGRESS, Reason.LEARN_QUOTA) == 1 and not dns.names_of(WEB2)
    datapath.collect()
    resolve(dns, NAME, WEB2)
    assert set(dns.names_of(WEB2)) == {ROW}
    assert count_learned(dns) - count_credited(dns) == 8 + 1


def count_credited(kernel: Kernel) -> int:
    return int.from_bytes(kernel.maps["credits"].get(POD_ID.to_bytes(4, "little")) or b"", "little")
