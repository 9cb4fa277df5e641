"""What was decided about one new flow, and why: plain NATS, and YETT_VERDICT for aggregated denials."""

from __future__ import annotations

import msgspec

from schemas.policy import RuleSource
from schemas.terms import Direction, NodeName, Reason, RefusalReason, RevisionNumber, Tier, Verdict


class VerdictEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``yett.verdict.<node>.<ns>.<pod>.<allow|deny|audit>``.

    ``protocol`` is an IP number, ports are 0 where it has none. ``name``: the domain that admitted the flow or, for a
    denial, the name under which this endpoint was told the address, if any.
    ``peer``: ``namespace/pod`` or node, if known.
    ``learned_by``: the node whose resolution made the name known.

    Denials are aggregated: the first at once, then ``count`` of them in one event a window, with the fields of the
    last; where it ``varies`` (a scan), they differ in peer and port. ``suppressed``: events of this endpoint that the
    kernel held back since the last one. Aggregated denials are on ``yett.denied.<node>.<ns>.<pod>.<deny|audit>`` too.

    ``owner``: ``Kind/name`` of what the pod belongs to; it and ``labels`` of the pod only where the cluster's settings
    ask for them.
    ``applied_trace``, ``learned_trace``: traceparents of the span that applied the revision and of the one that learned
    the name.
    """

    node: NodeName
    namespace: str
    pod: str
    direction: Direction
    verdict: Verdict
    reason: Reason
    tier: Tier
    source_address: str
    destination_address: str
    protocol: int
    source_port: int = 0
    destination_port: int = 0
    policy: RuleSource | None = None
    name: str = ""
    peer: str = ""
    learned_by: str = ""
    revision: RevisionNumber = RevisionNumber(0)
    unix_nanos: int = 0
    suppressed: int = 0
    count: int = 1
    peer_identity: int = 0
    """The other side's, 0 for the world."""
    varies: bool = False
    applied_trace: str = ""
    learned_trace: str = ""
    owner: str = ""
    labels: dict[str, str] = {}


class NameRefused(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``yett.name_refused.<node>.<ns>.<pod>``: the gate is open, DNS said no.

    A rule of the pod covers ``name``, and the resolver gave no address that the name may have. Refusals alike are told
    once, then as a ``count`` of answers a window; where it ``varies``, they differ in name and the last one is given.
    ``addresses``: a sinkhole's, as a DNS firewall answers with, or what an attempt at rebinding gave.
    ``suppressed``: refusals of this pod, of whatever name, that the kernel held back since the last one.
    Kept on YETT_VERDICT beside the denials.
    """

    node: NodeName
    namespace: str
    pod: str
    name: str
    addresses: tuple[str, ...] = ()
    unix_nanos: int = 0
    reason: RefusalReason | None = None
    """None: of a sender that knew of sinkholes only."""
    resolver: str = ""
    count: int = 1
    suppressed: int = 0
    varies: bool = False
    learned_trace: str = ""
    """Traceparent of the recorder's span of the last answer."""
    owner: str = ""
    labels: dict[str, str] = {}
