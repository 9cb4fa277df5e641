"""One verdict, one story: a record of the kernel's, with the names that people know.

Rules of this module:

* A number is looked up in what it meant when it was given: rulesets and pods that are gone are remembered until their
  number is given again, because records come late.
* A name is told, never guessed: the domain row that admitted, the name that admitted this same flow before, or the
  name under which this very endpoint was told the address it was denied.
* A verdict names two spans: the one that applied its revision, and the one that learned its name.

Pure. Deliberately absent: the ring, NATS, waiting.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from schemas.policy import AddressRow, DomainPeer, PeersetPeer, Ruleset, RuleSource
from schemas.resolution import Observed
from schemas.selectors import pattern_covers
from schemas.terms import Direction, NodeName, Reason, RevisionNumber, Tier, Verdict
from schemas.verdict import NameRefused, VerdictEvent
from services.nodeagent.events import NO_BIT, VerdictRecord
from services.nodeagent.names import Lesson
from services.nodeagent.refusals import Refused
from services.nodeagent.rules import find_source

MAX_REMEMBERED = 50_000
"""(endpoint, address) pairs with their names; those heard of longest ago are forgotten."""
NAMES_AN_ADDRESS = 4
ISOLATING = frozenset({Reason.ISOLATED, Reason.NAME_EXPIRED, Reason.NO_BACKEND, Reason.MIXED_BACKENDS})
"""In the NetworkPolicy tier and without a rule: isolation denied, whatever more there is to say."""

K = TypeVar("K")
V = TypeVar("V")


class Recent(OrderedDict[K, V], Generic[K, V]):
    """A mapping that holds the last ``MAX_REMEMBERED`` entries written."""

    def remember(self, key: K, value: V) -> None:
        self[key] = value
        self.move_to_end(key)
        if len(self) > MAX_REMEMBERED:
            self.popitem(last=False)


@dataclass(frozen=True, slots=True)
class PodName:
    """Whose endpoint it is. ``egress``: handle of the ruleset in force, 0: none.

    ``owner``, ``labels``: those that the settings ask for.
    """

    namespace: str
    pod: str
    egress: int = 0
    owner: str = ""
    labels: dict[str, str] = field(default_factory=dict)


class Named(NamedTuple):
    """A name, the node that taught it, and the span that learned it; empty where unknown."""

    name: str = ""
    node: str = ""
    trace: str = ""


_UNNAMED = Named()


class Storyteller:
    """What numbers mean, and the story made of them."""

    def __init__(self, node: NodeName) -> None:
        self._node = node
        self._pods: dict[int, PodName] = {}
        self._rulesets: dict[int, Ruleset] = {}
        self._patterns: dict[int, str] = {}
        self._of_ruleset: Recent[int, tuple[Ruleset, frozenset[str] | None]] = Recent()
        self._owners: Mapping[str, AddressRow] = {}
        self._told: Recent[tuple[int, str], tuple[Named, ...]] = Recent()
        self._taught: Recent[tuple[str, int], Named] = Recent()
        self._admitted: Recent[tuple[int, str, str, int, int, int], Named] = Recent()
        self._applied: Recent[int, str] = Recent()

    def set_state(
        self,
        *,
        pods: Mapping[int, PodName],
        rulesets: Mapping[int, Ruleset],
        patterns: Mapping[int, str],
        owners: Mapping[str, AddressRow],
    ) -> None:
        """Meanings of today, by number; those of yesterday stay until their number has a new one."""
        self._pods.update(pods)
        self._rulesets.update(rulesets)
        self._patterns.update(patterns)
        self._owners = owners

    def note_observed(self, observed: Observed, trace: str = "") -> None:
        """What an endpoint was told. ``trace``: traceparent of the recorder's span for that answer."""
        told = Named(observed.name, self._node, trace)
        for address in observed.addresses:
            key = (observed.endpoint_id, address)
            others = (one for one in self._told.get(key, ()) if one.name != observed.name)
            self._told.remember(key, (told, *others)[:NAMES_AN_ADDRESS])

    def names_of(self, endpoint: int, address: str) -> tuple[str, ...]:
        """The names under which an endpoint was told an address, newest first."""
        return tuple(one.name for one in self._told.get((endpoint, address), ()))

    def name_taught(self, endpoint: int, address: str, row: int) -> str:
        """Under which name a pod was told an address that a domain row has: else the row's pattern."""
        pattern = self._patterns.get(row, "")
        told = self.names_of(endpoint, address)
        return next((name for name in told if pattern_covers(pattern, name)), pattern)

    def note_lesson(self, lesson: Lesson, trace: str = "") -> None:
        """What another node taught. ``trace``: traceparent of the span that wrote it to this node's kernel."""
        self._taught.remember((lesson.address, lesson.row), Named(lesson.name, lesson.node, trace))

    def note_applied(self, revision: int, trace: str) -> None:
        """Which span made a revision the one in force."""
        self._applied.remember(revision & 0xFFFFFFFF, trace)

    def covers(self, endpoint: int, name: str) -> bool:
        """Whether some rule of the endpoint's own names it."""
        pod = self._pods.get(endpoint)
        ruleset = self._rulesets.get(pod.egress) if pod else None
        return ruleset is not None and any(pattern_covers(one, name) for one in self._list_patterns(ruleset))

    def _list_patterns(self, ruleset: Ruleset) -> frozenset[str]:
        """Of a ruleset; all in force, if it has peers that are rows of their own."""
        found = self._of_ruleset.get(id(ruleset))
        if found is None or found[0] is not ruleset:
            found = (ruleset, list_patterns(ruleset))
            self._of_ruleset.remember(id(ruleset), found)
        return frozenset(self._patterns.values()) if found[1] is None else found[1]

    def tell_refused(self, refused: Refused, *, unix_nanos: int) -> NameRefused | None:
        """That DNS gave a name which a rule of the pod covers no address that it may have; None for other names."""
        pod = self._pods.get(refused.endpoint)
        if pod is None or not self.covers(refused.endpoint, refused.name):
            return None
        return NameRefused(
            node=self._node,
            namespace=pod.namespace,
            pod=pod.pod,
            name=refused.name,
            addresses=refused.addresses,
            unix_nanos=unix_nanos,
            reason=refused.reason,
            resolver=refused.resolver,
            count=refused.count,
            suppressed=refused.suppressed,
            varies=refused.varies,
            learned_trace=refused.trace,
            owner=pod.owner,
            labels=pod.labels,
        )

    def lacks_name(self, record: VerdictRecord) -> bool:
        """Whether the name of a denied or audited address may still arrive: worth a short wait."""
        peer = record.destination
        return (
            record.verdict != Verdict.ALLOW
            and record.direction == Direction.EGRESS
            and record.tier != Tier.NONE
            and peer not in self._owners
            and (record.endpoint, peer) not in self._told
        )

    def tell(
        self,
        record: VerdictRecord,
        *,
        unix_nanos: int,
        count: int = 1,
        varies: bool = False,
        suppressed: int | None = None,
    ) -> VerdictEvent | None:
        """The story; None for an endpoint that was never known here.

        ``count``: denials that it stands for. ``suppressed``: what the kernel held back, else the record's own number.
        """
        pod = self._pods.get(record.endpoint)
        if pod is None:
            return None
        direction = _DIRECTIONS[record.direction & 1]
        peer = record.destination if direction is Direction.EGRESS else record.source
        named = self._find_name(record, peer)
        owner = self._owners.get(peer)
        return VerdictEvent(
            node=self._node,
            namespace=pod.namespace,
            pod=pod.pod,
            direction=direction,
            verdict=_VERDICTS.get(record.verdict, Verdict.DENY),
            reason=_REASONS.get(record.reason, Reason.UNKNOWN),
            tier=_TIERS.get(record.tier, Tier.NONE),
            source_address=record.source,
            destination_address=record.destination,
            protocol=record.protocol,
            source_port=record.source_port,
            destination_port=record.destination_port,
            policy=self._find_policy(record),
            name=named.name,
            peer=owner.owner if owner else "",
            learned_by=named.node,
            revision=RevisionNumber(record.revision),
            unix_nanos=unix_nanos,
            suppressed=record.suppressed if suppressed is None else suppressed,
            count=count,
            peer_identity=record.peer_identity,
            varies=varies,
            applied_trace=self._applied.get(record.revision, ""),
            learned_trace=named.trace,
            owner=pod.owner,
            labels=pod.labels,
        )

    def _find_policy(self, record: VerdictRecord) -> RuleSource | None:
        ruleset = self._rulesets.get(record.ruleset)
        if ruleset is None:
            return None
        if record.bit != NO_BIT:
            return find_source(ruleset, _TIERS.get(record.tier, Tier.NONE), record.bit)
        if record.reason in ISOLATING and record.tier == Tier.NETWORK_POLICY and ruleset.isolated_by:
            return ruleset.isolated_by[0]
        return None

    def _find_name(self, record: VerdictRecord, peer: str) -> Named:
        """By the domain row, else by what admitted the flow before, else as this endpoint was told."""
        if record.direction != Direction.EGRESS or peer in self._owners:
            return _UNNAMED
        told = self._told.get((record.endpoint, peer), ())
        flow = (record.endpoint, record.source, peer, record.protocol, record.source_port, record.destination_port)
        if not record.domain:
            admitted = self._admitted.get(flow)
            if admitted is not None:
                return admitted
            return told[0]._replace(node="") if told and record.verdict != Verdict.ALLOW else _UNNAMED
        pattern = self._patterns.get(record.domain, "")
        named = next((one for one in told if pattern_covers(pattern, one.name)), None)
        named = named or self._taught.get((peer, record.domain)) or Named(pattern)
        if record.verdict == Verdict.ALLOW:
            self._admitted.remember(flow, named)
        return named


def list_patterns(ruleset: Ruleset) -> frozenset[str] | None:
    """The domain patterns of its rules; None if some of its peers stand elsewhere."""
    tiers = (ruleset.admin, ruleset.network_policy, ruleset.baseline)
    peers = [peer for tier in tiers for rule in tier for peer in rule.peers]
    if any(isinstance(peer, PeersetPeer) for peer in peers):
        return None
    return frozenset(peer.pattern for peer in peers if isinstance(peer, DomainPeer))


_DIRECTIONS = (Direction.EGRESS, Direction.INGRESS)
_VERDICTS = {int(one): one for one in Verdict}
_REASONS = {int(one): one for one in Reason}
_TIERS = {int(one): one for one in Tier}
"""By number: a call of the enum costs more than the rest of a field. A newer program's number is the closed one."""
