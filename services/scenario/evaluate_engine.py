"""The oracle as an engine: what the policies say, straight from the policies."""

from __future__ import annotations

from collections.abc import Sequence

from services.controller.policy.model import Finding
from services.scenario.route import Crossing
from services.scenario.world import Cluster


class EvaluateEngine:
    """Needs no kernel and no root."""

    def judge(self, cluster: Cluster, crossings: Sequence[Crossing]) -> list[Finding]:
        """One finding a crossing, in order."""
        oracle = cluster.oracle
        return [oracle.evaluate(each.packet, direction=each.direction, pod=each.pod, at=each.at) for each in crossings]
