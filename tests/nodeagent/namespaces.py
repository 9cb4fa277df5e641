"""A node as a network namespace of its own, pods behind veths, and code that runs inside."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Node:
    """One namespace; pods are added and removed as a routed CNI would."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pods: list[str] = []

    def add_pod(self, number: int, *, interface: str = "") -> str:
        """A pod with 10.66.0.``number``; the name of its host interface."""
        interface = interface or f"pod{number}"
        namespace = f"{self.name}-p{number}"
        ip("netns", "add", namespace)
        self.pods.append(namespace)
        ip("-n", self.name, "link", "add", interface, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        ip("-n", namespace, "addr", "add", f"10.66.0.{number}/32", "dev", "eth0")
        ip("-n", namespace, "link", "set", "eth0", "up")
        ip("-n", self.name, "addr", "add", "fe80::1/64", "dev", interface, "nodad")
        ip("-n", self.name, "link", "set", interface, "up")
        ip("-n", self.name, "route", "add", f"10.66.0.{number}/32", "dev", interface)
        return interface

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """The coroutine on a loop of its own, in a thread that lives in the node's namespace."""
        outcome: list[T | BaseException] = []

        def inside() -> None:
            handle = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(handle, _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
                outcome.append(asyncio.run(asyncio.wait_for(work(), 30)))
            except BaseException as error:
                outcome.append(error)
            finally:
                os.close(handle)

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        (found,) = outcome
        if isinstance(found, BaseException):
            raise found
        return found


@contextmanager
def make_node(name: str) -> Iterator[Node]:
    """A node that is gone afterwards, with its pods."""
    ip("netns", "add", name)
    node = Node(name)
    try:
        ip("-n", name, "link", "set", "lo", "up")
        yield node
    finally:
        for namespace in (*node.pods, name):
            ip("netns", "del", namespace)
