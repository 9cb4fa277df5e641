"""Before Yett runs: every route that a row will ever try must be open, or a later Blocked would prove nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from services.demo import topology
from services.demo.steps import STEPS, Connect, Step
from services.demo.topology import Pod
from services.demo.traffic import Traffic


async def find_closed_routes(traffic: Traffic, pods: Iterable[Pod], steps: Iterable[Step] = STEPS) -> list[str]:
    """What cannot be reached although nothing enforces anything, a line each; empty if all is well."""
    present = {pod.key: pod for pod in pods}
    routes = sorted(
        {
            (probe.source, address, probe.port)
            for step in steps
            for phase in step.phases
            for probe in phase.probes
            if isinstance(probe, Connect) and probe.source in present and _exists(probe.target, present)
            for address in list_targets(probe)
        }
    )
    reached = await asyncio.gather(
        *(traffic.connect(present[source], address, port, address) for source, address, port in routes)
    )
    return [
        f"{source} -> {address} port {port}: curl exit {result.curl_exit}"
        for (source, address, port), result in zip(routes, reached, strict=True)
        if not result.is_open
    ]


def list_targets(probe: Connect) -> tuple[str, ...]:
    """The addresses that a probe means, as far as they are known without asking DNS."""
    if probe.addresses:
        return probe.addresses
    if "/" in probe.target:
        return topology.find_service(probe.target).addresses
    return topology.OUTSIDE.get(probe.target, (probe.target,))


def _exists(target: str, present: dict[str, Pod]) -> bool:
    return "/" not in target or set(topology.find_service(target).backends) <= set(present)
