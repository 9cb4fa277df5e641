"""What the controller says of itself: who leads, which objects are refused, and how far every node has come.

A node counts while it has endpoints or its agent has spoken of late; it has come to a revision when its agent says so
under the present epoch. Pure: time is passed in, in seconds of any steady clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from schemas import wire
from schemas.status import AgentStatus, ControllerStatus, Problem
from schemas.terms import NodeName, RevisionNumber

AGENT_SECONDS = 60.0
"""A node without endpoints whose agent has been silent for this long is gone."""
PROBLEMS_SHOWN = (200, 20, 0)
"""How many problems a status lists: the first of these with which it fits a message. The rest is counted."""


@dataclass(frozen=True, slots=True)
class _Heard:
    status: AgentStatus
    at_seconds: float


class Board:
    """Takes what happens, gives the status."""

    def __init__(self, holder: str, pid: int) -> None:
        self._holder = holder
        self._pid = pid
        self._agents: dict[NodeName, _Heard] = {}
        self._governed: frozenset[NodeName] = frozenset()
        self.epoch = ""
        self.term = 0
        self.revision = RevisionNumber(0)
        self.problems: tuple[Problem, ...] = ()
        self.counters: dict[str, int] = {}

    def begin_term(self, epoch: str, term: int, revision: RevisionNumber) -> None:
        """We lead now; ``revision`` is the last one in the stream."""
        self.epoch, self.term, self.revision = epoch, term, revision

    def note_nodes(self, nodes: Iterable[NodeName]) -> None:
        """The nodes that have endpoints."""
        self._governed = frozenset(nodes)

    def note_agent(self, status: AgentStatus, now_seconds: float) -> bool:
        """An agent has spoken; whether its revision is another than before."""
        before = self._agents.get(status.node)
        self._agents[status.node] = _Heard(status, now_seconds)
        return before is None or (before.status.epoch, before.status.revision) != (status.epoch, status.revision)

    def foreign(self) -> dict[NodeName, tuple[str, ...]]:
        """Node -> the programs of others that run before ours there, by what its agent said last."""
        told = {node: {one.foreign for one in heard.status.endpoints} - {""} for node, heard in self._agents.items()}
        return {node: tuple(sorted(programs)) for node, programs in told.items() if programs}

    @property
    def last_agent_epoch(self) -> str:
        """The epoch that agents hold, as heard last; empty if none has spoken."""
        heard = [one for one in self._agents.values() if one.status.epoch]
        return max(heard, key=lambda one: one.at_seconds).status.epoch if heard else ""

    def encode(self, now_seconds: float) -> bytes:
        """The status as a message's body; WireError if it does not fit even without a problem."""
        for shown in PROBLEMS_SHOWN[:-1]:
            try:
                return wire.encode(self.status(now_seconds, shown=shown))
            except wire.WireError:
                continue
        return wire.encode(self.status(now_seconds, shown=PROBLEMS_SHOWN[-1]))

    def status(self, now_seconds: float, *, shown: int = PROBLEMS_SHOWN[0]) -> ControllerStatus:
        """The status now, with at most ``shown`` problems."""
        nodes = self.acknowledged(now_seconds)
        counters = dict(self.counters)
        if len(self.problems) > shown:
            counters["problems_not_shown"] = len(self.problems) - shown
        return ControllerStatus(
            holder=self._holder,
            epoch=self.epoch,
            term=self.term,
            revision=self.revision,
            nodes=nodes,
            convergence=describe_convergence(self.revision, nodes),
            problems=self.problems[:shown],
            counters=counters,
            pid=self._pid,
        )

    def acknowledged(self, now_seconds: float) -> dict[str, RevisionNumber]:
        """The revision that every node has come to."""
        for node, heard in list(self._agents.items()):
            if node not in self._governed and now_seconds - heard.at_seconds > AGENT_SECONDS:
                del self._agents[node]
        return {node: self._acknowledged_by(node) for node in sorted(self._governed | self._agents.keys())}

    def enforcing(self) -> dict[NodeName, int]:
        """Nodes whose agents have programs attached and a state of this epoch in force, and when each agent started."""
        heard = {node: one.status for node, one in self._agents.items()}
        return {node: said.started_unix_nanos for node, said in heard.items() if self._acknowledged_by(node)}

    def _acknowledged_by(self, node: NodeName) -> RevisionNumber:
        heard = self._agents.get(node)
        if heard is None or heard.status.epoch != self.epoch:
            return RevisionNumber(0)
        return heard.status.revision


def describe_convergence(revision: RevisionNumber, nodes: Mapping[str, RevisionNumber]) -> str:
    """For people: how many nodes enforce a revision (or a later one)."""
    enforcing = sum(number >= revision for number in nodes.values())
    return f"revision {revision} enforced on {enforcing} of {len(nodes)} nodes"
