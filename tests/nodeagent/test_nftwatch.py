"""Deletions among nftables' notifications: only those of our own tables count."""

from __future__ import annotations

import struct

import pytest

from services.nodeagent.nftwatch import is_ours_deleted

NEW_TABLE, DELETED_TABLE, DELETED_CHAIN, DELETED_RULE, DELETED_SET, DELETED_ELEMENT = 0, 2, 5, 8, 11, 14


def message(kind: int, table: str, *, subsystem: int = 10) -> bytes:
    """One notification: header, generic header, an attribute before the table's name, the name."""
    name = table.encode() + b"\0"
    other = struct.pack("=HH4s", 8, 2, b"abcd")
    attributes = other + struct.pack("=HH", 4 + len(name), 1) + name.ljust((len(name) + 3) & ~3, b"\0")
    return struct.pack("=IHHII", 20 + len(attributes), subsystem << 8 | kind, 0, 0, 0) + bytes(4) + attributes


@pytest.mark.parametrize("table", ["yett", "yett-resolvers"])
@pytest.mark.parametrize("kind", [DELETED_TABLE, DELETED_CHAIN, DELETED_RULE, DELETED_SET, DELETED_ELEMENT])
def test_a_deletion_of_ours_is_heard_among_others(kind: int, table: str) -> None:
    """Behind whatever else came with it."""
    assert is_ours_deleted(message(DELETED_RULE, "kube-proxy") + message(kind, table))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        message(NEW_TABLE, "yett"),
        message(DELETED_RULE, "kube-proxy"),
        message(DELETED_ELEMENT, "kube-proxy"),
        message(DELETED_TABLE, "yett", subsystem=1),
        message(DELETED_TABLE, "yett")[:24],
        struct.pack("=IHHII", 0, 10 << 8 | 2, 0, 0, 0),
    ],
)
def test_all_else_is_not(data: bytes) -> None:
    """What is added, what is others', and what is cut short."""
    assert not is_ours_deleted(data)
