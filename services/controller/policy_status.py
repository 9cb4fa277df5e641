"""What is true of a policy, as conditions for its status. Pure.

* ``Accepted``: whether the present version is in force. False names the path of the fault.
* ``Programmed``: on how many of the nodes that hold a ruleset of this policy its present version is enforced, or
  audited. False, too, while a refused version leaves another one in force: the object does not say what is enforced;
  and while the cluster's switch is off.

A node enforces a version when it has come to the revision by which that version was published.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from schemas.status import Problem
from schemas.terms import NodeName, PolicyKind, RevisionNumber
from services.controller.policy.model import PolicyKey
from services.controller.policy.parse import POLICY_KIND_NAMES, identify

Obj = dict[str, Any]

POLICY_KINDS = frozenset(kind.value for kind in PolicyKind)
ACCEPTED, PROGRAMMED = "Accepted", "Programmed"
PROBLEMS_NAMED = 5
MESSAGE_MAX = 1024
"""Characters; the rest is cut with an ellipsis."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What became of a policy. ``generation``, ``is_audited``: of the version in force; no generation, no version."""

    problems: tuple[Problem, ...]
    generation: int | None
    nodes: frozenset[NodeName]
    is_audited: bool = False
    is_switched_off: bool = False
    """The cluster's switch ``enforce`` is off."""


@dataclass(frozen=True, slots=True)
class PolicyObject:
    """The present object. ``revision``: the one by which this version was published.

    ``api_version``: by which it was read.
    """

    key: PolicyKey
    api_version: str
    uid: str
    generation: int
    revision: RevisionNumber


class Change(Protocol):
    """A ``manifests.ManifestEvent``."""

    @property
    def obj(self) -> Obj | None: ...
    @property
    def gone(self) -> PolicyKey | None: ...


class Published:
    """The policies whose present versions have been published, refused ones included."""

    def __init__(self) -> None:
        self.objects: dict[PolicyKey, PolicyObject] = {}

    def begin(self, objects: Mapping[PolicyKey, Obj], revision: RevisionNumber) -> None:
        """A term begins with these objects; all are published by ``revision``."""
        self.objects = {key: _read_object(key, obj, revision) for key, obj in objects.items()}

    def follow(self, events: Iterable[Change], revision: RevisionNumber) -> None:
        """Objects of any kind that came, changed or went; in force since ``revision``."""
        for event in events:
            if event.gone is not None:
                self.objects.pop(event.gone, None)
            elif event.obj is not None and event.obj.get("kind") in POLICY_KIND_NAMES:
                key = identify(event.obj)
                if key is not None and key[0] in POLICY_KINDS:
                    self.objects[key] = _read_object(key, event.obj, revision)


def _read_object(key: PolicyKey, obj: Obj, revision: RevisionNumber) -> PolicyObject:
    metadata = obj.get("metadata") or {}
    uid, generation = str(metadata.get("uid") or ""), int(metadata.get("generation") or 0)
    return PolicyObject(key, str(obj["apiVersion"]), uid, generation, revision)


@dataclass(frozen=True, slots=True)
class Told:
    """A policy's object and what is true of it. ``api_version``: by which it was read."""

    key: PolicyKey
    api_version: str
    uid: str
    generation: int
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Condition:
    """``status``: True or False."""

    type: str
    status: bool
    reason: str
    message: str

    @property
    def transition(self) -> tuple[str, bool, str]:
        """What makes it worth saying at once; a message alone can wait."""
        return (self.type, self.status, self.reason)


def tell(
    published: Published, standings: Mapping[PolicyKey, Standing], acknowledged: Mapping[str, RevisionNumber]
) -> list[Told]:
    """Every published policy with its conditions. ``acknowledged``: the revision that each node has come to."""
    return [
        Told(key, obj.api_version, obj.uid, obj.generation, describe(obj, standings[key], acknowledged))
        for key, obj in published.objects.items()
    ]


def describe(
    obj: PolicyObject, standing: Standing, acknowledged: Mapping[str, RevisionNumber]
) -> tuple[Condition, Condition]:
    """Accepted and Programmed. ``acknowledged``: the revision that each node has come to."""
    errors = [problem for problem in standing.problems if problem.severity == "error"]
    if errors:
        return Condition(ACCEPTED, False, "Invalid", _list(errors)), _describe_refused(standing)
    warnings = _list(standing.problems)
    in_force = "in force, under audit" if standing.is_audited else "in force"
    accepted = Condition(ACCEPTED, True, "AcceptedWithWarnings" if warnings else "Accepted", warnings or in_force)
    return accepted, _describe_programmed(obj, standing, acknowledged)


def _describe_refused(standing: Standing) -> Condition:
    if standing.generation is None:
        return Condition(PROGRAMMED, False, "Refused", "no version of it is in force")
    return Condition(PROGRAMMED, False, "LastGoodVersion", f"generation {standing.generation} or what is left of it")


def _describe_programmed(
    obj: PolicyObject, standing: Standing, acknowledged: Mapping[str, RevisionNumber]
) -> Condition:
    enforcing = sum(acknowledged.get(node, RevisionNumber(0)) >= obj.revision for node in standing.nodes)
    count = len(standing.nodes)
    if not count:
        return Condition(PROGRAMMED, True, "NothingToEnforce", "it governs no pod on any node")
    if standing.is_switched_off:
        return Condition(PROGRAMMED, False, "SwitchedOff", "the switch enforce is off: nothing is enforced by policy")
    done, message = "Enforced", f"enforced on {enforcing} of {count} nodes"
    if standing.is_audited:
        done, message = "Audited", f"audited on {enforcing} of {count} nodes: it opens and shuts nothing"
    return Condition(PROGRAMMED, enforcing == count, done if enforcing == count else "Pending", message)


def _list(problems: Iterable[Problem]) -> str:
    texts = [f"{problem.path}: {problem.message}" if problem.path else problem.message for problem in problems]
    more = f"; and {len(texts) - PROBLEMS_NAMED} more" if len(texts) > PROBLEMS_NAMED else ""
    text = "; ".join(texts[:PROBLEMS_NAMED]) + more
    return text if len(text) <= MESSAGE_MAX else text[: MESSAGE_MAX - 1] + "…"
