"""From what is present to what is wanted, as ordered writes: make before break.

Rules of this module:

* What is referred to is written before what refers to it: rule masks, then the lookups that lead to them, then the
  endpoints (the flip), then the epoch, by which live flows are judged again. Deletes come last, in reverse, and are
  followed by a second epoch, because a flow may have been judged between flip and delete.
* Every prefix of a plan is a state that is safe to stop at; a plan applied twice is a no-op.
* All choice is here; whoever applies a plan chooses nothing.

Deliberately absent: layouts, file descriptors, what entries mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from enum import StrEnum

Entries = Mapping[bytes, bytes]

ORDER = (
    # What an answer may teach; first, so that nothing is learned under a guard that is not complete.
    "guard",
    # Rule masks and rulesets: nothing refers to a new one yet.
    "peers",
    "ports",
    "mixed",
    "rulesets",
    # Lookups that lead to them. ``classes`` before ``ipcache``: an identity without its class would meet no Deny.
    "classes",
    "cidrs4",
    "cidrs6",
    "port_classes",
    # ``frontends`` before ``ipcache``: the own node's pass must not be reached around what is judged before it.
    "frontends",
    "ipcache",
    "domains",
    "resolvers",
    # The flip.
    "config",
    "endpoint_addresses",
    "endpoints_far",
    "endpoints",
)
NOT_JUDGED = frozenset({"guard", "domains", "config"})
"""Maps that decide what is learned or reported, never a verdict: they do not bump the epoch.

The resolvers in ``config`` are those of ``resolvers``, which does.
"""


class Kind(StrEnum):
    PUT = "put"
    DELETE = "delete"
    BUMP = "bump"
    MOVE = "move"
    """Flows go where regions are now."""
    CLEAR = "clear"
    """What endpoints kept in sets that change hands is forgotten."""


@dataclass(frozen=True, slots=True)
class Op:
    """One step: a batch of writes to one map, a batch of deletes, a new epoch, or flows that move."""

    kind: Kind
    map: str = ""
    entries: dict[bytes, bytes] = field(default_factory=dict)
    """PUT, CLEAR: the entries. DELETE: the keys, with empty values."""


def plan_changes(wanted: Mapping[str, Entries], present: Mapping[str, Entries]) -> list[Op]:
    """The ops that lead from ``present`` to ``wanted``. Maps absent from ``wanted`` are left alone."""
    puts: dict[str, dict[bytes, bytes]] = {}
    deletes: dict[str, Set[bytes]] = {}
    for name, entries in wanted.items():
        now = present.get(name, {})
        puts[name] = {key: value for key, value in entries.items() if now.get(key) != value}
        deletes[name] = now.keys() - entries.keys()
    return order_changes(puts, deletes)


def order_changes(puts: Mapping[str, dict[bytes, bytes]], deletes: Mapping[str, Set[bytes]]) -> list[Op]:
    """Ordered ops for these writes and deletes. ValueError for a map without a place in the order."""
    unknown = (puts.keys() | deletes.keys()) - set(ORDER)
    if unknown:
        raise ValueError(f"no place in the order for {sorted(unknown)}")
    written = [Op(Kind.PUT, name, puts[name]) for name in ORDER if puts.get(name)]
    removed = [Op(Kind.DELETE, name, _sorted_keys(deletes[name])) for name in reversed(ORDER) if deletes.get(name)]
    return [*_followed_by_epoch(written), *_followed_by_epoch(removed)]


ROWS = ("peers", "ports", "mixed", "rulesets")
"""What lookups lead to."""


def order_retreat(puts: Mapping[str, dict[bytes, bytes]], deletes: Mapping[str, Set[bytes]]) -> list[Op]:
    """The same writes and deletes after a plan that a full map stopped, back to the state before it.

    That plan deleted nothing, so every row is still there that the state before needs, and what it added to the lookups
    leads to rows that mean the same: lookups may shrink first, which makes the room that their writes need.
    """
    kept = {name: entries for name, entries in puts.items() if name not in ROWS}
    shrunk = {name: keys for name, keys in deletes.items() if name not in ROWS}
    first = order_changes({name: puts.get(name, {}) for name in ROWS}, {})
    last = order_changes({}, {name: deletes.get(name, set()) for name in ROWS})
    return [*first, *order_changes({}, shrunk), *order_changes(kept, {}), *last]


def _sorted_keys(keys: Set[bytes]) -> dict[bytes, bytes]:
    return dict.fromkeys(sorted(keys), b"")


def _followed_by_epoch(ops: list[Op]) -> Iterator[Op]:
    yield from ops
    if any(op.map not in NOT_JUDGED for op in ops):
        yield Op(Kind.BUMP)


def format_plan(ops: list[Op]) -> str:
    """One line an op, for people and for golden tests."""
    return "\n".join(op.kind if op.kind is Kind.BUMP else f"{op.kind} {op.map} {len(op.entries)}" for op in ops)
