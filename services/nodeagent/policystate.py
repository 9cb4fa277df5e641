"""One proven policy state: immutable tables that share what did not change with the state before.

A revision changes a few rows of perhaps 100,000. ``Table`` keeps its rows in many small dicts and copies only those
that change, so a new state costs microseconds, and whoever holds an old one keeps seeing the old one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec

from schemas import policy, wire
from schemas.policy import (
    AddressRow,
    Config,
    DomainRow,
    EndpointRow,
    FrontendRow,
    IdentityRow,
    NamespaceRow,
    PeersetRow,
    Revision,
    Ruleset,
)
from schemas.terms import IdentityId

K = TypeVar("K")
V = TypeVar("V")

BUCKETS = 1024
"""100,000 rows make about 100 a bucket: copying the list and one bucket costs some microseconds."""


class Table(Mapping[K, V], Generic[K, V]):
    """An immutable mapping; ``with_changes`` makes the next one."""

    __slots__ = ("_buckets", "_length")

    def __init__(self) -> None:
        self._buckets: list[dict[K, V]] = [{}] * BUCKETS
        self._length = 0

    def __getitem__(self, key: K) -> V:
        return self._buckets[hash(key) % BUCKETS][key]

    def __iter__(self) -> Iterator[K]:
        for bucket in self._buckets:
            yield from bucket

    def __len__(self) -> int:
        return self._length

    def with_changes(self, changes: Mapping[K, V | None]) -> Table[K, V]:
        """The table after these changes; None removes (a key that is absent may be removed)."""
        after: Table[K, V] = Table()
        after._buckets = self._buckets.copy()
        after._length = self._length
        fresh: set[int] = set()
        for key, value in changes.items():
            index = hash(key) % BUCKETS
            if index not in fresh:
                after._buckets[index] = self._buckets[index].copy()
                fresh.add(index)
            bucket = after._buckets[index]
            before = len(bucket)
            if value is None:
                bucket.pop(key, None)
            else:
                bucket[key] = value
            after._length += len(bucket) - before
        return after


FrontendKey = tuple[str, int, int]
"""(address, protocol, port)."""
EndpointKey = tuple[str, str]
"""(namespace, pod)."""


@dataclass(frozen=True, slots=True)
class PolicyState:
    """The rows at one revision. ``revision`` None: nothing was ever proven, everything is empty.

    Addresses are canonical text. ``endpoints`` are this node's own.
    """

    revision: Revision | None = None
    config: Config = field(default_factory=Config)
    namespaces: Table[str, NamespaceRow] = field(default_factory=Table)
    identities: Table[IdentityId, IdentityRow] = field(default_factory=Table)
    addresses: Table[str, AddressRow] = field(default_factory=Table)
    frontends: Table[FrontendKey, FrontendRow] = field(default_factory=Table)
    rulesets: Table[str, Ruleset] = field(default_factory=Table)
    peersets: Table[str, PeersetRow] = field(default_factory=Table)
    endpoints: Table[EndpointKey, EndpointRow] = field(default_factory=Table)
    domains: Table[str, DomainRow] = field(default_factory=Table)

    @property
    def epoch(self) -> str:
        return self.revision.epoch if self.revision else ""

    @property
    def number(self) -> int:
        """The revision's number, 0 before the first."""
        return self.revision.number if self.revision else 0

    @property
    def trace(self) -> str:
        """traceparent of the change that made this state."""
        return self.revision.trace if self.revision else ""


# ---------------------------------------------------------------------------------------------------------------------
# Subjects <-> tables


@dataclass(frozen=True, slots=True)
class TableKind:
    """One table: its name in ``PolicyState``, its row type, how a subject's tokens make a key, a row its subject."""

    name: str
    prefix: str
    type: type[msgspec.Struct]
    key: Callable[[str], Any]
    subject: Callable[[Any], str]
    is_content_addressed: bool = False


def _frontend_key(token: str) -> FrontendKey:
    address, protocol, port = token.split("-")
    return wire.decode_address(address), int(protocol), int(port)


def _endpoint_key(tokens: str) -> EndpointKey:
    _, namespace, pod = tokens.split(".")
    return wire.decode_name(namespace), wire.decode_name(pod)


KINDS: tuple[TableKind, ...] = (
    TableKind(
        "namespaces",
        "yett.policy.namespace.",
        policy.NamespaceRow,
        wire.decode_name,
        lambda row: wire.subject_namespace(row.name),
    ),
    TableKind(
        "identities", "yett.policy.identity.", policy.IdentityRow, int, lambda row: wire.subject_identity(row.id)
    ),
    TableKind(
        "addresses",
        "yett.policy.address.",
        policy.AddressRow,
        wire.decode_address,
        lambda row: wire.subject_address(row.address),
    ),
    TableKind(
        "frontends",
        "yett.policy.frontend.",
        policy.FrontendRow,
        _frontend_key,
        lambda row: wire.subject_frontend(row.address, row.protocol, row.port),
    ),
    TableKind("rulesets", "yett.policy.ruleset.", policy.Ruleset, str, lambda row: "", is_content_addressed=True),
    TableKind("peersets", "yett.policy.peerset.", policy.PeersetRow, str, lambda row: "", is_content_addressed=True),
    TableKind(
        "endpoints",
        "yett.policy.endpoint.",
        policy.EndpointRow,
        _endpoint_key,
        lambda row: wire.subject_endpoint(row.node, row.namespace, row.pod),
    ),
    TableKind(
        "domains",
        "yett.policy.domain.",
        policy.DomainRow,
        wire.decode_pattern,
        lambda row: wire.subject_domain(row.pattern),
    ),
)
CONFIG = "config"
"""Name under which a change of ``Config`` is listed; its one key is the empty string."""


def find_kind(subject: str) -> TableKind | None:
    """The table that a subject belongs to; None for those that make no table (config, node, leader, revision)."""
    for kind in KINDS:
        if subject.startswith(kind.prefix):
            return kind
    return None
