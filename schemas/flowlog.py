"""A verdict as a line of a flow log: words instead of numbers, for people and for programs that are not Yett's.

Versioned: fields are added, never renamed; ``version`` changes if that is ever broken.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from schemas.terms import Direction, Tier
from schemas.verdict import NameRefused, VerdictEvent

VERSION = 1


class FlowPolicy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who decided. ``rule``: its name, or its path in the policy."""

    kind: str
    name: str
    namespace: str = ""
    rule: str = ""


class FlowLog(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line. ``time``: RFC 3339, UTC, of the packet; of the last one where ``count`` is more than 1.

    ``direction``: egress or ingress, seen from ``pod``. ``verdict``: allow, deny, audit. ``reason``: docs/reasons.md.
    Or ``name_refused``: no flow, but a name that a rule of the pod covers and DNS refused; ``reason`` is what DNS said
    (docs/flows.md), ``destination_address`` a sinkhole's or empty, ``resolver`` who said it.
    ``name``: the domain that admitted, or under which the pod was told the address. ``trace_id``: of the change that
    made the revision. ``owner``, ``labels``: of the pod, as the settings ``flow-owners`` and ``flow-labels`` say.
    ``varies``: the denials counted differ in peer and port.
    """

    version: int
    time: str
    node: str
    namespace: str
    pod: str
    direction: str
    verdict: str
    reason: str
    tier: str
    source_address: str
    destination_address: str
    protocol: int
    source_port: int = 0
    destination_port: int = 0
    policy: FlowPolicy | None = None
    name: str = ""
    peer: str = ""
    learned_by: str = ""
    revision: int = 0
    count: int = 1
    varies: bool = False
    suppressed: int = 0
    trace_id: str = ""
    resolver: str = ""
    owner: str = ""
    labels: dict[str, str] = {}


NAME_REFUSED = "name_refused"
"""In place of a verdict."""


def make_refused_log(event: NameRefused) -> FlowLog:
    """The line that a refused name is."""
    return FlowLog(
        version=VERSION,
        time=format_time(event.unix_nanos),
        node=event.node,
        namespace=event.namespace,
        pod=event.pod,
        direction=Direction.EGRESS.name.lower(),
        verdict=NAME_REFUSED,
        reason=event.reason.name if event.reason else "",
        tier=Tier.NONE.name.lower(),
        source_address="",
        destination_address=event.addresses[0] if event.addresses else "",
        protocol=0,
        name=event.name,
        count=event.count,
        varies=event.varies,
        suppressed=event.suppressed,
        trace_id=event.learned_trace[3:35],
        resolver=event.resolver,
        owner=event.owner,
        labels=event.labels,
    )


def make_flow_log(event: VerdictEvent) -> FlowLog:
    """The line that an event is."""
    source = event.policy
    return FlowLog(
        version=VERSION,
        time=format_time(event.unix_nanos),
        node=event.node,
        namespace=event.namespace,
        pod=event.pod,
        direction=event.direction.name.lower(),
        verdict=event.verdict.name.lower(),
        reason=event.reason.name,
        tier=event.tier.name.lower(),
        source_address=event.source_address,
        destination_address=event.destination_address,
        protocol=event.protocol,
        source_port=event.source_port,
        destination_port=event.destination_port,
        policy=FlowPolicy(kind=source.kind, namespace=source.namespace, name=source.name, rule=source.rule)
        if source
        else None,
        name=event.name,
        peer=event.peer,
        learned_by=event.learned_by,
        revision=event.revision,
        count=event.count,
        varies=event.varies,
        suppressed=event.suppressed,
        trace_id=event.applied_trace[3:35],
        owner=event.owner,
        labels=event.labels,
    )


def format_time(unix_nanos: int) -> str:
    """RFC 3339 with microseconds."""
    moment = datetime.fromtimestamp(unix_nanos // 1_000_000_000, UTC).replace(
        microsecond=unix_nanos // 1000 % 1_000_000
    )
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
