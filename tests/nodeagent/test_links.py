"""Interfaces of pods on a node of its own: found, programmed, kept so, let go."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest

from services.common import bpf
from services.demo.netns import open_socket
from services.demo.servers import connects
from services.nodeagent import loader, nft, strict
from services.nodeagent.bootstrap import parse_bootstrap
from services.nodeagent.gate import GROUP, TABLE
from services.nodeagent.links import Links, PodLink, Snapshot
from services.nodeagent.netlink import detach_all
from services.nodeagent.nftwatch import NftWatch
from tests.nodeagent.namespaces import Node, ip, make_node
from tests.nodeagent.test_cniresult import make_file

pytestmark = pytest.mark.e2e

INTERFACES, UPLINKS = ("pod*",), ("podup*",)


@pytest.fixture(scope="module")
def programs() -> Iterator[dict[str, Path]]:
    root = Path(f"/sys/fs/bpf/yett-links-{os.getpid()}")
    try:
        yield dict(loader.load(root, {"FLOWS": 1024}).programs)
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def node() -> Iterator[Node]:
    with make_node(f"yt{os.getpid()}") as made:
        yield made


def enter(node: Node, program: str) -> list[str]:
    """The program in the node's network namespace alone: ``tc -n`` would mount a /sys without our pins."""
    return ["nsenter", f"--net=/run/netns/{node.name}", "--", program]


def list_filters(node: Node, interface: str) -> str:
    found = [
        subprocess.run(
            ["tc", "-n", node.name, "filter", "show", "dev", interface, hook],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        for hook in ("ingress", "egress")
    ]
    return "".join(found)


async def watched(
    programs: dict[str, Path],
    work: Callable[[Links, list[Snapshot]], Awaitable[None]],
    *,
    results: tuple[str, ...] = (),
    resolvers: tuple[str, ...] = (),
) -> list[Snapshot]:
    """Run ``Links`` while ``work`` runs; every snapshot it told."""
    links = Links(INTERFACES, UPLINKS, results=results, resolvers=resolvers)
    told: list[Snapshot] = []

    async def changed(snapshot: Snapshot) -> None:
        told.append(snapshot)

    await links.open(programs)
    running = asyncio.create_task(links.run(changed))
    try:
        await links.looked.wait()
        await work(links, told)
    finally:
        running.cancel()
        await asyncio.wait({running})
        await links.close()
    if not running.cancelled() and running.exception():
        raise running.exception()
    return told


async def until(holds: Callable[[], object], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.002)


def find(told: list[Snapshot], name: str) -> PodLink | None:
    return next((one for one in told[-1].links if one.link.name == name), None) if told else None


def test_what_is_there_is_found_from_the_hosts_side(node, programs) -> None:
    """A pod's interface has the address of the host's route and the gateway of the host's side, and both programs."""
    node.add_pod(11)

    async def work(_links: Links, told: list[Snapshot]) -> None:
        await until(lambda: find(told, "pod11"))

    told = node.run(lambda: watched(programs, work))
    found = find(told, "pod11")
    assert found is not None
    assert found.link.addresses == ("10.66.0.11",)
    assert "fe80::1" in found.link.gateways
    assert found.appeared == 0.0
    shown = list_filters(node, "pod11")
    assert shown.count("handle 0x7e77") == 2
    assert "from_pod" in shown
    assert "to_pod" in shown


def test_the_nodes_own_dns_cache_is_found_by_its_interface(node, programs) -> None:
    """Its addresses are told as they come and go, those of a link alone excepted; a pod's interface is none, whatever
    its name."""

    def change(*arguments: str) -> None:
        ip("-n", node.name, *arguments)

    async def work(_links: Links, told: list[Snapshot]) -> None:
        change("link", "add", "nodelocaldns", "type", "bridge")
        change("link", "set", "nodelocaldns", "up")
        change("addr", "add", "fe80::53/64", "dev", "nodelocaldns", "nodad")
        change("addr", "add", "169.254.20.10/32", "dev", "nodelocaldns")
        await until(lambda: told and told[-1].resolvers == {"169.254.20.10"})
        change("addr", "add", "fd00:20::10/128", "dev", "nodelocaldns", "nodad")
        await until(lambda: told[-1].resolvers == {"169.254.20.10", "fd00:20::10"})
        change("addr", "del", "169.254.20.10/32", "dev", "nodelocaldns")
        await until(lambda: told[-1].resolvers == {"fd00:20::10"})
        change("link", "del", "nodelocaldns")
        await until(lambda: told[-1].resolvers == frozenset())
        node.add_pod(13, interface="pod13")
        change("addr", "add", "169.254.20.10/32", "dev", "pod13")
        await until(lambda: (one := find(told, "pod13")) and "169.254.20.10" in one.link.gateways)
        assert told[-1].resolvers == frozenset()

    node.run(lambda: watched(programs, work, resolvers=("nodelocaldns", "pod13")))


def test_a_bridges_port_has_the_addresses_that_its_plugin_answered(node, programs, tmp_path) -> None:
    """As soon as the answer is written, and with the bridge's addresses as gateways; until then it has none. Another
    interface's answer, by name or by hardware address, says nothing of it."""
    ip("-n", node.name, "link", "add", "cni0", "type", "bridge")
    ip("-n", node.name, "addr", "add", "10.66.9.1/24", "dev", "cni0")
    ip("-n", node.name, "link", "set", "cni0", "up")

    async def work(_links: Links, told: list[Snapshot]) -> None:
        for name in ("pod31", "pod32"):
            ip("-n", node.name, "link", "add", name, "master", "cni0", "type", "veth", "peer", "name", f"x{name}")
        await until(lambda: find(told, "pod31") and find(told, "pod32"))
        assert find(told, "pod31").link.addresses == ()
        (tmp_path / "stale").write_bytes(make_file("ns/stale", interface="pod32", mac="02:00:00:00:00:01"))
        (tmp_path / "fresh").write_bytes(make_file("ns/web", interface="pod31", mac=read_hardware(node, "pod31")))
        await until(lambda: find(told, "pod31").link.pod == "ns/web", 3.0)

    told = node.run(lambda: watched(programs, work, results=(str(tmp_path), str(tmp_path / "absent"))))
    found, other = find(told, "pod31"), find(told, "pod32")
    assert found.link.addresses == ("10.66.0.7", "fd00:66::7") and "10.66.9.1" in found.link.gateways
    assert (other.link.pod, other.link.addresses) == ("", ())


def read_hardware(node: Node, interface: str) -> str:
    shown = subprocess.run(["ip", "-j", "-n", node.name, "link"], capture_output=True, text=True, check=True)
    return str({one["ifname"]: one["address"] for one in json.loads(shown.stdout)}[interface])


def test_a_routed_interface_is_whose_its_plugin_answered(node, programs, tmp_path) -> None:
    """As soon as the answer is written, which no notification tells. What a former pod of an interface of that name
    left behind does not count: neither of another hardware address, nor of an address without a route, which is told;
    the new pod's answer is still looked for then. The addresses are those of the routes."""

    def write(name: str, pod: str, *, mac: str = "", address: str = "10.66.0.33/24") -> None:
        mac = mac or read_hardware(node, "pod33")
        (tmp_path / name).write_bytes(make_file(pod, interface="pod33", mac=mac, addresses=(address,)))

    async def work(_links: Links, told: list[Snapshot]) -> None:
        write("other", "ns/other", mac="02:00:00:00:00:01")
        await asyncio.to_thread(node.add_pod, 33)
        await until(lambda: (found := find(told, "pod33")) and found.link.addresses)
        write("stale", "ns/stale", address="10.66.0.99/24")
        await until(lambda: find(told, "pod33").link.disputed == ("10.66.0.99",), 3.0)
        assert find(told, "pod33").link.pod == ""
        write("fresh", "ns/web")
        await until(lambda: find(told, "pod33").link.pod == "ns/web", 3.0)

    told = node.run(lambda: watched(programs, work, results=(str(tmp_path),)))
    link = find(told, "pod33").link
    assert (link.addresses, link.disputed, link.is_bridged) == (("10.66.0.33",), (), False)
    assert {one.link.pod for snapshot in told for one in snapshot.links} == {"", "ns/web"}


def test_an_answer_is_not_looked_for_where_the_pod_is_known(node, programs) -> None:
    """A name that tells the pod needs none: the agent looks every few seconds again once the interface is judged."""

    async def work(links: Links, told: list[Snapshot]) -> None:
        await asyncio.to_thread(node.add_pod, 34)
        await until(lambda: (found := find(told, "pod34")) and found.link.addresses)
        link = find(told, "pod34").link
        assert links.is_result_awaited()
        await links.set_judged({link.ifindex: link.life})
        assert not links.is_result_awaited()

    node.run(lambda: watched(programs, work))


def test_a_new_link_has_its_programs_within_100_ms(node, programs) -> None:
    """From the link's notification to both programs on it."""

    async def work(_links: Links, told: list[Snapshot]) -> None:
        for number in (21, 22, 23):
            await asyncio.to_thread(node.add_pod, number)
        await until(lambda: all(one and one.link.addresses for one in (find(told, f"pod{n}") for n in (21, 22, 23))))

    told = node.run(lambda: watched(programs, work))
    for number in (21, 22, 23):
        found = find(told, f"pod{number}")
        assert found is not None
        assert 0 <= found.attached - found.appeared < 0.1


def test_a_lost_filter_is_back_within_a_second(node, programs) -> None:
    """Somebody deletes clsact: both programs are put back, and it is counted."""
    node.add_pod(31)

    async def work(links: Links, told: list[Snapshot]) -> None:
        await until(lambda: find(told, "pod31"))
        await asyncio.to_thread(
            subprocess.run, ["tc", "-n", node.name, "qdisc", "del", "dev", "pod31", "clsact"], check=True
        )
        await until(lambda: list_filters(node, "pod31").count("handle 0x7e77") == 2, 1.0)
        await until(lambda: links.reattached >= 1, 1.0)

    node.run(lambda: watched(programs, work))


def test_a_foreign_program_is_left_alone_and_reported(node, programs) -> None:
    """A program at priority 1 stays where it is; the interface is told to be foreign."""
    node.add_pod(41)
    tc = enter(node, "tc")
    subprocess.run([*tc, "qdisc", "add", "dev", "pod41", "clsact"], check=True)
    pin = str(programs["from_pod"])
    foreign = [
        "filter",
        "add",
        "dev",
        "pod41",
        "ingress",
        "prio",
        "1",
        "handle",
        "1",
        "bpf",
        "da",
        "object-pinned",
        pin,
    ]
    subprocess.run([*tc, *foreign], check=True)

    async def work(_links: Links, told: list[Snapshot]) -> None:
        await until(lambda: (found := find(told, "pod41")) and found.is_foreign)

    node.run(lambda: watched(programs, work))
    assert "pref 1 bpf chain 0 handle 0x1" in list_filters(node, "pod41")


def test_gone_links_are_forgotten(node, programs) -> None:
    """An interface that is deleted leaves the snapshot; the others stay."""
    node.add_pod(51)
    node.add_pod(52)

    async def work(_links: Links, told: list[Snapshot]) -> None:
        await until(lambda: find(told, "pod51"))
        await asyncio.to_thread(ip, "-n", node.name, "link", "del", "pod51")
        await until(lambda: find(told, "pod51") is None and find(told, "pod52"))

    node.run(lambda: watched(programs, work))


def test_uplinks_are_never_touched(node, programs) -> None:
    """An interface named an uplink, and one with the default route, get no program whatever else they match."""
    node.add_pod(61, interface="podup0")
    node.add_pod(62, interface="pod62")
    ip("-n", node.name, "route", "add", "default", "via", "10.66.0.62", "dev", "pod62", "onlink")

    async def work(links: Links, told: list[Snapshot]) -> None:
        assert links.snapshot.links == ()
        assert len(links.snapshot.uplinks) == 2

    node.run(lambda: watched(programs, work))
    assert "0x7e77" not in list_filters(node, "podup0") + list_filters(node, "pod62")


def test_a_pod_that_advertises_itself_as_a_router_is_no_uplink(node, programs) -> None:
    """A default route that a router advertisement made, sent before the programs were on, exempts no pod from them."""
    node.add_pod(63)
    ip("-n", node.name, "-6", "route", "add", "default", "via", "fe80::66", "dev", "pod63", "proto", "ra")

    async def work(links: Links, told: list[Snapshot]) -> None:
        assert links.snapshot.uplinks == frozenset() and find(told, "pod63") is not None

    node.run(lambda: watched(programs, work))
    assert list_filters(node, "pod63").count("0x7e77") == 2


def test_detach_takes_our_filters_only(node, programs) -> None:
    """Ours are gone, clsact with them; where somebody else's filter is, it stays. Settings of today do not matter."""
    node.add_pod(71)
    node.add_pod(72)

    async def work(_links: Links, told: list[Snapshot]) -> None:
        await until(lambda: find(told, "pod71") and find(told, "pod72"))

    node.run(lambda: watched(programs, work))
    ip("-n", node.name, "link", "set", "pod71", "name", "other71")
    pin = str(programs["to_pod"])
    foreign = ["filter", "add", "dev", "pod72", "egress", "prio", "9", "bpf", "da", "object-pinned", pin]
    subprocess.run([*enter(node, "tc"), *foreign], check=True)

    async def let_go() -> int:
        return await asyncio.to_thread(detach_all)

    assert node.run(let_go) == 2
    assert list_filters(node, "other71") == ""
    shown = list_filters(node, "pod72")
    assert "pref 9" in shown
    assert "0x7e77" not in shown


def test_a_life_outlasts_the_agent_and_ends_with_the_interface(node, programs) -> None:
    """The next agent finds the same life on the same interface, and another on one that has its number and name."""
    node.add_pod(75)

    async def work(_links: Links, told: list[Snapshot]) -> None:
        await until(lambda: find(told, "pod75"))

    def look() -> tuple[int, str]:
        found = find(node.run(lambda: watched(programs, work)), "pod75")
        assert found is not None
        return found.link.ifindex, found.link.life

    first = look()
    assert first == look() and len(first[1]) == 12
    ip("-n", node.name, "link", "del", "pod75")
    ip("-n", node.name, "link", "add", "pod75", "index", str(first[0]), "type", "veth", "peer", "name", "peer75")
    second = look()
    assert second[0] == first[0] and second[1] != first[1]


def test_an_interface_replaced_between_two_looks_has_another_life(node, programs) -> None:
    """Deleted and made again at once, with the same number and name, under a running agent."""
    node.add_pod(76)

    async def work(links: Links, told: list[Snapshot]) -> None:
        await until(lambda: find(told, "pod76"))
        before = find(told, "pod76")
        index = str(before.link.ifindex)
        batch = f"link del pod76\nlink add pod76 index {index} type veth peer name peer76\n"
        command = ["ip", "-n", node.name, "-batch", "-"]
        await asyncio.to_thread(subprocess.run, command, input=batch, text=True, check=True)
        await until(lambda: (now := find(told, "pod76")) and now.link.life != before.link.life)

    node.run(lambda: watched(programs, work))
    assert list_filters(node, "pod76").count("0x7e77") == 2


def test_a_program_attached_by_tcx_is_reported(node, programs) -> None:
    """It runs before every filter of clsact, and its accept ends there. No notification tells of it; a new interface
    whose answer is looked for meanwhile does not put off the look at filters."""
    node.add_pod(77)

    async def work(links: Links, told: list[Snapshot]) -> None:
        await until(lambda: (found := find(told, "pod77")) and not found.is_foreign)
        await asyncio.to_thread(node.add_pod, 78)
        await until(links.is_result_awaited)
        with attach_tcx(_read_ifindex(node, "pod77"), programs["from_pod"]):
            await until(lambda: (found := find(told, "pod77")) and found.is_foreign, 8.0)
        await until(lambda: (found := find(told, "pod77")) and not found.is_foreign, 8.0)

    node.run(lambda: watched(programs, work))


@contextmanager
def attach_tcx(ifindex: int, pin: Path) -> Iterator[None]:
    """BPF_LINK_CREATE at tcx ingress; closing the link detaches it."""
    with closing_fd(bpf.open_object(pin)) as program:
        attribute = ctypes.create_string_buffer(struct.pack("=IIII", program, ifindex, bpf.TCX_HOOKS[0], 0), 144)
        link = bpf._call(28, attribute)
        if link == -errno.EINVAL:
            pytest.skip("this kernel has no tcx (before 6.6)")
        assert link >= 0, os.strerror(-link)
        with closing_fd(link):
            yield


@contextmanager
def closing_fd(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def reaches(node: Node, number: int) -> bool:
    pod = f"{node.name}-p{number}"
    ping = ["ip", "netns", "exec", pod, "ping", "-c", "1", "-W", "1", "10.66.9.1"]
    return subprocess.run(ping, capture_output=True, check=False).returncode == 0


def add_reachable_pod(node: Node, number: int) -> int:
    """A pod with a route to an address of the node; the number of its interface."""
    node.add_pod(number)
    ip("-n", node.name, "addr", "replace", "10.66.9.1/32", "dev", "lo")
    ip("-n", f"{node.name}-p{number}", "route", "add", "10.66.9.1", "dev", "eth0", "scope", "link")
    return _read_ifindex(node, f"pod{number}")


def test_the_gate_shuts_what_is_not_in_its_group(node) -> None:
    """A pod's packets reach the node only while its interface is in the group; a foreign flush is put right."""
    add_reachable_pod(node, 81)

    async def work() -> None:
        guarded = strict.Gate()
        await guarded.put_up()
        assert not await asyncio.to_thread(reaches, node, 81)
        await asyncio.to_thread(ip, "-n", node.name, "link", "set", "pod81", "group", str(GROUP))
        assert await asyncio.to_thread(reaches, node, 81)
        await asyncio.to_thread(ip, "-n", node.name, "link", "set", "pod81", "group", "0")
        assert not await asyncio.to_thread(reaches, node, 81)
        watch = NftWatch()
        await asyncio.to_thread(subprocess.run, ["nft", "flush", "ruleset"], check=True)
        async with asyncio.timeout(1):
            await watch.heard.wait()
        watch.close()
        await guarded.check()
        assert guarded.restored == 1
        assert not await asyncio.to_thread(reaches, node, 81)
        await asyncio.to_thread(nft.remove, TABLE)
        await asyncio.to_thread(ip, "-n", node.name, "link", "set", "pod81", "group", "0")
        assert await asyncio.to_thread(reaches, node, 81)

    node.run(work)


def add_bridged_pod(node: Node, number: int) -> None:
    """A pod behind a bridge, without a host route of its own."""
    ip("-n", node.name, "link", "add", "cni0", "type", "bridge")
    ip("-n", node.name, "addr", "add", "10.66.0.1/24", "dev", "cni0")
    ip("-n", node.name, "link", "set", "cni0", "up")
    node.add_pod(number)
    ip("-n", node.name, "route", "del", f"10.66.0.{number}/32")
    ip("-n", node.name, "link", "set", f"pod{number}", "master", "cni0")
    ip("-n", f"{node.name}-p{number}", "addr", "replace", f"10.66.0.{number}/24", "dev", "eth0")


def test_an_opening_leads_through_a_bridge_too(node) -> None:
    """Nothing is judged and no neighbour known: the listed port answers, the one beside it does not; neither does
    without the opening, and somebody who takes one of its rules away is put right."""
    add_bridged_pod(node, 83)
    open_port = parse_bootstrap(["tcp:10.66.0.83:4222"])

    async def work() -> None:
        with listening(f"{node.name}-p83", 4222), listening(f"{node.name}-p83", 4223):
            await strict.Gate().put_up()
            bare = await asyncio.to_thread(nft.list_tables, TABLE)
            assert not await asyncio.to_thread(connects, "10.66.0.83", 4222, node.name)
            gate = strict.Gate(open_port)
            await gate.put_up()
            assert await asyncio.to_thread(connects, "10.66.0.83", 4222, node.name)
            assert not await asyncio.to_thread(connects, "10.66.0.83", 4223, node.name)
            await asyncio.to_thread(_delete_rule, "bridge", "prerouting", "arp")
            assert "arp" not in (await asyncio.to_thread(nft.list_tables, TABLE))[1].partition("postrouting")[0]
            await gate.check()
            assert gate.restored == 1 and await asyncio.to_thread(connects, "10.66.0.83", 4222, node.name)
            await strict.Gate().put_up()
            assert await asyncio.to_thread(nft.list_tables, TABLE) == bare
            assert not await asyncio.to_thread(connects, "10.66.0.83", 4222, node.name)
            await gate.put_up()
            await asyncio.to_thread(nft.remove, TABLE)
            assert await asyncio.to_thread(nft.list_tables, TABLE) == ["", ""]

    node.run(work)


def test_where_there_are_openings_an_interface_is_bare_until_its_pod_is_known(node, programs) -> None:
    """What an agent without openings had put on and not judged comes off. Once its endpoint is there it has its
    programs, and one round later it is open; a restart keeps it so, but not where the maps were emptied meanwhile."""
    index = add_reachable_pod(node, 84)

    def show() -> tuple[int, bool]:
        """Programs, and whether it is open."""
        shown = subprocess.run(
            ["ip", "-n", node.name, "link", "show", "pod84"], capture_output=True, text=True, check=True
        )
        return list_filters(node, "pod84").count("handle 0x7e77"), f"group {GROUP}" in shown.stdout

    @asynccontextmanager
    async def opened(*, is_deferring: bool, is_empty: bool = False) -> AsyncIterator[Links]:
        links = Links(INTERFACES, UPLINKS, is_strict=True, is_deferring=is_deferring)
        await links.open(programs, is_empty=is_empty)
        await links.look(None, ignore)
        yield links
        await links.close()

    async def judge(links: Links) -> None:
        await links.set_judged({one.link.ifindex: one.link.life for one in links.snapshot.links})

    async def ignore(_: Snapshot) -> None:
        """Nobody judges."""

    async def work() -> None:
        async with opened(is_deferring=False):
            assert show() == (2, False)
        async with opened(is_deferring=True) as links:
            (one,) = links.snapshot.links
            assert (one.link.ifindex, one.link.life, one.is_bare, *show()) == (index, "", True, 0, False)
            await judge(links)
            assert show() == (2, False)
            await links.look(None, ignore)
            await judge(links)
            assert show() == (2, True)
        async with opened(is_deferring=True):
            assert show() == (2, True)
        async with opened(is_deferring=True, is_empty=True):
            assert show() == (0, False)

    node.run(work)


@contextmanager
def listening(namespace: str, port: int) -> Iterator[None]:
    with closing(open_socket(namespace, socket.AF_INET, socket.SOCK_STREAM)) as opened:
        opened.bind(("0.0.0.0", port))
        opened.listen()
        yield


def _delete_rule(family: str, chain: str, word: str) -> None:
    """The first rule of ours in which the word is."""
    shown = subprocess.run(
        ["nft", "-a", "list", "chain", family, TABLE, chain], capture_output=True, text=True, check=True
    )
    handle = next(line for line in shown.stdout.splitlines() if word in line).rpartition(" ")[2]
    subprocess.run(["nft", "delete", "rule", family, TABLE, chain, "handle", handle], check=True)


def test_an_interface_in_somebody_elses_group_stays_so_and_is_told(node, programs) -> None:
    """The gate cannot open it, and says which it is; the group is not ours to change."""
    add_reachable_pod(node, 82)
    ip("-n", node.name, "link", "set", "pod82", "group", "99")

    async def work() -> None:
        links = Links(INTERFACES, UPLINKS, is_strict=True)
        await links.open(programs)

        async def changed(snapshot: Snapshot) -> None:
            await links.set_judged({one.link.ifindex: one.link.life for one in snapshot.links})

        await links.look(None, changed)
        assert links.taken_groups == {"pod82"}
        await links.close()

    node.run(work)
    shown = subprocess.run(["ip", "-n", node.name, "link", "show", "pod82"], capture_output=True, text=True, check=True)
    assert "group 99" in shown.stdout


def _read_ifindex(node: Node, interface: str) -> int:
    shown = subprocess.run(
        ["ip", "-n", node.name, "-o", "link", "show", interface], capture_output=True, text=True, check=True
    )
    return int(shown.stdout.split(":")[0])
