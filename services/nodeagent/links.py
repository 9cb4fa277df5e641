"""Pods' interfaces, from the host's side: found, given their programs, watched, given them again.

Rules of this module:

* Identity comes from the host: a host route ``ADDRESS dev VETH``. The pod's own namespace is never asked.
* Programs go on at once, before it is known whose interface it is: without an endpoint they deny everything.
* Our filters have a priority and handle of our own and are replaced atomically. Nothing that is not ours is touched; a
  foreign program that runs before ours is reported.
* A filter that is lost or replaced is put back and counted.

All netlink happens in one thread of its own; the event loop only waits. Deliberately absent: policy, maps, the gate.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from services.common.bpf import open_object, read_program_tag
from services.common.log import get_logger
from services.nodeagent.binding import Link
from services.nodeagent.linkwatch import LinkWatch, Seen

PRIORITY = 2
HANDLE = 0x7E77
"""1 and 1 are what the managed service's agent and others take; two that share both overwrite each other."""
HOOKS = {"from_pod": 0xFFFFFFF2, "to_pod": 0xFFFFFFF3}
"""Program -> parent: clsact's ingress (what the pod sends) and egress (what it is sent)."""
ETH_P_ALL = 3
_FAMILIES = {2: 32, 10: 128}
"""AF_INET and AF_INET6, and the length of a host route."""
ROUTE_TABLE_LOCAL = 255
ROUTE_UNICAST = 1
ROUTE_ADVERTISED = 9
"""RTPROT_RA: learned from a router's advertisement."""
AUDIT_SECONDS = 5.0
"""How often everything is looked at without a notification."""
SETTLE_SECONDS = 0.005
"""Notifications come in bursts; one look serves them all."""
_EXISTS = 17
_GONE = frozenset({2, 19, 22})  # ENOENT, ENODEV, EINVAL: the interface, its qdisc or the filter went meanwhile

T = TypeVar("T")
_log = get_logger("links")


@dataclass(frozen=True, slots=True)
class PodLink:
    """One interface with our programs. ``appeared``: monotonic seconds, 0 if it was there before us.

    ``attached``: when both programs were on; ``is_foreign``: another program runs before ours.
    """

    link: Link
    appeared: float = 0.0
    attached: float = 0.0
    is_foreign: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All pods' interfaces now, the addresses that the node has on them, and the node's own way out."""

    links: tuple[PodLink, ...] = ()
    gateways: frozenset[str] = frozenset()
    uplinks: frozenset[int] = frozenset()


@dataclass(slots=True)
class _Programs:
    """Descriptors by program, and the names of their filters: the kernel's id of the program tells builds apart."""

    fds: dict[str, int] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


class Netlink:
    """The synchronous part: runs in one thread."""

    def __init__(self, interfaces: Sequence[str], uplinks: Sequence[str]) -> None:
        self._interfaces = tuple(interfaces)
        self._uplinks = tuple(uplinks)
        self._route: Any = IPRoute()
        self._programs = _Programs()

    def close(self) -> None:
        """Close the socket."""
        self._route.close()

    def set_programs(self, pins: dict[str, Path]) -> None:
        """Programs by name (``HOOKS``), as pinned."""
        for name in HOOKS:
            fd = open_object(pins[name])
            self._programs.fds[name] = fd
            self._programs.names[name] = f"yett/{name}:{read_program_tag(fd, name)[0]}"

    def _is_uplink(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self._uplinks)

    def _is_pod(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self._interfaces)

    def list_names(self) -> dict[int, str]:
        """Interfaces of pods: ifindex -> name."""
        return self._divide()[0]

    def list_uplinks(self) -> frozenset[int]:
        """Interfaces that are never touched: named so, or with a default route whatever their name.

        What somebody on a pod's interface advertised of itself is no such route.
        """
        return self._divide()[1]

    def _divide(self) -> tuple[dict[int, str], frozenset[int]]:
        names = {link["index"]: str(link.get_attr("IFLA_IFNAME")) for link in self._route.get_links()}
        routed = {
            route.get_attr("RTA_OIF")
            for family in _FAMILIES
            for route in self._route.get_routes(family=family)
            if route["dst_len"] == 0
            and route.get_attr("RTA_DST") is None
            # A pod that advertises itself as a router (CVE-2020-10749) is no uplink of the node's.
            and not (route["proto"] == ROUTE_ADVERTISED and self._is_pod(names.get(route.get_attr("RTA_OIF"), "")))
        }
        uplinks = frozenset(index for index, name in names.items() if index in routed or self._is_uplink(name))
        pods = {index: name for index, name in names.items() if index not in uplinks and self._is_pod(name)}
        return pods, uplinks

    def scan(self) -> list[Link]:
        """Every pod interface with the addresses that host routes prove."""
        names = self.list_names()
        addresses: dict[int, set[str]] = {index: set() for index in names}
        gateways: dict[int, set[str]] = {index: set() for index in names}
        for family, bits in _FAMILIES.items():
            for route in self._route.get_routes(family=family):
                index = route.get_attr("RTA_OIF")
                if index in names and _is_host_route(route, bits):
                    addresses[index].add(route.get_attr("RTA_DST"))
        for address in self._route.get_addr():
            if address["index"] in names:
                gateways[address["index"]].add(address.get_attr("IFA_LOCAL") or address.get_attr("IFA_ADDRESS"))
        return [
            Link(index, name, tuple(sorted(addresses[index])), tuple(sorted(gateways[index])))
            for index, name in sorted(names.items())
        ]

    def attach(self, ifindex: int) -> bool:
        """Both programs on, in place of earlier ones of ours; False if the interface is gone."""
        try:
            self._add_clsact(ifindex)
            for name, parent in HOOKS.items():
                self._route.tc(
                    "replace-filter",
                    "bpf",
                    ifindex,
                    HANDLE,
                    fd=self._programs.fds[name],
                    name=self._programs.names[name],
                    parent=parent,
                    direct_action=True,
                    prio=PRIORITY,
                    protocol=ETH_P_ALL,
                )
        except NetlinkError as error:
            if error.code in _GONE:
                return False
            raise
        return True

    def _add_clsact(self, ifindex: int) -> None:
        try:
            self._route.tc("add", "clsact", ifindex)
        except NetlinkError as error:
            if error.code != _EXISTS:
                raise

    def inspect(self, ifindex: int) -> tuple[bool, bool]:
        """(both of our programs are on and are the present ones, a foreign one runs before ours)."""
        found, is_foreign = set(), False
        for name, parent in HOOKS.items():
            for one in self._list_filters(ifindex, parent):
                priority = one["info"] >> 16
                if one["handle"] == HANDLE and priority == PRIORITY:
                    if _read_name(one) == self._programs.names[name]:
                        found.add(name)
                elif one["handle"] and priority <= PRIORITY and one.get_attr("TCA_KIND") == "bpf":
                    is_foreign = True  # the entry without a handle is the list itself, not a program
        return len(found) == len(HOOKS), is_foreign

    def _list_filters(self, ifindex: int, parent: int) -> list[Any]:
        try:
            return list(self._route.get_filters(index=ifindex, parent=parent))
        except NetlinkError as error:
            if error.code in _GONE:
                return []
            raise

    def detach(self, ifindex: int) -> None:
        """Our filters off, and clsact too if nothing else uses it; what is gone already is fine."""
        others = False
        for parent in HOOKS.values():
            for one in self._list_filters(ifindex, parent):
                if one["handle"] == HANDLE and one["info"] >> 16 == PRIORITY:
                    self._delete_filter(ifindex, parent)
                elif one["handle"]:
                    others = True
        if not others:
            try:
                self._route.tc("del", "clsact", ifindex)
            except NetlinkError as error:
                if error.code not in _GONE:
                    raise

    def _delete_filter(self, ifindex: int, parent: int) -> None:
        try:
            self._route.tc("del-filter", "bpf", ifindex, HANDLE, parent=parent, prio=PRIORITY, protocol=ETH_P_ALL)
        except NetlinkError as error:
            if error.code not in _GONE:
                raise


def _is_host_route(route: Any, bits: int) -> bool:
    return (
        route["dst_len"] == bits
        and route["type"] == ROUTE_UNICAST
        and route.get_attr("RTA_TABLE") != ROUTE_TABLE_LOCAL
        and route.get_attr("RTA_GATEWAY") is None
        and not _is_link_local(route.get_attr("RTA_DST"))
    )


def _is_link_local(address: str | None) -> bool:
    return address is None or address.startswith("fe80:")


def _read_name(one: Any) -> str:
    options = one.get_attr("TCA_OPTIONS")
    return str(options.get_attr("TCA_BPF_NAME") or "") if options is not None else ""


class Links:
    """The asynchronous part: ``run`` keeps every pod interface programmed and tells ``changed`` what there is."""

    def __init__(self, interfaces: Sequence[str], uplinks: Sequence[str]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="netlink")
        self._patterns = (interfaces, uplinks)
        self._netlink: Netlink | None = None
        self._known: dict[int, PodLink] = {}
        self._appeared: dict[int, float] = {}
        self.snapshot = Snapshot()
        self.reattached = 0
        """Times a filter that was lost or replaced had to be put back."""
        self.looked = asyncio.Event()
        """Every interface there is has been looked at once."""

    async def open(self, programs: dict[str, Path]) -> None:
        """Before anything else. ``programs``: pins by name."""
        self._netlink = await self._do(lambda: Netlink(*self._patterns))
        await self._do(lambda: self._opened().set_programs(programs))

    async def close(self) -> None:
        """Stop; programs stay where they are."""
        if self._netlink is not None:
            await self._do(self._netlink.close)
        self._thread.shutdown(wait=False)

    def _opened(self) -> Netlink:
        assert self._netlink is not None, "open first"
        return self._netlink

    async def _do(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def run(self, changed: Callable[[Snapshot], Awaitable[None]]) -> None:
        """For ever: look, attach, tell, wait for a notification or ``AUDIT_SECONDS``."""
        watch = LinkWatch()
        try:
            suspects: set[int] | None = None
            while True:
                await self.look(suspects, changed)
                seen = await watch.wait(AUDIT_SECONDS)
                suspects = await self._collect(seen, watch)
        finally:
            watch.close()

    async def _collect(self, seen: Seen, watch: LinkWatch) -> set[int] | None:
        """The interfaces whose filters are in doubt; None: all. New links are given their programs at once."""
        if not seen.links and not seen.filters and not seen.is_lossy:
            return None
        for ifindex, when in seen.links.items():
            if ifindex not in self._known:
                self._appeared.setdefault(ifindex, when)
        if any(ifindex not in self._known for ifindex in seen.links):
            return seen.filters
        await asyncio.sleep(SETTLE_SECONDS)
        more = await watch.wait(0)
        if seen.is_lossy or more.is_lossy:
            return None
        return seen.filters | more.filters

    async def look(self, suspects: set[int] | None, changed: Callable[[Snapshot], Awaitable[None]]) -> None:
        """One round. ``suspects``: interfaces whose filters are to be inspected, None: all."""
        netlink = self._opened()
        for ifindex in await self._do(lambda: sorted(netlink.list_names().keys() - self._known.keys())):
            await self._attach_new(ifindex)
        links = await self._do(netlink.scan)
        present = {link.ifindex for link in links}
        for gone in self._known.keys() - present:
            del self._known[gone]
            self._appeared.pop(gone, None)
        for link in links:
            await self._keep(link, link.ifindex in suspects if suspects is not None else True)
        snapshot = Snapshot(
            tuple(self._known[ifindex] for ifindex in sorted(self._known)),
            frozenset(address for link in links for address in link.gateways),
            await self._do(netlink.list_uplinks),
        )
        if snapshot != self.snapshot:
            self.snapshot = snapshot
            await changed(snapshot)
        self.looked.set()

    async def _attach_new(self, ifindex: int) -> None:
        netlink = self._opened()
        if await self._do(lambda: netlink.attach(ifindex)):
            appeared = 0.0 if not self.looked.is_set() else self._appeared.pop(ifindex, time.monotonic())
            self._known[ifindex] = PodLink(Link(ifindex, ""), appeared, time.monotonic())

    async def _keep(self, link: Link, is_suspect: bool) -> None:
        netlink = self._opened()
        known = self._known.get(link.ifindex)
        if known is None:
            await self._attach_new(link.ifindex)
            known = self._known.get(link.ifindex)
            if known is None:
                return
        is_foreign = known.is_foreign
        if is_suspect:
            is_on, is_foreign = await self._do(lambda: netlink.inspect(link.ifindex))
            if not is_on:
                self.reattached += 1
                _log.warning("filter lost, put back", interface=link.name)
                await self._do(lambda: netlink.attach(link.ifindex))
            if is_foreign and not known.is_foreign:
                _log.warning("another program runs before ours", interface=link.name)
        self._known[link.ifindex] = PodLink(link, known.appeared, known.attached, is_foreign)


def detach_all(interfaces: Sequence[str], uplinks: Sequence[str]) -> int:
    """Take our filters off every pod interface; how many interfaces there were."""
    netlink = Netlink(interfaces, uplinks)
    try:
        names = netlink.list_names()
        for ifindex in names:
            netlink.detach(ifindex)
        return len(names)
    finally:
        netlink.close()


def find_uplinks(interfaces: Sequence[str], uplinks: Sequence[str]) -> frozenset[int]:
    """The node's own way out, before there is a ``Links``."""
    netlink = Netlink(interfaces, uplinks)
    try:
        return netlink.list_uplinks()
    finally:
        netlink.close()
