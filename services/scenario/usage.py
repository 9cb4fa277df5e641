"""What is kept of the use of rules and pods, held against the policies in force: what is unused, and how sure that is.

Rules of this module: "unused" is said only of a rule whose every node has counted for the whole time that was asked
about; all else is said as it is (no data, data too young, no pod, under another rule). Times are Unix seconds.

Pure. Deliberately absent: reading the bucket (``live``).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from schemas import wire
from schemas.policy import Ruleset
from schemas.terms import Action, Direction
from schemas.usage import NodeUsage, PodUsage, RuleUsage
from services.controller.policy.model import Namespace, Policy, Rule, World, hash_rule
from services.scenario.lint import find_shadowed_rules
from services.scenario.rows import Rows
from services.scenario.words import format_rule

STALE_SECONDS = 300
"""A node that was not heard of for so long has no data of today."""

RuleId = tuple[str, str, str, str]
"""(kind, namespace, name, hash)."""


@dataclass
class Kept:
    """The bucket's entries."""

    rules: dict[RuleId, list[RuleUsage]] = field(default_factory=dict)
    pods: dict[tuple[str, str], PodUsage] = field(default_factory=dict)
    nodes: dict[str, NodeUsage] = field(default_factory=dict)

    @classmethod
    def read(cls, encoded: Iterable[tuple[str, bytes]]) -> Kept:
        """(subject, body) of every entry; what does not decode is a newer controller's, and left aside."""
        kept = cls()
        for subject, body in encoded:
            try:
                row = wire.decode(subject, body)
            except wire.WireError:
                continue
            if isinstance(row, RuleUsage):
                kept.rules.setdefault((row.kind, row.namespace, row.name, row.hash), []).append(row)
            elif isinstance(row, PodUsage):
                kept.pods[row.namespace, row.pod] = row
            elif isinstance(row, NodeUsage):
                kept.nodes[row.node] = row
        return kept

    def find(self, policy: Policy, digest: str) -> RuleUsage | None:
        """Of one rule of this very policy, not of one of its name before it."""
        rows = self.rules.get((*policy.key, digest), [])
        return next((row for row in rows if row.uid == policy.uid), None)


class Use(enum.StrEnum):
    """What is known of a rule's use in the time that was asked about."""

    USED = "used"
    UNUSED = "unused"
    """Nothing matched it, on any node that has a pod under it, for all of that time."""
    UNPROVEN = "unproven"
    """Nothing matched it since there is data, which is not all of that time."""
    NO_DATA = "no-data"
    """Some node that has a pod under it does not report."""
    NO_PODS = "no-pods"
    """It governs no pod now."""


@dataclass(frozen=True, slots=True)
class RuleAnswer:
    """One rule of one policy. ``since``: from when on there is data of every node, 0 where there is not."""

    policy: Policy
    direction: Direction
    rule: Rule
    use: Use
    flows: int
    last: int
    since: int
    notes: tuple[str, ...]

    @property
    def text(self) -> str:
        """What it says, for people."""
        is_egress = self.direction is Direction.EGRESS
        return format_rule(self.rule.action, self.rule.peers, self.rule.ports, is_egress=is_egress)


def find_use(
    policies: Iterable[Policy], rows: Rows, world: World, kept: Kept, *, seconds: float, now: int
) -> list[RuleAnswer]:
    """Every rule of these policies, in their order."""
    policies = sorted(policies, key=lambda each: each.key)
    places = _find_nodes(rows)
    shadowed = dict(find_shadowed_rules(policies, _with_namespaces(world, rows)))
    answers = []
    for policy in policies:
        for direction in Direction:
            for rule in policy.rules(direction):
                digest = hash_rule(direction, rule)
                nodes = places.get((*policy.key, digest), frozenset())
                before = shadowed.get((policy.key, direction, rule.index))
                notes = [f"shadowed: {before}"] if before else []
                answers.append(
                    _answer(
                        policy, direction, rule, kept, digest, nodes, notes=notes, begin=int(now - seconds), now=now
                    )
                )
    return answers


def _answer(
    policy: Policy,
    direction: Direction,
    rule: Rule,
    kept: Kept,
    digest: str,
    nodes: frozenset[str],
    *,
    notes: list[str],
    begin: int,
    now: int,
) -> RuleAnswer:
    found = kept.find(policy, digest)
    silent = sorted(node for node in nodes if node not in kept.nodes or kept.nodes[node].at + STALE_SECONDS < now)
    since = max((_since(found, kept, node) for node in nodes if node in kept.nodes), default=0)
    last = found.last if found else 0
    if policy.created and (created := _read_time(policy.created)) > begin:
        notes.append(f"the policy is younger: made {format_age(now - created)} ago")
    if policy.is_audited:
        notes.append("under audit")
    if last >= begin and last:
        use = Use.USED
    elif not nodes:
        use = Use.NO_PODS
    elif silent:
        use = Use.NO_DATA
        notes.append(f"no data of {', '.join(_say_silent(kept, node, now) for node in silent)}")
    else:
        use = Use.UNUSED if since <= begin else Use.UNPROVEN
    return RuleAnswer(
        policy=policy,
        direction=direction,
        rule=rule,
        use=use,
        flows=found.flows if found else 0,
        last=last,
        since=0 if silent else since,
        notes=tuple(notes),
    )


def _since(found: RuleUsage | None, kept: Kept, node: str) -> int:
    """A node that has not told of the rule yet began to count for it after it was heard last."""
    count = found.nodes.get(node) if found else None
    return count.first if count else kept.nodes[node].at


def _say_silent(kept: Kept, node: str, now: int) -> str:
    heard = kept.nodes.get(node)
    return f"{node} (heard {format_age(now - heard.at)} ago)" if heard else f"{node} (never heard)"


def _find_nodes(rows: Rows) -> Mapping[RuleId, frozenset[str]]:
    """Rule -> the nodes that have a pod under it."""
    nodes: dict[str, set[str]] = {}
    for endpoint in rows.endpoints.values():
        for name in (endpoint.egress, endpoint.ingress, endpoint.egress_shadow, endpoint.ingress_shadow):
            if name:
                nodes.setdefault(name, set()).add(endpoint.node)
    found: dict[RuleId, set[str]] = {}
    for ruleset, where in nodes.items():
        for key in _list_rules(rows.rulesets.get(ruleset)):
            found.setdefault(key, set()).update(where)
    return {key: frozenset(where) for key, where in found.items()}


def _list_rules(ruleset: Ruleset | None) -> Iterator[RuleId]:
    if ruleset is None:
        return
    for rule in (*ruleset.admin, *ruleset.network_policy, *ruleset.baseline):
        for source, digest in zip(rule.sources, rule.hashes, strict=False):
            yield source.kind, source.namespace, source.name, digest


def _with_namespaces(world: World, rows: Rows) -> World:
    return replace(world, namespaces={name: Namespace(name, labels) for name, labels in rows.namespaces.items()})


def _read_time(text: str) -> int:
    try:
        return int(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp())
    except ValueError:
        return 0


def format_age(seconds: float) -> str:
    """``5d``, ``3h``, ``20m`` or ``12s``: the largest unit that it fills."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(int(seconds), 0)}s"


# ---------------------------------------------------------------------------------------------------------------------
# Pods


@dataclass(frozen=True, slots=True)
class PodAnswer:
    """What one pod may reach and be reached by, in words, and what it did. ``usage`` None: nothing was reported."""

    namespace: str
    pod: str
    may: Mapping[Direction, tuple[str, ...]]
    usage: PodUsage | None


def find_pods(rows: Rows, kept: Kept) -> list[PodAnswer]:
    """Every pod that is governed now."""
    answers = []
    for key, endpoint in sorted(rows.endpoints.items()):
        usage = kept.pods.get(key)
        answers.append(
            PodAnswer(
                namespace=key[0],
                pod=key[1],
                may={way: _list_allowed(rows.ruleset_of(endpoint, way), way) for way in Direction},
                usage=usage if usage is not None and usage.uid == endpoint.uid else None,
            )
        )
    return answers


def _list_allowed(ruleset: Ruleset | None, direction: Direction) -> tuple[str, ...]:
    """Rules in their order, and what happens to the rest. Passes are left out: they only lead on."""
    if ruleset is None:
        return ("unknown: its rules are not in the state",)
    is_egress = direction is Direction.EGRESS
    rules = [*ruleset.admin, *ruleset.network_policy, *(() if ruleset.isolated else ruleset.baseline)]
    said = [
        f"{format_rule(rule.action, rule.peers, rule.ports, is_egress=is_egress)} ({rule.sources[0].name})"
        for rule in rules
        if rule.action is not Action.PASS
    ]
    if ruleset.dns_implicit:
        said.append("Accept to the trusted resolvers, DNS alone (implicit)")
    said.append("nothing else" if ruleset.isolated else f"else {ruleset.default.name.lower()} (default)")
    return tuple(said)
