"""What the agent asks of netlink: interfaces, the routes that lead to them, our programs on them, their device group.

Rules of this module:

* Synchronous: it runs in one thread (``links``). A name or number that is gone meanwhile is no error.
* Our filters have a priority and handle of our own and are replaced atomically. Nothing that is not ours is touched.
* The name of our filters ends in the *life* of the interface: a random word given when the first filter goes on.
  Filters die with their interface, so a new one that takes an old number or name has no life, whoever looked when.
* The gate's mark (``gate.GROUP``) is an attribute of the interface as well and dies with it.

Deliberately absent: what is done about it (``links``), nftables (``strict``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from services.common.bpf import TCX_HOOKS, count_tcx_programs, open_object, read_program_tag
from services.nodeagent.binding import Link, take_answer
from services.nodeagent.cnifiles import CniFiles
from services.nodeagent.gate import GROUP

PRIORITY = 2
HANDLE = 0x7E77
"""1 and 1 are what the managed service's agent and others take; two that share both overwrite each other."""
HOOKS = {"from_pod": 0xFFFFFFF2, "to_pod": 0xFFFFFFF3}
"""Program -> parent: clsact's ingress (what the pod sends) and egress (what it is sent)."""
_DIRECTIONS = dict(zip(HOOKS.values(), ("ingress", "egress"), strict=True))
ETH_P_ALL = 3
_FAMILIES = {2: 32, 10: 128}
"""AF_INET and AF_INET6, and the length of a host route."""
ROUTE_TABLE_LOCAL = 255
ROUTE_UNICAST = 1
ROUTE_ADVERTISED = 9
"""RTPROT_RA: learned from a router's advertisement."""
_OURS = "yett/"
_EXISTS = 17
_GONE = frozenset({2, 19, 22})  # ENOENT, ENODEV, EINVAL: the interface, its qdisc or the filter went meanwhile


def make_life() -> str:
    """A word that no other interface has had."""
    return os.urandom(6).hex()


@dataclass(frozen=True, slots=True)
class Filters:
    """What is on an interface. ``life``: of our filters, empty without one. ``is_on``: both are there and of today's
    programs. ``is_whole``: both are there, of whatever build. ``foreign``: what of others runs before ours, for people.
    """

    life: str = ""
    is_on: bool = False
    is_whole: bool = False
    foreign: str = ""


@dataclass(frozen=True, slots=True)
class Scan:
    """What there is now: pods' interfaces with the addresses that host routes prove, and the node's own way out.

    ``resolvers``: the addresses of the node's own DNS cache.
    """

    links: tuple[Link, ...]
    uplinks: frozenset[int]
    resolvers: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Programs:
    """Descriptors by program, and the names of their filters: the kernel's id of the program tells builds apart."""

    fds: dict[str, int] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


class Netlink:
    """One socket in the network namespace of the thread that opens it."""

    def __init__(
        self,
        interfaces: Sequence[str],
        uplinks: Sequence[str],
        *,
        results: Sequence[str] = (),
        resolvers: Sequence[str] = (),
    ) -> None:
        """``results``: folders in which libcni keeps the plugins' answers; see ``CniFiles``.
        ``resolvers``: interfaces on which the node's own DNS cache has its addresses."""
        self._results = CniFiles(results)
        self._resolvers = tuple(resolvers)
        self._resolving: frozenset[int] = frozenset()
        """The interfaces of ``resolvers`` that are no pods', as of the last ``scan``."""
        self._bridges: dict[int, int] = {}
        """ifindex of a bridge's port -> the bridge, as of the last ``scan``."""
        self._hardware: dict[int, str] = {}
        """ifindex -> hardware address, as of the last ``scan``."""
        self._interfaces = tuple(interfaces)
        self._uplinks = tuple(uplinks)
        self._route: Any = IPRoute()
        self._programs = _Programs()
        self.groups: dict[int, int] = {}
        """ifindex -> group of every veth, as of the last ``scan``."""

    def close(self) -> None:
        """Close the socket."""
        self._route.close()

    def set_programs(self, pins: Mapping[str, Path]) -> None:
        """Programs by name (``HOOKS``), as pinned."""
        for name in HOOKS:
            fd = open_object(pins[name])
            self._programs.fds[name] = fd
            self._programs.names[name] = f"{_OURS}{name}:{read_program_tag(fd, name)[0]}"

    def _is_uplink(self, name: str) -> bool:
        return _matches(name, self._uplinks)

    def _is_pod(self, name: str) -> bool:
        return _matches(name, self._interfaces)

    def list_names(self) -> dict[int, str]:
        """Interfaces of pods: ifindex -> name."""
        return self._divide()[0]

    def list_uplinks(self) -> frozenset[int]:
        """Interfaces that are never touched: named so, or with a default route whatever their name.

        What somebody on a pod's interface advertised of itself is no such route.
        """
        return self._divide()[1]

    def _divide(self) -> tuple[dict[int, str], frozenset[int], list[tuple[int, Any]]]:
        """Pods' interfaces, uplinks, and every route with the length of its family's host routes."""
        links = self._route.get_links()
        routes = [
            (bits, route) for family, bits in _FAMILIES.items() for route in self._route.get_routes(family=family)
        ]
        names = {link["index"]: str(link.get_attr("IFLA_IFNAME")) for link in links}
        self.groups = {link["index"]: int(link.get_attr("IFLA_GROUP") or 0) for link in links if _is_veth(link)}
        self._bridges = {
            link["index"]: int(link.get_attr("IFLA_MASTER")) for link in links if link.get_attr("IFLA_MASTER")
        }
        self._hardware = {link["index"]: str(link.get_attr("IFLA_ADDRESS")).lower() for link in links}
        routed = {
            route.get_attr("RTA_OIF")
            for _, route in routes
            if route["dst_len"] == 0
            and route.get_attr("RTA_DST") is None
            # A pod that advertises itself as a router (CVE-2020-10749) is no uplink of the node's.
            and not (route["proto"] == ROUTE_ADVERTISED and self._is_pod(names.get(route.get_attr("RTA_OIF"), "")))
        }
        uplinks = frozenset(index for index, name in names.items() if index in routed or self._is_uplink(name))
        pods = {index: name for index, name in names.items() if index not in uplinks and self._is_pod(name)}
        self._resolving = frozenset(
            index for index, name in names.items() if index not in pods and _matches(name, self._resolvers)
        )
        return pods, uplinks, routes

    def name(self, ifindex: int) -> str:
        """The interface's name; its number where it is gone."""
        found = [link for link in self._route.get_links() if link["index"] == ifindex]
        return str(found[0].get_attr("IFLA_IFNAME")) if found else str(ifindex)

    def list_all(self) -> frozenset[int]:
        """Every interface of this network namespace."""
        self._divide()
        return frozenset(link["index"] for link in self._route.get_links())

    def scan(self) -> Scan:
        """One dump of links, of routes and of addresses: on a node with many pods they are what a look costs."""
        names, uplinks, routes = self._divide()
        addresses: dict[int, set[str]] = {index: set() for index in names}
        gateways: dict[int, set[str]] = {index: set() for index in names}
        for bits, route in routes:
            index = route.get_attr("RTA_OIF")
            if index in names and _is_host_route(route, bits):
                addresses[index].add(route.get_attr("RTA_DST"))
        for address in self._route.get_addr():
            gateways.setdefault(address["index"], set()).add(
                address.get_attr("IFA_LOCAL") or address.get_attr("IFA_ADDRESS")
            )
        links = [
            Link(index, name, tuple(sorted(addresses[index])), tuple(sorted(gateways[index])))
            for index, name in sorted(names.items())
        ]
        resolvers = (one for index in self._resolving for one in gateways.get(index, ()) if not _is_link_local(one))
        return Scan(tuple(self._add_results(links, gateways)), uplinks, frozenset(resolvers))

    def _add_results(self, links: Sequence[Link], gateways: Mapping[int, set[str]]) -> list[Link]:
        """What CNI plugins answered of interfaces with host routes, and of ports of bridges without; those have the
        bridge's own addresses, too."""
        results = self._results.read()
        found = []
        for link in links:
            bridge = self._bridges.get(link.ifindex)
            if bridge is not None and not link.addresses:
                own = tuple(sorted(gateways.get(bridge, set()) | set(link.gateways)))
                link = replace(link, gateways=own, is_bridged=True)
            is_settled = link.is_bridged or bool(link.addresses)
            answer = results.get((link.name, self._hardware.get(link.ifindex, ""))) if is_settled else None
            found.append(take_answer(link, answer))
        return found

    def attach(self, ifindex: int, life: str) -> bool:
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
                    name=f"{self._programs.names[name]}/{life}",
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

    def inspect(self, ifindex: int) -> Filters:
        """What is on the interface now."""
        lives: dict[str, str] = {}
        present, foreign = 0, self._list_tcx(ifindex)
        for name, parent in HOOKS.items():
            for one in self._list_filters(ifindex, parent):
                priority = one["info"] >> 16
                if one["handle"] == HANDLE and priority == PRIORITY and (said := _read_name(one)).startswith(_OURS):
                    program, _, lives[name] = said.rpartition("/")
                    present += program == self._programs.names.get(name)
                elif one["handle"] and priority <= PRIORITY:
                    foreign.append(_describe_filter(one, parent))  # one without a handle is the list itself
        is_whole = len(lives) == len(HOOKS) and len(set(lives.values())) == 1
        life = next(iter(lives.values()), "")
        return Filters(life, is_whole and present == len(HOOKS), is_whole, "; ".join(foreign))

    def _list_tcx(self, ifindex: int) -> list[str]:
        """Programs attached by tcx run before every filter of clsact, and their accept ends there."""
        hooks = zip(TCX_HOOKS, _DIRECTIONS.values(), strict=True)
        return [f"tcx {direction}" for hook, direction in hooks if count_tcx_programs(ifindex, hook)]

    def set_group(self, ifindex: int, group: int) -> bool:
        """The interface's group; False if it is gone."""
        try:
            self._route.link("set", index=ifindex, group=group)
        except NetlinkError as error:
            if error.code in _GONE:
                return False
            raise
        if ifindex in self.groups:
            self.groups[ifindex] = group
        return True

    def _list_filters(self, ifindex: int, parent: int) -> list[Any]:
        try:
            return list(self._route.get_filters(index=ifindex, parent=parent))
        except NetlinkError as error:
            if error.code in _GONE:
                return []
            raise

    def detach(self, ifindex: int) -> bool:
        """Our filters and mark off, and clsact too if nothing else uses it; whether anything of ours was there."""
        others = ours = False
        for parent in HOOKS.values():
            for one in self._list_filters(ifindex, parent):
                if one["handle"] == HANDLE and one["info"] >> 16 == PRIORITY:
                    ours = True
                    self._delete_filter(ifindex, parent)
                elif one["handle"]:
                    others = True
        if ours and not others:
            try:
                self._route.tc("del", "clsact", ifindex)
            except NetlinkError as error:
                if error.code not in _GONE:
                    raise
        if self.groups.get(ifindex) == GROUP:
            self.set_group(ifindex, 0)
        return ours

    def _delete_filter(self, ifindex: int, parent: int) -> None:
        try:
            self._route.tc("del-filter", "bpf", ifindex, HANDLE, parent=parent, prio=PRIORITY, protocol=ETH_P_ALL)
        except NetlinkError as error:
            if error.code not in _GONE:
                raise


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


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


def _describe_filter(one: Any, parent: int) -> str:
    """``bpf handle_ingress at tc ingress, priority 1, handle 0x1``: enough to find whose it is."""
    said = " ".join(filter(None, (str(one.get_attr("TCA_KIND") or "filter"), _read_name(one))))
    return f"{said} at tc {_DIRECTIONS[parent]}, priority {one['info'] >> 16}, handle {one['handle']:#x}"


def _read_name(one: Any) -> str:
    options = one.get_attr("TCA_OPTIONS")
    return str(options.get_attr("TCA_BPF_NAME") or "") if options is not None else ""


def _is_veth(link: Any) -> bool:
    information = link.get_attr("IFLA_LINKINFO")
    return information is not None and information.get_attr("IFLA_INFO_KIND") == "veth"


def detach_all() -> int:
    """Take our filters and mark off every interface of this network namespace; how many had a filter.

    Whatever the settings say now: those in force when a filter went on may have been others.
    """
    netlink = Netlink((), ())
    try:
        return sum(netlink.detach(ifindex) for ifindex in sorted(netlink.list_all()))
    finally:
        netlink.close()
