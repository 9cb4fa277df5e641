"""What services say of themselves: ``yett.status.<node>`` from agents, ``yett.controller.status`` from controllers."""

from __future__ import annotations

import msgspec

from schemas.terms import Default, NodeName, RevisionNumber

FORGED_PACKETS = "forged_resolver_packets"
"""Counter of an agent: packets that came to its node with its resolver's own address, and were dropped."""
FOREIGN_ENFORCER = "ForeignEnforcer"
"""The condition that another policy program runs before ours: the reason of a Node's Event, the object of a problem."""
STALE_SINCE = "stale since"
"""How a problem of what a controller reads begins, before the instant at which that was last heard: UTC, RFC 3339."""


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something a person must hear about: where it comes from, what object, which field, what is wrong."""

    object: str
    """``Kind namespace/name``, or what was read where there is no object."""
    path: str
    """Path of the fault in the object, ``spec.egress[2].ports[0].port``; empty if the whole object."""
    message: str
    file: str = ""
    severity: str = "error"
    """error: refused; warning: accepted and normalised."""


class EndpointStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One pod interface as the agent sees it. ``state``: enforced, waiting (row or address), claimed-twice, foreign."""

    pod: str
    interface: str
    ifindex: int
    state: str
    addresses: tuple[str, ...] = ()
    window_millis: float = -1.0
    """Standard mode: from the link's appearance to programs attached and endpoint in place; -1 unknown."""
    foreign: str = ""
    """Programs of others that run before ours, for people; empty if there are none. The condition ForeignEnforcer."""


class LearnedName(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A name that another node told of, or that an answer here taught, and how long it admits new flows yet, grace
    included. ``is_own``: taught here; the name is the one that its pod asked for, or the pattern that covers it."""

    name: str
    address: str
    seconds: int
    is_own: bool = False


class AgentStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``yett.status.<node>``: plain message, newest revision only; KV when endpoints or errors change."""

    node: NodeName
    epoch: str = ""
    revision: RevisionNumber = RevisionNumber(0)
    torn: bool = False
    mode: str = "standard"
    signatures: str = ""
    """``required`` or ``off``: whether this agent believes only signed revisions; empty: an agent that does not say."""
    default: Default = Default.DENY
    enforcing: bool = True
    """Off: the cluster's switch ``enforce`` is, and nothing is enforced by policy on this node."""
    resolvers: tuple[str, ...] = ()
    """Addresses of the node's own DNS cache (NodeLocal DNSCache) that are trusted here, besides those of ``config``."""
    endpoints: tuple[EndpointStatus, ...] = ()
    names: int = 0
    learned: tuple[LearnedName, ...] = ()
    """Those heard of last, a hundred at most, and of this node's own the hundred that live longest."""
    problems: tuple[Problem, ...] = ()
    forgotten: int = 0
    """Sequence of the last ``Forget`` that was carried out."""
    counters: dict[str, int] = {}
    trace: str = ""
    build: str = ""
    """Hash of the programs, maps and sizes that are loaded; empty: an agent that does not say."""
    started_unix_nanos: int = 0
    pid: int = 0


class ControllerStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``yett.controller.status``: who leads, at which revision, which objects are refused and why."""

    holder: str
    epoch: str = ""
    term: int = 0
    revision: RevisionNumber = RevisionNumber(0)
    nodes: dict[str, RevisionNumber] = {}
    """Highest revision that each node has acknowledged."""
    convergence: str = ""
    """For people: "revision 7 enforced on 2 of 3 nodes"."""
    problems: tuple[Problem, ...] = ()
    counters: dict[str, int] = {}
    pid: int = 0


class RecorderStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``yett.status.recorder.<node>``."""

    node: NodeName
    counters: dict[str, int] = {}
    buffered: int = 0
    forgotten: int = 0
    """As an agent's."""
    pid: int = 0
