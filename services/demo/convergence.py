"""Waiting until what was written is enforced everywhere, by what the services themselves report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from services.common.bus import POLL_SECONDS, Bus
from services.demo.state import DemoError
from services.demo.topology import NODES, Node, Pod

ENFORCED_SECONDS = 20.0
"""A change takes milliseconds."""
START_SECONDS = 60.0
"""Compiling and verifying the programs takes seconds of two processors, and both nodes do it at once."""
QUIET_SECONDS = 0.15
"""Revisions are coalesced every 50 ms: after three such intervals without one, all files of a step are in."""
ENFORCED = "enforced"


async def read_revision(bus: Bus, *, seconds: float = ENFORCED_SECONDS) -> int:
    """The newest published revision, from the first controller that answers; DemoError if none does.

    A busy one is not one at revision 0: who then waits for a newer revision waits for nothing.
    """
    deadline = time.monotonic() + seconds
    while not (status := await bus.ask_controller()):
        if time.monotonic() > deadline:
            raise DemoError(f"no controller answers for {seconds:.0f} s")
        await asyncio.sleep(POLL_SECONDS)
    return int(status.revision)


async def wait_enforced(
    bus: Bus, pods: Iterable[Pod], *, above: int, seconds: float = ENFORCED_SECONDS, nodes: Iterable[Node] = NODES
) -> int:
    """The revision that the nodes enforce, newer than ``above``, with every pod's interface in place.

    DemoError says what is missing when the time is over.
    """
    pods, nodes = list(pods), list(nodes)
    deadline = time.monotonic() + seconds
    quiet_since, newest = time.monotonic(), -1
    while True:
        status = await bus.ask_controller()
        revision = int(status.revision) if status else 0
        now = time.monotonic()
        if revision != newest:
            quiet_since, newest = now, revision
        missing = describe_missing(bus, pods, revision, nodes) if revision > above else f"no revision after {above}"
        if not missing and now - quiet_since >= QUIET_SECONDS:
            return revision
        if now > deadline:
            raise DemoError(f"not enforced after {seconds:.0f} s: {missing}")
        await asyncio.sleep(POLL_SECONDS)


def describe_missing(bus: Bus, pods: Iterable[Pod], revision: int, nodes: Iterable[Node] = NODES) -> str:
    """What is not yet enforced at the controller's ``revision``, in words; empty if all is.

    Of another epoch an agent's number says nothing: where the stream was lost, numbers begin again.
    """
    if revision == 0 or bus.controller is None:
        return "no revision yet"
    acknowledged, epoch = bus.controller.nodes, bus.controller.epoch
    for node in nodes:
        status = bus.agents.get(node.name)
        said = status.revision if status and status.epoch == epoch else 0
        reached = max(acknowledged.get(node.name, 0), said)
        if reached < revision:
            return f"{node.name} is at revision {reached} of {revision}"
        states = {endpoint.pod: endpoint.state for endpoint in status.endpoints} if status else {}
        for pod in pods:
            if pod.node is node and states.get(pod.key) != ENFORCED:
                return f"{pod.key} on {node.name}: {states.get(pod.key, 'no endpoint')}"
    return ""
