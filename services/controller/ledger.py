"""What the stream holds, and the messages that bring it to what is wanted.

Rules: an existing row with equal bytes is never said again; a ``NodeRow`` follows where endpoint rows changed; a
``Revision`` follows where the digest did. So a leader that finds everything as it wants it says nothing, and one that
finds a predecessor's half-finished work completes or removes it, orphans included.

Pure. Deliberately absent: the fence and the sending (``publisher``), the order of rows (``policy.diff``'s).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from schemas import wire
from schemas.digest import Digest
from schemas.policy import AddressRow, EndpointRow, NodeRow, Revision
from schemas.terms import NodeName, RevisionNumber
from services.common.messages import Message
from services.common.signing import Signer

TOMBSTONE_SECONDS = 23 * 3600
"""Removals older than this count as forgotten: an hour less than ``wire.DELETE_TTL``, for clocks that differ."""

NODE_PREFIX = "yett.policy.node."
_NODE_TOKEN = 3
"""Place of the node in ``yett.policy.endpoint.<node>.<ns>.<pod>``."""


class RowChange(Protocol):
    """One step of a diff; ``body`` None removes the row."""

    @property
    def subject(self) -> str: ...
    @property
    def body(self) -> bytes | None: ...


Rows = Mapping[str, bytes]


class Outgoing(msgspec.Struct, frozen=True):
    """One message to send, without its fence."""

    subject: str
    body: bytes
    headers: dict[str, str]


class Snapshot(msgspec.Struct, frozen=True):
    """A replay of the stream: the policy rows, the node rows, the last revision.

    ``removed``: subjects whose removal is still readable. ``unknown``: subjects that are in no table.
    """

    rows: dict[str, bytes]
    nodes: dict[str, bytes]
    revision: Revision | None = None
    removed: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def remembered(self) -> dict[str, bytes]:
        """The rows, and an empty body for each that was removed: what is known of numbers that were given away."""
        return dict.fromkeys(self.removed, b"") | self.rows


def read_snapshot(messages: Iterable[Message]) -> Snapshot:
    """The snapshot that these messages, in the stream's order, make up.

    A revision that does not decode counts as none. Subjects in no table are left alone: a newer controller's.
    """
    last = {message.subject: message for message in messages}
    live = {subject: message.body for subject, message in last.items() if not message.is_delete}
    removed = tuple(subject for subject, message in last.items() if message.is_delete)
    live.pop(wire.SUBJECT_LEADER, None)
    revision = _read_revision(live.pop(wire.SUBJECT_REVISION, b""))
    nodes = {subject: live.pop(subject) for subject in list(live) if subject.startswith(NODE_PREFIX)}
    unknown = tuple(subject for subject in live if not _is_known(subject))
    for subject in unknown:
        del live[subject]
    return Snapshot(live, nodes, revision, removed, unknown)


class Ledger:
    """The rows of the stream under one leader. Planning updates it at once: if sending fails, it is void."""

    def __init__(
        self, snapshot: Snapshot, *, epoch: str, least_number: int = 0, term: int = 0, signer: Signer | None = None
    ) -> None:
        """``least_number``: no revision number up to it was ever given, where the snapshot's revision is unreadable.

        ``signer``: signs every revision; one that it has not signed counts as unpublished, and is said again.
        """
        revision = snapshot.revision if snapshot.revision and snapshot.revision.epoch == epoch else None
        self._epoch = epoch
        self.rows = dict(snapshot.rows)
        self.number = RevisionNumber(revision.number if revision else least_number)
        self._term = term
        self._signer = signer
        is_current = revision is not None and (signer is None or signer.has_signed(revision))
        self._published_digest = revision.digest if revision and is_current else ""
        self._nodes = dict(snapshot.nodes)
        self._endpoints: dict[str, Digest] = {}
        self._stale_nodes: set[str] = set()
        self._digest = Digest()
        self._floor = Floor(self.number)
        for subject, body in self.rows.items():
            self._note(wire.find_entry(subject), subject, body)
        for subject, body in self._nodes.items():
            self._digest.put(subject, body)
        self._stale_nodes.update(subject.rpartition(".")[2] for subject in self._nodes)

    @property
    def nodes(self) -> frozenset[NodeName]:
        """Nodes with endpoints."""
        return frozenset(NodeName(wire.decode_name(token)) for token, rows in self._endpoints.items() if len(rows))

    def plan_rows(self, changes: Iterable[RowChange], *, trace: str) -> list[Outgoing]:
        """These changes, in their order, then the node rows of nodes whose endpoints changed."""
        rows, headers = self.rows, _Headers(trace)
        outgoing = [
            self._plan_change(change.subject, change.body, headers)
            for change in changes
            if rows.get(change.subject) != change.body
        ]
        for token in sorted(self._stale_nodes):
            outgoing += self._plan_node(token, trace)
        self._stale_nodes.clear()
        return outgoing

    def plan_revision(self, *, trace: str, now_seconds: float) -> tuple[Revision, Outgoing] | None:
        """The next revision, or None if the last one still describes the rows."""
        digest = self._digest.hexdigest()
        if digest == self._published_digest:
            return None
        self._published_digest = digest
        self.number = RevisionNumber(self.number + 1)
        floor = self._floor.advance(self.number, now_seconds)
        revision = Revision(
            epoch=self._epoch, number=self.number, floor=floor, digest=digest, trace=trace, term=self._term
        )
        if self._signer is not None:
            revision = self._signer.sign(revision)
        outgoing = Outgoing(wire.SUBJECT_REVISION, wire.encode(revision), wire.headers_for(revision, trace=trace))
        return revision, outgoing

    def _plan_change(self, subject: str, body: bytes | None, headers_of: _Headers) -> Outgoing:
        entry = wire.find_entry(subject)
        headers = headers_of[entry.kind]
        if body is None:
            headers = headers | _deletion_headers(read_uid(subject, self.rows.pop(subject, b"")))
            self._floor.note_removal()
        else:
            self.rows[subject] = body
        self._note(entry, subject, body)
        return Outgoing(subject, body or b"", headers)

    def _plan_node(self, token: str, trace: str) -> list[Outgoing]:
        subject = NODE_PREFIX + token
        endpoints = self._endpoints.get(token)
        if endpoints is None or not len(endpoints):
            self._endpoints.pop(token, None)
            if self._nodes.pop(subject, None) is None:
                return []
            self._digest.remove(subject)
            self._floor.note_removal()
            headers = {wire.HEADER_SCHEMA: f"{NodeRow.__name__}/{wire.SCHEMA_VERSION}", **_deletion_headers("")}
            return [Outgoing(subject, b"", headers)]
        digest = endpoints.hexdigest()
        if self._is_node_current(subject, digest, len(endpoints)):
            return []
        node = NodeName(wire.decode_name(token))
        number = RevisionNumber(self.number + 1)
        row = NodeRow(node=node, number=number, digest=digest, count=len(endpoints))
        self._nodes[subject] = wire.encode(row)
        self._digest.put(subject, self._nodes[subject])
        return [Outgoing(subject, self._nodes[subject], wire.headers_for(row, trace=trace))]

    def _is_node_current(self, subject: str, digest: str, count: int) -> bool:
        try:
            row = wire.decode(subject, self._nodes[subject])
        except (KeyError, wire.WireError):
            return False
        return isinstance(row, NodeRow) and (row.digest, row.count) == (digest, count)

    def _note(self, entry: wire.Entry, subject: str, body: bytes | None) -> None:
        """Keep the digest, or that of the endpoint's node, in step with one row."""
        digest = (
            self._digest if entry.digested else self._digest_of_node(subject) if entry.type is EndpointRow else None
        )
        if digest is None:
            return
        if body is None:
            digest.remove(subject)
        else:
            digest.put(subject, body)

    def _digest_of_node(self, subject: str) -> Digest:
        """Over the endpoints of the node of this one, which is about to change."""
        token = subject.split(".", _NODE_TOKEN + 1)[_NODE_TOKEN]
        self._stale_nodes.add(token)
        digest = self._endpoints.get(token)
        if digest is None:
            digest = self._endpoints[token] = Digest()
        return digest


class _Headers(dict[str, dict[str, str]]):
    """Kind -> the headers of its rows, made once for all that are planned together; nobody changes them."""

    def __init__(self, trace: str) -> None:
        self._trace = {wire.HEADER_TRACE: trace} if trace else {}

    def __missing__(self, kind: str) -> dict[str, str]:
        self[kind] = {wire.HEADER_SCHEMA: f"{kind}/{wire.SCHEMA_VERSION}", **self._trace}
        return self[kind]


class Floor:
    """The oldest revision from which following misses no removal.

    A removal in revision k is readable for a day; after that, who has not yet seen k must replay: the floor is k.
    What a predecessor removed, and when, is not known: the floor starts at the last revision there was.
    """

    def __init__(self, number: RevisionNumber) -> None:
        self._floor = number
        self._removals: deque[tuple[float, RevisionNumber]] = deque()
        self._has_removal = False

    def note_removal(self) -> None:
        """The revision being prepared removes something."""
        self._has_removal = True

    def advance(self, number: RevisionNumber, now_seconds: float) -> RevisionNumber:
        """The floor that revision ``number``, published now, declares."""
        if self._has_removal:
            self._removals.append((now_seconds, number))
            self._has_removal = False
        while self._removals and now_seconds - self._removals[0][0] > TOMBSTONE_SECONDS:
            self._floor = self._removals.popleft()[1]
        return self._floor


def read_uid(subject: str, body: bytes) -> str:
    """Whose address or endpoint the row is; empty for other kinds and for what does not decode."""
    try:
        row = wire.decode(subject, body)
    except wire.WireError:
        return ""
    return row.uid if isinstance(row, AddressRow | EndpointRow) else ""


def _deletion_headers(uid: str) -> dict[str, str]:
    headers = {wire.HEADER_OPERATION: wire.OPERATION_DELETE, wire.HEADER_TTL: wire.DELETE_TTL}
    if uid:
        headers[wire.HEADER_UID] = uid
    return headers


def _read_revision(body: bytes) -> Revision | None:
    try:
        row = wire.decode(wire.SUBJECT_REVISION, body)
    except wire.WireError:
        return None
    return row if isinstance(row, Revision) else None


def _is_known(subject: str) -> bool:
    try:
        wire.find_entry(subject)
    except wire.WireError:
        return False
    return True
