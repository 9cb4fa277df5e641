"""The kernel's notifications about links, addresses, routes and filters: a raw netlink socket, read without blocking.

A notification is a reason to look again, never a fact: messages can be lost (ENOBUFS) and are then all suspected.
Source: rtnetlink(7); linux/rtnetlink.h for groups and message types.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import time
from dataclasses import dataclass, field

_GROUPS = (1, 4, 5, 7, 9, 11)
"""RTNLGRP_LINK, TC, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE."""
_ADD_MEMBERSHIP = 1
_SOL_NETLINK = 270
_RECEIVE_BYTES = 4 * 1024 * 1024
_SO_RCVBUFFORCE = 33
_HEADER = struct.Struct("=IHHII")
_LINK_TYPES = frozenset({16, 17})  # RTM_NEWLINK, RTM_DELLINK
_FILTER_TYPES = frozenset({36, 37, 44, 45})  # RTM_NEWQDISC, DELQDISC, NEWTFILTER, DELTFILTER
_IFINDEX_OFFSET = 4
"""In ifinfomsg and tcmsg alike: family, padding, then the interface."""


@dataclass(slots=True)
class Seen:
    """What was heard since the last look. ``links``: ifindex -> monotonic seconds of the first notification."""

    links: dict[int, float] = field(default_factory=dict)
    filters: set[int] = field(default_factory=set)
    is_lossy: bool = False

    def is_empty(self) -> bool:
        """Nothing was heard, and nothing can have been missed."""
        return not self.links and not self.filters and not self.is_lossy


class LinkWatch:
    """``wait`` returns when something was heard."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BYTES)
        self._socket.bind((0, 0))
        for group in _GROUPS:
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        self._seen = Seen()
        self._heard = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._receive)

    def close(self) -> None:
        """Stop listening."""
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()

    async def wait(self, timeout_seconds: float) -> Seen:
        """What was heard since the last call, at once if there is anything; empty after ``timeout_seconds``."""
        try:
            async with asyncio.timeout(timeout_seconds):  # wait_for could swallow a cancellation
                await self._heard.wait()
        except TimeoutError:
            return Seen()
        self._heard.clear()
        seen, self._seen = self._seen, Seen()
        return seen

    def _receive(self) -> None:
        while True:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._seen.is_lossy = True
                continue
            self._parse(data)
        self._heard.set()

    def _parse(self, data: bytes) -> None:
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
            if length < _HEADER.size:
                return
            if kind in _LINK_TYPES | _FILTER_TYPES:
                (ifindex,) = struct.unpack_from("=i", data, offset + _HEADER.size + _IFINDEX_OFFSET)
                if kind in _LINK_TYPES:
                    self._seen.links.setdefault(ifindex, time.monotonic())
                else:
                    self._seen.filters.add(ifindex)
            offset += (length + 3) & ~3
