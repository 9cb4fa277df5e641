"""Prefixes that the policies of namespaces may need, so that no tenant can fill the agents' tables of prefixes.

A namespace has a quota, and all of them together four fifths of a table: the last fifth is for policies of the whole
cluster. A policy that does not fit is left out: its rules match nothing, what it isolates stays isolated.

Rules of this module:

* Of a namespace the longest beginning in order of age is kept, policies under audit after all others: they crowd out
  nothing that is enforced.
* A prefix counts once in a namespace, an exception of a block as much as the block. No order of arrival enters.

Pure. Deliberately absent: how agents split blocks (``services.nodeagent.prefixes``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from schemas.policy import CidrPeer
from services.controller.policy.ground import all_rules
from services.controller.policy.model import NAMESPACED_KINDS, Policy, PolicyKey, Settings


def read_prefixes(policy: Policy) -> frozenset[str]:
    """What its rules need of a namespace's quota; nothing for a policy of the whole cluster."""
    if policy.kind not in NAMESPACED_KINDS:
        return frozenset()
    blocks = (peer for rule in all_rules(policy) for peer in rule.peers if isinstance(peer, CidrPeer))
    return frozenset(prefix for block in blocks for prefix in (block.cidr, *block.excepts))


class PrefixQuotas:
    """The policies of namespaces that need prefixes, and which of them have to do without their rules."""

    def __init__(self) -> None:
        self.left_out: frozenset[PolicyKey] = frozenset()
        self._policies: dict[PolicyKey, Policy] = {}
        self._prefixes: dict[PolicyKey, frozenset[str]] = {}
        self._loads: Counter[str] = Counter()
        """Namespace -> prefixes of its policies, each policy counted by itself: at least what it needs."""
        self._settled: Settings | None = None

    def put(self, policy: Policy) -> Policy:
        """A policy's present version -> as it is in force until ``settle`` says otherwise."""
        self.drop(policy.key)
        prefixes = read_prefixes(policy)
        if not prefixes:
            return policy
        self._policies[policy.key] = policy
        self._prefixes[policy.key] = prefixes
        self._loads[policy.namespace] += len(prefixes)
        self._settled = None
        return _without_rules(policy) if policy.key in self.left_out else policy

    def drop(self, key: PolicyKey) -> None:
        """A policy is gone; unknown ones are fine."""
        policy = self._policies.pop(key, None)
        if policy is not None:
            self._loads[policy.namespace] -= len(self._prefixes.pop(key))
            self._loads += Counter()  # without the namespaces that have none any more
            self._settled = None

    def whole(self, policy: Policy) -> Policy:
        """A policy as its author wrote it, whether it is left out or not."""
        return self._policies.get(policy.key, policy)

    def settle(self, settings: Settings) -> list[Policy]:
        """Decide which do not fit -> those for which that changed, as they are in force now."""
        if self._settled == settings:
            return []
        self._settled = settings
        before, self.left_out = self.left_out, self._choose(settings)
        changed = sorted((before ^ self.left_out) & self._policies.keys())
        policies = [self._policies[key] for key in changed]
        return [_without_rules(one) if one.key in self.left_out else one for one in policies]

    def _choose(self, settings: Settings) -> frozenset[PolicyKey]:
        room, own_room = settings.prefixes_of_namespaces, settings.prefixes_per_namespace
        if self._loads.total() <= room and max(self._loads.values(), default=0) <= own_room:
            return frozenset()
        return choose_left_out(self._policies.values(), self._prefixes, room=room, own_room=own_room)


def choose_left_out(
    policies: Iterable[Policy], prefixes: Mapping[PolicyKey, frozenset[str]], *, room: int, own_room: int
) -> frozenset[PolicyKey]:
    """Which of these policies do not fit. ``room``: prefixes of all namespaces; ``own_room``: of each."""
    kept: dict[str, set[str]] = {}
    full: set[str] = set()
    left_out = []
    for policy in sorted(policies, key=lambda each: (each.is_audited, *each.age_key)):
        own = kept.setdefault(policy.namespace, set())
        added = prefixes[policy.key] - own
        if policy.namespace in full or len(added) > room or len(own) + len(added) > own_room:
            full.add(policy.namespace)
            left_out.append(policy.key)
        else:
            own |= added
            room -= len(added)
    return frozenset(left_out)


def _without_rules(policy: Policy) -> Policy:
    return replace(policy, egress=(), ingress=())
