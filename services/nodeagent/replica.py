"""The agent's copy of the policy rows, which believes nothing that a digest has not proven.

Rules:

* Messages go into a working copy. A ``Revision`` whose digest equals the working copy's proves it; only then does it
  become the ``state``, all at once. What did not match changes nothing: the last proven state stays in force.
* The node's own endpoint rows must equal the digest of its ``NodeRow``, which is itself part of the revision's digest.
* A replay (``reset``) starts an empty working copy. When it is proven, the difference from the last proven state is
  what changed: rows that did not come again are gone then, and not before.
* A follower that lags on a stream with one message a subject may meet a revision whose rows have been replaced already:
  doubt, not damage, and the next revision usually ends it. Doubt that lasts asks for a replay, ever less often.
* A revision that the keys do not vouch for proves nothing, whatever its digest (``services.common.signing``).
* A message that cannot be read (malformed, of a newer schema, under a subject that is not its own) is counted, told
  once per kind, and skipped: the digest cannot match without it, so the state stays at the last good one.

Pure: time is passed in, in seconds of any steady clock. Deliberately absent: NATS, files, kernel maps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import msgspec

from schemas import wire
from schemas.digest import Digest
from schemas.policy import AddressRow, Config, EndpointRow, NodeRow, Revision
from schemas.status import Problem
from schemas.terms import NodeName
from services.common.messages import Message
from services.nodeagent.policystate import CONFIG, KINDS, PolicyState, TableKind, find_kind

DOUBT_SECONDS = 5.0
"""How long doubt lasts before a replay is asked for; doubled at each replay that did not help."""
DOUBT_LONGEST_SECONDS = 300.0

_ENDPOINTS = "yett.policy.endpoint."
_NODES = "yett.policy.node."
_TRUST = "trust"
"""Beside the kinds of row in ``_problems``: a revision that was not believed, until one is."""


def filters(node: NodeName) -> list[str]:
    """What the node's agent follows: all that the revision's digest covers, and its own endpoints."""
    covered = [entry.prefix for entry in wire.TABLE if entry.digested]
    own = f"{_ENDPOINTS}{wire.encode_name(node)}."
    return [prefix + ">" if prefix.endswith(".") else prefix for prefix in [*covered, own, wire.SUBJECT_REVISION]]


@dataclass(frozen=True, slots=True)
class Applied:
    """A state was proven. ``changed``: subjects that differ from the state proven before.

    ``keys``: the same by table name of ``PolicyState`` (``config`` with the key ""), as that table's keys.
    """

    revision: Revision
    state: PolicyState
    changed: frozenset[str]
    keys: Mapping[str, frozenset[Any]]


FindFault = Callable[[Revision, Revision | None], str]


class SavedRows(msgspec.Struct, frozen=True):
    """The on-disk copy: a proven state's rows, and where in which stream its revision stands."""

    node: str
    created: str
    sequence: int
    revision: Revision
    rows: dict[str, bytes]
    version: int = 1


class SavedRowsError(ValueError):
    """A saved copy that cannot be used."""


class Replica:
    """Feed it with what a follower yields; ``state`` is the last proven one."""

    def __init__(self, node: NodeName, find_fault: FindFault = lambda revision, present: "") -> None:
        """``find_fault``: why a revision must not be believed, given the one in force; empty if it may."""
        self._find_fault = find_fault
        self.revisions_refused = 0
        self._own = f"{_ENDPOINTS}{wire.encode_name(node)}."
        self._node = node
        self._node_subject = wire.subject_node(node)
        self.state = PolicyState()
        self._proven: dict[str, bytes] = {}
        self._proven_sequence = 0
        self._rows: dict[str, bytes] = {}
        self._before: dict[str, bytes | None] | None = None
        self._start_empty()
        self.is_proven = False
        """Whether the working copy is, as far as known, the state of the last revision seen."""
        self.doubt = "start"
        self._doubting_since: float | None = None
        self._patience_seconds = DOUBT_SECONDS
        self._is_below_floor = False
        self._refused: dict[str, str] = {}
        self.undecodable: dict[str, int] = {}
        """Messages that could not be read, by kind."""
        self._problems: dict[str, Problem] = {}

    # -- feeding

    def reset(self, reason: str) -> None:
        """Everything comes again: begin an empty working copy. The state stays."""
        self._start_empty()
        self._refused.clear()
        self.is_proven = False
        self.doubt = reason
        self._doubting_since = None
        self._is_below_floor = False

    def feed(self, message: Message, now_seconds: float) -> Applied | None:
        """Take one message; returns the newly proven state if it is a revision that proves one."""
        subject = message.subject
        if subject == wire.SUBJECT_REVISION:
            return self._judge(message, now_seconds)
        if subject.startswith(_ENDPOINTS) and not subject.startswith(self._own):
            return None
        if not _is_followed(subject):
            return None
        if message.is_delete:
            self._remove(subject, message.uid)
        else:
            self._put(message)
        return None

    def wants_replay(self, now_seconds: float) -> bool:
        """Whether doubt has lasted too long, or following cannot end it."""
        if self._doubting_since is None:
            return False
        return self._is_below_floor or now_seconds - self._doubting_since >= self._patience_seconds

    def note_replay(self) -> None:
        """A replay was asked for; the next one is asked for later, until a revision has been proven."""
        self._doubting_since = None
        self._is_below_floor = False
        self._patience_seconds = min(self._patience_seconds * 2, DOUBT_LONGEST_SECONDS)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What could not be read, once per kind."""
        return tuple(self._problems.values())

    # -- the copy on disk

    def save(self, created: str) -> bytes:
        """The proven state as bytes, for ``load``. ``created``: the stream it came from. Nothing proven: b""."""
        if self.state.revision is None:
            return b""
        saved = SavedRows(self._node, created, self._proven_sequence, self.state.revision, self._proven_rows())
        return msgspec.msgpack.encode(saved)

    def load(self, data: bytes) -> tuple[str, int]:
        """Start from a saved copy: it becomes the state, if it still proves itself.

        Returns (created, sequence) of the revision, from which on to follow: the revision comes again and confirms.
        SavedRowsError if it is unreadable, another node's, or does not hash to its revision.
        """
        try:
            saved = msgspec.msgpack.decode(data, type=SavedRows)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SavedRowsError(f"unreadable: {error}") from error
        if saved.version != 1 or saved.node != self._node:
            raise SavedRowsError(f"of node {saved.node!r}, version {saved.version}")
        for subject, body in saved.rows.items():
            self._put(Message(subject, body, False, 0))
        if not self._is_proof(saved.revision):
            self.reset("start")
            raise SavedRowsError("its rows do not hash to its revision")
        self._accept(saved.revision, saved.sequence)
        self.is_proven = False
        self.doubt = "resumed"
        return saved.created, saved.sequence

    # -- rows

    def _start_empty(self) -> None:
        """An empty working copy. ``_proven`` then holds the proven rows in full, else they are the working ones less
        ``_before``."""
        if self.state.revision is not None:
            self._proven = self._proven_rows()
        self._rows = {}
        self._before = None
        self._decoded: dict[str, msgspec.Struct] = {}
        self._digest = Digest()
        self._own_digest = Digest()

    def _proven_rows(self) -> dict[str, bytes]:
        if self._before is None:
            return self._proven
        rows = dict(self._rows)
        for subject, body in self._before.items():
            if body is None:
                rows.pop(subject, None)
            else:
                rows[subject] = body
        return rows

    def _put(self, message: Message) -> None:
        subject, body = message.subject, message.body
        if self._rows.get(subject) == body:
            self._refused.pop(subject, None)
            return
        try:
            row = _read_row(message)
        except wire.WireError as error:
            self._refuse(subject, error)
            return
        self._refused.pop(subject, None)
        self._remember(subject)
        self._rows[subject] = body
        self._decoded[subject] = row
        self._digest_of(subject).put(subject, body)

    def _remove(self, subject: str, uid: str) -> None:
        self._refused.pop(subject, None)
        if subject not in self._rows or (uid and uid != self._read_uid(subject)):
            return
        self._remember(subject)
        del self._rows[subject]
        self._decoded.pop(subject, None)
        self._digest_of(subject).remove(subject)

    def _remember(self, subject: str) -> None:
        if self._before is not None:
            self._before.setdefault(subject, self._rows.get(subject))

    def _read_uid(self, subject: str) -> str:
        row = self._decoded.get(subject) or wire.decode(subject, self._rows[subject])
        return row.uid if isinstance(row, AddressRow | EndpointRow) else ""

    def _digest_of(self, subject: str) -> Digest:
        return self._own_digest if subject.startswith(_ENDPOINTS) else self._digest

    def _refuse(self, subject: str, error: wire.WireError) -> None:
        self.undecodable[error.kind] = self.undecodable.get(error.kind, 0) + 1
        self._refused[subject] = error.kind
        if error.kind not in self._problems:
            self._problems[error.kind] = Problem(object=subject, path="", message=str(error))

    # -- revisions

    def _judge(self, message: Message, now_seconds: float) -> Applied | None:
        if message.is_delete:
            return None
        try:
            revision = _read_row(message)
        except wire.WireError as error:
            self._refuse(message.subject, error)
            self._start_doubt("a revision that cannot be read", now_seconds)
            return None
        assert isinstance(revision, Revision)
        if fault := self._find_fault(revision, self.state.revision):
            self._distrust(fault, now_seconds)
            return None
        if self._is_proof(revision):
            return self._accept(revision, message.sequence)
        self._is_below_floor = self._before is not None and self.state.number < revision.floor
        self._start_doubt(f"revision {revision.number} does not match the rows", now_seconds)
        return None

    def _distrust(self, fault: str, now_seconds: float) -> None:
        self.revisions_refused += 1
        self._problems[_TRUST] = Problem(object=wire.SUBJECT_REVISION, path="signature", message=fault)
        self._start_doubt(fault, now_seconds)

    def _is_proof(self, revision: Revision) -> bool:
        return self._digest.hexdigest() == revision.digest and self._are_endpoints_proven()

    def _are_endpoints_proven(self) -> bool:
        body = self._rows.get(self._node_subject)
        if body is None:
            return len(self._own_digest) == 0
        row = wire.decode(self._node_subject, body)
        return isinstance(row, NodeRow) and row.digest == self._own_digest.hexdigest()

    def _start_doubt(self, reason: str, now_seconds: float) -> None:
        self.is_proven = False
        self.doubt = reason
        if self._doubting_since is None:
            self._doubting_since = now_seconds

    def _accept(self, revision: Revision, sequence: int) -> Applied | None:
        changed = self._find_changed()
        is_new = self.state.revision is None or changed or revision != self.state.revision
        keys = self._group(changed)
        self.state = self._build_state(revision, keys)
        self._proven = {}
        self._before = {}
        self._decoded.clear()
        self._proven_sequence = sequence
        self.is_proven = True
        self.doubt = ""
        self._doubting_since = None
        self._is_below_floor = False
        self._patience_seconds = DOUBT_SECONDS
        self._problems = {kind: self._problems[kind] for kind in self._problems if kind in self._refused.values()}
        return Applied(revision, self.state, changed, keys) if is_new else None

    def _find_changed(self) -> frozenset[str]:
        if self._before is not None:
            return frozenset(s for s, body in self._before.items() if self._rows.get(s) != body)
        both = self._proven.keys() | self._rows.keys()
        return frozenset(s for s in both if self._proven.get(s) != self._rows.get(s))

    def _group(self, changed: frozenset[str]) -> dict[str, frozenset[Any]]:
        grouped: dict[str, set[Any]] = {}
        for subject in changed:
            if subject == wire.SUBJECT_CONFIG:
                grouped.setdefault(CONFIG, set()).add("")
            elif kind := find_kind(subject):
                grouped.setdefault(kind.name, set()).add(_key(kind, subject))
        return {name: frozenset(keys) for name, keys in grouped.items()}

    def _build_state(self, revision: Revision, keys: Mapping[str, frozenset[Any]]) -> PolicyState:
        tables: dict[str, Any] = {}
        changes: dict[str, dict[Any, Any]] = {name: dict.fromkeys(of) for name, of in keys.items() if name != CONFIG}
        for subject, row in self._decoded.items():
            kind = find_kind(subject)
            if kind is not None and kind.name in changes and (key := _key(kind, subject)) in changes[kind.name]:
                changes[kind.name][key] = row
        for kind in KINDS:
            if kind.name in changes:
                tables[kind.name] = getattr(self.state, kind.name).with_changes(changes[kind.name])
        if CONFIG in keys:
            tables[CONFIG] = self._decoded.get(wire.SUBJECT_CONFIG, Config())
        return replace(self.state, revision=revision, **tables)


def _is_followed(subject: str) -> bool:
    return subject == wire.SUBJECT_CONFIG or subject.startswith(_NODES) or find_kind(subject) is not None


def _key(kind: TableKind, subject: str) -> Any:
    return kind.key(subject[len(kind.prefix) :])


def _read_row(message: Message) -> msgspec.Struct:
    """The row, if we understand it and it stands under its own subject; WireError otherwise."""
    entry = wire.find_entry(message.subject)
    _, _, version = message.schema.partition("/")
    if version and (not version.isdigit() or int(version) > wire.SCHEMA_VERSION):
        raise wire.WireError(entry.kind, f"schema {message.schema}: newer than this agent, which must be upgraded")
    row = wire.decode(message.subject, message.body)
    kind = find_kind(message.subject)
    if kind is not None:
        _check_subject(kind, message, row)
    return row


def _check_subject(kind: TableKind, message: Message, row: msgspec.Struct) -> None:
    if kind.is_content_addressed:
        expected = kind.prefix + blake2b(message.body, digest_size=16).hexdigest()
    else:
        expected = kind.subject(row)
    if expected != message.subject:
        raise wire.WireError(kind.type.__name__, f"{message.subject} holds the row of {expected}")
