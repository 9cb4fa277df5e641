"""What rules and pods are used for: reports of nodes, and what the controller keeps of them in bucket ``yett_usage``.

Every number in a report is cumulative since the node's ``epoch``, so that a report heard twice, late, or by two
controllers changes nothing: of two the larger number stands. Times are Unix seconds, as coarse as the node's interval.

Deliberately absent: denials by isolation or default (no rule matched), single flows (``verdict``).
"""

from __future__ import annotations

import enum

import msgspec

from schemas.policy import Labels
from schemas.terms import Direction, NodeName


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base: immutable, keyword-only, defaults left out on the wire."""


class PeerKind(enum.StrEnum):
    """What is known of the other side. ``peer`` is then: namespace/name of a pod or Service, a node's name, a domain
    name, or an address of which nothing is known."""

    POD = "pod"
    SERVICE = "service"
    NODE = "node"
    NAME = "name"
    ADDRESS = "address"


class RuleCount(Record, frozen=True, kw_only=True):
    """Flows that one rule decided on one node: new ones, denied packets, and live ones judged again after a change.

    ``hash``: of the rule as written (``RulesetRule.hashes``). ``rule``: its name or path when it was counted last.
    ``last``: 0 if never. ``first``: when the node began to count for it, matched or not.
    """

    kind: str
    namespace: str = ""
    name: str
    rule: str = ""
    hash: str
    flows: int = 0
    first: int = 0
    last: int = 0


class Contact(Record, frozen=True, kw_only=True):
    """Flows let in between a pod and one peer. ``port``: the destination's, 0 without ports; ``direction``: who opened.

    ``audited``: some of them passed under audit only. ``own_node``: some passed as traffic with the own node,
    ``implicit``: some as implicit DNS; neither needs a rule. ``target_port``: of a Service's backends, where it is one.
    ``labels``: of the peer or, for a Service, of the pods behind it: those that their owner gave them, filled in by the
    controller; ``labels_known`` tells none from unknown.
    """

    direction: Direction
    protocol: int
    port: int = 0
    kind: PeerKind
    peer: str
    address: str = ""
    target_port: int = 0
    flows: int = 0
    first: int = 0
    last: int = 0
    audited: bool = False
    own_node: bool = False
    implicit: bool = False
    labels: Labels = {}
    labels_known: bool = False


ContactKey = tuple[Direction, int, int, PeerKind, str]


def key_of(contact: Contact) -> ContactKey:
    """What makes two contacts one."""
    return contact.direction, contact.protocol, contact.port, contact.kind, contact.peer


class PodUsage(Record, frozen=True, kw_only=True):
    """``$KV.yett_usage.pod.<ns>.<pod>``: what one pod reached and was reached by.

    ``since``: from when on this pod is watched. ``lost``: flows whose peers found no room in the kernel; ``dropped``:
    contacts that found none here: what is listed is then not all. ``labels``: of the pod's owner, by the controller.
    """

    namespace: str
    pod: str
    uid: str
    node: NodeName
    epoch: int = 0
    since: int = 0
    at: int = 0
    lost_egress: int = 0
    lost_ingress: int = 0
    dropped: int = 0
    contacts: tuple[Contact, ...] = ()
    labels: Labels = {}
    labels_known: bool = False


class UsageReport(Record, frozen=True, kw_only=True):
    """``yett.usage.<node>``, a request: whoever leads answers ``UsageTaken`` once it is stored.

    ``epoch``: when this node's counting began, Unix nanoseconds: a later epoch counts from nothing again. ``rules`` and
    ``pods``: those that changed since what was taken last; ``at``: until when.
    """

    node: NodeName
    epoch: int
    since: int
    at: int
    rules: tuple[RuleCount, ...] = ()
    pods: tuple[PodUsage, ...] = ()


class UsageTaken(Record, frozen=True, kw_only=True):
    """The answer to a report. ``refused``: entries that could not be stored, told in the controller's log."""

    refused: int = 0


class NodeCount(Record, frozen=True, kw_only=True):
    """One node's part of a rule. ``before``: flows of that node's earlier epochs; ``at``: when it spoke of it last."""

    epoch: int
    flows: int = 0
    before: int = 0
    first: int = 0
    last: int = 0
    at: int = 0


class RuleUsage(Record, frozen=True, kw_only=True):
    """``$KV.yett_usage.rule.<kind>.<ns>.<name>.<uid>.<hash>``: one rule of one policy, over all nodes.

    ``first``: from when on some node counts for it. ``gone``: flows of nodes that are heard of no more.
    """

    kind: str
    namespace: str = ""
    name: str
    uid: str = ""
    hash: str
    rule: str = ""
    nodes: dict[str, NodeCount] = {}
    gone: int = 0
    first: int = 0
    last: int = 0

    @property
    def flows(self) -> int:
        """Of all nodes and times."""
        return self.gone + sum(each.flows + each.before for each in self.nodes.values())


class NodeUsage(Record, frozen=True, kw_only=True):
    """``$KV.yett_usage.node.<node>``: that a node counts, since when, and when it was heard last."""

    node: NodeName
    epoch: int
    since: int
    at: int
