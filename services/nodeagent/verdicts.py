"""One verdict, one story: a record of the kernel's, with the names that people know.

Rules of this module:

* A number is looked up in what it meant when it was given: rulesets and pods that are gone are remembered until their
  number is given again, because records come late.
* A name is told, never guessed: the domain row that admitted, or the name under which this very endpoint was told the
  address it was denied.

Pure. Deliberately absent: the ring, NATS, waiting.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from schemas.policy import AddressRow, Ruleset, RuleSource
from schemas.resolution import Observed
from schemas.selectors import pattern_covers
from schemas.terms import Direction, NodeName, Reason, RevisionNumber, Tier, Verdict
from schemas.verdict import VerdictEvent
from services.nodeagent.events import NO_BIT, VerdictRecord
from services.nodeagent.names import Lesson
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
    """Whose endpoint it is."""

    namespace: str
    pod: str


class Storyteller:
    """What numbers mean, and the story made of them."""

    def __init__(self, node: NodeName) -> None:
        self._node = node
        self._pods: dict[int, PodName] = {}
        self._rulesets: dict[int, Ruleset] = {}
        self._patterns: dict[int, str] = {}
        self._owners: Mapping[str, AddressRow] = {}
        self._told: Recent[tuple[int, str], tuple[str, ...]] = Recent()
        self._taught: Recent[tuple[str, int], tuple[str, str]] = Recent()

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

    def note_observed(self, observed: Observed) -> None:
        """What an endpoint was told."""
        for address in observed.addresses:
            key = (observed.endpoint_id, address)
            names = (observed.name, *(one for one in self._told.get(key, ()) if one != observed.name))
            self._told.remember(key, names[:NAMES_AN_ADDRESS])

    def note_lesson(self, lesson: Lesson) -> None:
        """What another node taught."""
        self._taught.remember((lesson.address, lesson.row), (lesson.name, lesson.node))

    def lacks_name(self, record: VerdictRecord) -> bool:
        """Whether the name of a denied address may still arrive: worth a short wait."""
        peer = record.destination
        return (
            record.verdict == Verdict.DENY
            and record.direction == Direction.EGRESS
            and record.tier != Tier.NONE
            and peer not in self._owners
            and (record.endpoint, peer) not in self._told
        )

    def tell(self, record: VerdictRecord, *, unix_nanos: int) -> VerdictEvent | None:
        """The story; None for an endpoint that was never known here."""
        pod = self._pods.get(record.endpoint)
        if pod is None:
            return None
        direction = Direction(record.direction)
        peer = record.destination if direction is Direction.EGRESS else record.source
        name, learned_by = self._find_name(record, peer)
        owner = self._owners.get(peer)
        return VerdictEvent(
            node=self._node,
            namespace=pod.namespace,
            pod=pod.pod,
            direction=direction,
            verdict=_known(Verdict, record.verdict, Verdict.DENY),
            reason=_known(Reason, record.reason, Reason.UNKNOWN),
            tier=_known(Tier, record.tier, Tier.NONE),
            source_address=record.source,
            destination_address=record.destination,
            protocol=record.protocol,
            source_port=record.source_port,
            destination_port=record.destination_port,
            policy=self._find_policy(record),
            name=name,
            peer=owner.owner if owner else "",
            learned_by=learned_by,
            revision=RevisionNumber(record.revision),
            unix_nanos=unix_nanos,
            suppressed=record.suppressed,
        )

    def _find_policy(self, record: VerdictRecord) -> RuleSource | None:
        ruleset = self._rulesets.get(record.ruleset)
        if ruleset is None:
            return None
        if record.bit != NO_BIT:
            return find_source(ruleset, _known(Tier, record.tier, Tier.NONE), record.bit)
        if record.reason in ISOLATING and record.tier == Tier.NETWORK_POLICY and ruleset.isolated_by:
            return ruleset.isolated_by[0]
        return None

    def _find_name(self, record: VerdictRecord, peer: str) -> tuple[str, str]:
        """(name, node that taught it): by the domain row, else as this endpoint was told."""
        told = self._told.get((record.endpoint, peer), ())
        if record.direction != Direction.EGRESS or peer in self._owners:
            return "", ""
        if not record.domain:
            return (told[0] if told and record.verdict != Verdict.ALLOW else ""), ""
        pattern = self._patterns.get(record.domain, "")
        own = next((one for one in told if pattern_covers(pattern, one)), "")
        if own:
            return own, self._node
        return self._taught.get((peer, record.domain), (pattern, ""))


E = TypeVar("E", Verdict, Reason, Tier)


def _known(kind: type[E], number: int, otherwise: E) -> E:
    """The enum's member, or the closed one for a number that a newer program may write."""
    try:
        return kind(number)
    except ValueError:
        return otherwise
