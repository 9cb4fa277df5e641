"""The last accepted version of every policy, setting and node class, as rows, and what a former controller had
accepted.

An object whose present version is bad stays as it was when it was good, across a restart as well.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from schemas import wire
from schemas.policy import SourceRow
from schemas.terms import PolicyKind
from services.controller.policy.model import NodeClass, Policy, PolicyKey, Settings
from services.controller.policy.parse import API_OF, MODE_ANNOTATION, MODE_AUDIT, parse_object
from services.controller.rows import RowStore

SETTINGS_KIND, NODE_CLASS_KIND = "ConfigMap", "NodeClass"
POLICY_KINDS = frozenset(kind.value for kind in PolicyKind)
KINDS = POLICY_KINDS | {SETTINGS_KIND, NODE_CLASS_KIND}
"""What is remembered across a restart: what says what may pass, and is not of a kind that every server has."""
Accepted = Policy | Settings | NodeClass


class Sources:
    """Policies, settings and node classes by key, with the specs that they were read from."""

    def __init__(self, rows: RowStore) -> None:
        self._rows = rows
        self._restored: dict[PolicyKey, SourceRow] = {}
        self._accepted: dict[PolicyKey, str] = {}
        self._seen: set[PolicyKey] = set()

    def see(self, key: PolicyKey) -> None:
        """Some version of it is present, good or bad."""
        self._seen.add(key)

    def unseen(self, kinds: Collection[str]) -> list[PolicyKey]:
        """What a former controller had accepted of these kinds and nothing present has replaced, in order."""
        return sorted(key for key in self._restored.keys() - self._seen if key[0] in kinds)

    def is_accepted(self, key: PolicyKey) -> bool:
        """Whether a good version of it was seen by this controller."""
        return key in self._accepted

    def is_of_another(self, key: PolicyKey, uid: str) -> bool:
        """Whether what was accepted under this key, by this controller or a former one, was an object of another uid:
        deleted, and not the last good version of the one that has its name now."""
        restored = self._restored.get(key)
        known = self._accepted.get(key) or (restored.uid if restored else "")
        return bool(uid and known) and uid != known

    def accept(self, key: PolicyKey, parsed: Accepted, spec: Any) -> None:
        """A good version. WireError if it is too large to be remembered; it is accepted all the same."""
        self._restored.pop(key, None)
        policy = parsed if isinstance(parsed, Policy) else None
        self._accepted[key] = policy.uid if policy else ""
        row = SourceRow(
            kind=key[0],
            namespace=key[1],
            name=key[2],
            uid=policy.uid if policy else "",
            generation=policy.generation if policy else 0,
            spec=msgspec.Raw(msgspec.json.encode(_plain(spec), order="deterministic")),
            created=policy.created if policy else "",
            is_audited=policy is not None and policy.is_audited,
        )
        self._rows.put(wire.subject_source(*key), wire.encode(row))

    def drop(self, key: PolicyKey) -> None:
        """It is gone."""
        self._restored.pop(key, None)
        self._seen.discard(key)
        self._accepted.pop(key, None)
        self._rows.drop(wire.subject_source(*key))

    def restore(self, row: SourceRow) -> None:
        """What a former controller had accepted."""
        if row.kind in KINDS:
            self._restored[row.kind, row.namespace, row.name] = row

    def forget_restored(self) -> None:
        """What a former controller had accepted and nobody has asked for is gone."""
        self._restored.clear()

    def revive(self, key: PolicyKey) -> tuple[Accepted, Any] | None:
        """(a restored version, its spec); None if there is none, or it is not good any more."""
        row = self._restored.get(key)
        if row is None:
            return None
        return read_source(row)


def read_source(row: SourceRow) -> tuple[Accepted, Any] | None:
    """(what a row remembers, its spec); None if it is not good any more, or of no kind of ours."""
    if row.kind not in KINDS:
        return None
    metadata: dict[str, Any] = {"name": row.name, "namespace": row.namespace or None, "uid": row.uid}
    metadata |= {"generation": row.generation, "creationTimestamp": row.created}
    metadata |= {"annotations": {MODE_ANNOTATION: MODE_AUDIT} if row.is_audited else None}
    spec = msgspec.json.decode(row.spec)
    version, kind = _APIS[row.kind]
    field = "data" if row.kind == SETTINGS_KIND else "spec"
    parsed, _ = parse_object({"apiVersion": version, "kind": kind, "metadata": metadata, field: spec})
    return (parsed, spec) if isinstance(parsed, Accepted) else None


def _plain(value: Any) -> Any:
    """YAML's value as JSON's: text keys, and text for what JSON does not know (dates)."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)


_APIS = {kind.value: API_OF[kind] for kind in PolicyKind} | {
    SETTINGS_KIND: ("v1", SETTINGS_KIND),
    NODE_CLASS_KIND: ("eks.amazonaws.com/v1", NODE_CLASS_KIND),
}
