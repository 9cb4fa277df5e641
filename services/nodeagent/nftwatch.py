"""The kernel's notifications that something of our nftables tables was deleted: a raw netlink socket.

A reason to look, never a fact. A kube-proxy in nftables mode deletes rules all day: only our own tables' count.
Source: linux/netfilter/nfnetlink.h, nf_tables.h.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct

from services.nodeagent import gate, sourcecheck

_NETLINK_NETFILTER = 12
_GROUP_NFTABLES = 7
_SOL_NETLINK = 270
_ADD_MEMBERSHIP = 1
_SO_RCVBUFFORCE = 33
_RECEIVE_BYTES = 4 * 1024 * 1024
_SUBSYSTEM_NFTABLES = 10
_DELETIONS = frozenset({2, 5, 8, 11, 14})
"""NFT_MSG_DELTABLE, DELCHAIN, DELRULE, DELSET, DELSETELEM: each has an attribute of the table's name (NFTA_*_TABLE is
1)."""
_TABLES = frozenset({gate.TABLE, sourcecheck.TABLE})
_HEADER = struct.Struct("=IHHII")
_GENERIC_BYTES = 4
_ATTRIBUTE = struct.Struct("=HH")
_NAME_ATTRIBUTE = 1


class NftWatch:
    """``heard`` is set when something of our tables went, or when messages were lost. OSError where the kernel has no
    nftables."""

    def __init__(self, heard: asyncio.Event | None = None) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BYTES)
        self._socket.bind((0, 0))
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_NFTABLES)
        self.heard = heard or asyncio.Event()
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._receive)

    def close(self) -> None:
        """Stop listening."""
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()

    def _receive(self) -> None:
        while True:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.heard.set()
                continue
            if is_ours_deleted(data):
                self.heard.set()


def is_ours_deleted(data: bytes) -> bool:
    """Whether one of these messages says that a table of ours, or something of it, was deleted."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return False
        if kind >> 8 == _SUBSYSTEM_NFTABLES and kind & 0xFF in _DELETIONS:
            body = data[offset + _HEADER.size + _GENERIC_BYTES : offset + length]
            if _read_table(body) in _TABLES:
                return True
        offset += (length + 3) & ~3
    return False


def _read_table(body: bytes) -> str:
    offset = 0
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < _ATTRIBUTE.size:
            return ""
        if kind & 0x3FFF == _NAME_ATTRIBUTE:
            return body[offset + _ATTRIBUTE.size : offset + length].rstrip(b"\0").decode(errors="replace")
        offset += (length + 3) & ~3
    return ""
