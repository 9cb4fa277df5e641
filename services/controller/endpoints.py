"""Endpoint rows: which rulesets each pod has.

* Pods that every question answers alike (profile, default, named ports) are one *group*. Its rows are a flock, whose
  part is the pair of rulesets: a flip changes the part, and makes no row anew.
* A pod that is not bound to a node has no row yet.
* A group that a policy under audit governs has shadows beside its rulesets; they are rows like any other ruleset.

Deliberately absent: which policies govern whom (``rulings``), the rows of rulesets (``cohorts``), of facts (``facts``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from schemas import wire
from schemas.policy import Config, EndpointRow
from schemas.terms import Default, NodeName
from services.controller.cohorts import Cohort, Cohorts, name_shadow
from services.controller.facts import Facts
from services.controller.flocks import Flock, Row
from services.controller.policy.defaults import default_of
from services.controller.policy.model import ObjectKey, Pod, PolicyKey, Settings
from services.controller.policy.select import Governed, Profile, profile_of
from services.controller.rows import RowStore
from services.controller.rulesets import Numbers
from services.controller.rulings import Rulings

LABEL_VALUE_MAX = 63
"""As Kubernetes has it; a manifest's longer value is cut."""
Question = tuple[Profile, Default | None, Numbers]
"""What a group is known by. No default: its pods are not bound to a node."""


@dataclass(slots=True, eq=False)
class Group:
    """``flock``: the endpoint row of each pod, none while the pods are not bound."""

    question: Question
    governed: Governed
    default: Default | None
    ports: Numbers
    flock: Flock = field(default_factory=Flock)
    cohort: Cohort | None = None


class Endpoints:
    """Follows ``Facts.touched`` and ``Rulings.stale``, and clears them."""

    def __init__(self, rows: RowStore, facts: Facts, rulings: Rulings) -> None:
        self._rows = rows
        self._facts = facts
        self._rulings = rulings
        self._cohorts = Cohorts(rows, rulings)
        self._groups: dict[Question, Group] = {}
        self._group_of: dict[ObjectKey, Group] = {}
        self._groups_of: dict[Governed, list[Group]] = {}

    @property
    def left_out(self) -> list[PolicyKey]:
        """The policies that did not fit the NetworkPolicy tier of some ruleset in use, in order."""
        return self._cohorts.left_out

    def nodes_by_policy(self) -> dict[PolicyKey, set[NodeName]]:
        """The nodes that hold a ruleset of each policy that governs a pod."""
        found: dict[PolicyKey, set[NodeName]] = {}
        pods = self._facts.world.pods
        for group in self._groups.values():
            nodes = {pods[key].node for key, row in group.flock.rows.items() if row}
            for policy in group.governed.applied:
                found.setdefault(policy, set()).update(nodes)
        return found

    def write_rows(self, settings: Settings) -> None:
        """Bring the rows of everything stale up to date. The facts' rows must be."""
        touched = self._facts.touched
        defaults: dict[tuple[str, str], Default] = {}
        fresh = [group for key in touched if (group := self._regroup(key, settings, defaults)) is not None]
        self._rulings.settle()
        self._flip(fresh, dns=settings.config.dns_implicit)
        for key in touched:
            group = self._group_of.get(key)
            row = group.flock.rows[key] if group is not None else None
            if row is not None and group is not None and group.cohort is not None:
                body = self._encode(self._facts.world.pods[key], group.cohort, settings.config)
                self._rows.write_member(group.flock, row, body)
        touched.clear()

    # -- groups -------------------------------------------------------------------------------------------------------

    def _regroup(self, key: ObjectKey, settings: Settings, defaults: dict[tuple[str, str], Default]) -> Group | None:
        """Move a pod to the group it belongs to now; -> that group."""
        pod = self._facts.world.pods.get(key)
        row: Row | None = None
        new: Group | None = None
        if pod is not None and pod.is_governed:
            new = self._find_group(pod, settings, defaults)
            if pod.node:
                row = self._rows.at(wire.subject_endpoint(pod.node, pod.namespace, pod.name))
        old = self._group_of.pop(key, None)
        before = old.flock.rows.pop(key) if old is not None else None
        if new is not None:
            self._group_of[key] = new
            new.flock.rows[key] = row
        if before is not None and before is not row:
            self._rows.write(before, None)
        if old is not None and not old.flock.rows:
            self._disband(old)
        return new

    def _find_group(self, pod: Pod, settings: Settings, defaults: dict[tuple[str, str], Default]) -> Group:
        default: Default | None = None
        if pod.node:
            place = (pod.namespace, pod.node)
            if place not in defaults:
                defaults[place] = default_of(pod, self._facts.world, settings)
            default = defaults[place]
        question = (profile_of(pod.namespace, pod.labels), default, tuple(sorted(pod.named_ports().items())))
        group = self._groups.get(question)
        if group is None:
            governed = self._rulings.selection.find(question[0])
            group = self._groups[question] = Group(question, governed, *question[1:])
            self._groups_of.setdefault(governed, []).append(group)
        return group

    def _disband(self, group: Group) -> None:
        del self._groups[group.question]
        if group.cohort is not None:
            self._cohorts.leave(group.flock, group.cohort)
        others = self._groups_of[group.governed]
        others.remove(group)
        if not others:
            del self._groups_of[group.governed]
            self._rulings.selection.forget(group.question[0])

    # -- the flip -----------------------------------------------------------------------------------------------------

    def _flip(self, fresh: Iterable[Group], *, dns: bool) -> None:
        """Bring these groups, and those that other policies govern now, to their cohorts; then ask what changed."""
        changed = self._rulings.take_changed()
        groups = dict.fromkeys(fresh)
        for governed in self._rulings.stale:
            groups.update(dict.fromkeys(self._groups_of.get(governed, ())))
        self._rulings.stale.clear()
        for group in groups:
            if group.default is not None:
                question = group.governed.applied, group.default, group.ports
                group.cohort = self._cohorts.join(group.flock, group.cohort, *question, dns=dns)
        self._cohorts.ask_again(changed)

    def _encode(self, pod: Pod, cohort: Cohort, config: Config) -> bytes:
        egress, ingress = cohort.sides
        row = EndpointRow(
            node=pod.node,
            namespace=pod.namespace,
            pod=pod.name,
            uid=pod.uid,
            identity=self._facts.identity_of_pod(pod.key),
            egress=egress.enforced.hash,
            ingress=ingress.enforced.hash,
            egress_shadow=name_shadow(egress),
            ingress_shadow=name_shadow(ingress),
            addresses=pod.addresses,
            labels={key: pod.labels[key][:LABEL_VALUE_MAX] for key in config.flow_labels if key in pod.labels},
            owner=pod.owner if config.flow_owners else "",
        )
        return wire.encode(row)
