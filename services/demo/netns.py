"""Sockets inside another network namespace, without a process there: setns(2) for one thread, and back.

A socket stays in the namespace in which it was made, so the visit lasts for one call.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
from collections.abc import Iterator

from services.demo.state import NETNS

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _enter(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


@contextlib.contextmanager
def visit_namespace(namespace: str) -> Iterator[None]:
    """This thread's network namespace is ``namespace`` inside the block; empty for where it is already."""
    if not namespace:
        yield
        return
    home = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = -1
    try:
        there = os.open(NETNS / namespace, os.O_RDONLY | os.O_CLOEXEC)
        _enter(there)
        try:
            yield
        finally:
            _enter(home)
    finally:
        os.close(home)
        if there >= 0:
            os.close(there)


def open_socket(namespace: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket that lives in ``namespace`` for good."""
    with visit_namespace(namespace):
        return socket.socket(family, kind, protocol)
