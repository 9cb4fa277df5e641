"""Carries out one probe: what it reached, and what Yett said of it.

Deliberately absent: what was expected of it, and what follows (``rows``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from schemas.verdict import VerdictEvent
from services.common.bus import Bus, wait_for
from services.demo import topology
from services.demo.control import list_targets
from services.demo.rows import CURL_BLOCKED, Attempt, match_verdict
from services.demo.steps import Connect, Lookup, Probe, UseLive
from services.demo.topology import Pod
from services.demo.traffic import KINDS, Traffic, pick_by_family

VERDICT_SECONDS = 2.0
"""How long a verdict may take from the kernel to here: milliseconds, unless its agent was held."""


class Prober:
    """Probes and their verdicts."""

    def __init__(self, traffic: Traffic, bus: Bus) -> None:
        self._traffic = traffic
        self._bus = bus

    async def attempt(self, probe: Probe) -> list[Attempt]:
        """One attempt an address family; never empty."""
        pod = topology.find_pod(probe.source)
        match probe:
            case UseLive():
                return [Attempt("", 0, self._traffic.use_live(pod))]
            case Lookup():
                answers = await self._traffic.resolve(pod, probe.name)
                return [Attempt(topology.DNS_SERVICE, 53, bool(answers))]
            case Connect():
                return await self._connect(pod, probe)

    async def explain(self, probe: Probe, attempts: Sequence[Attempt], since: float) -> list[VerdictEvent | None]:
        """The verdict on each attempt, among those heard since ``since`` (monotonic seconds); None where none came."""
        if isinstance(probe, UseLive):
            return [None]
        pod = topology.find_pod(probe.source)
        return list(await asyncio.gather(*(self._find_verdict(pod, attempt, since) for attempt in attempts)))

    async def _connect(self, pod: Pod, probe: Connect) -> list[Attempt]:
        """By name as a client would: asks first, connects to what it was told; without an answer, to what is known."""
        host = probe.target.rpartition("/")[2]
        targets: Sequence[str] = list_targets(probe)
        if probe.target in topology.OUTSIDE and not probe.addresses:
            answers = await asyncio.gather(*(self._traffic.resolve(pod, host, kind) for kind in KINDS))
            targets = pick_by_family([*(address for answer in answers for address in answer), *targets])
        reached = await asyncio.gather(*(self._traffic.connect(pod, host, probe.port, address) for address in targets))
        return [
            Attempt(
                result.address,
                probe.port,
                result.is_open,
                failure="" if result.is_open or result.curl_exit == CURL_BLOCKED else f"curl exit {result.curl_exit}",
            )
            for result in reached
        ]

    async def _find_verdict(self, pod: Pod, attempt: Attempt, since: float) -> VerdictEvent | None:
        matches = match_verdict(pod, attempt)
        found = await wait_for(lambda: self._bus.find_verdicts(since, matches), VERDICT_SECONDS)
        return found[-1] if found else None
