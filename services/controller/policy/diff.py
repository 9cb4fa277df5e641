"""Two states of rows -> the changes between them, in an order that is safe to stop at anywhere.

Facts that nothing refers to yet come first, then what rulesets are made of, then rulesets, then endpoints (the flip);
then removals in the reverse order. A controller that dies at any row leaves a state that is closed: no endpoint
without its rulesets and identity, no ruleset without its peersets, no address without its identity.

``apply(old, diff(old, new)) == new`` for any two states.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter

import msgspec

from schemas import wire

PHASES = (
    "source",
    "namespace",
    "identity",
    "address",
    "frontend",
    "config",
    "domain",
    "peerset",
    "ruleset",
    "endpoint",
)
"""Kinds of rows, ``yett.policy.<kind>``, in order of publication; any other comes after them.

Sources first: a controller that dies right after must know what it had accepted.
"""


class RowChange(msgspec.Struct, frozen=True, gc=False):
    """One row to write; ``body`` None: to remove."""

    subject: str
    body: bytes | None


def diff(old: Mapping[str, bytes], new: Mapping[str, bytes]) -> list[RowChange]:
    """What makes ``old`` into ``new``, ordered."""
    changes = [RowChange(subject, body) for subject, body in new.items() if old.get(subject) != body]
    changes += [RowChange(subject, None) for subject in old if subject not in new]
    return order(changes)


def order(changes: Iterable[RowChange]) -> list[RowChange]:
    """Changes in an order that is safe at every prefix; ties by subject, so that a plan is reproducible."""
    puts: list[list[RowChange]] = [[] for _ in range(len(PHASES) + 1)]
    removals: list[list[RowChange]] = [[] for _ in range(len(PHASES) + 1)]
    kind, phase = "", len(PHASES)
    for change in sorted(changes, key=attrgetter("subject")):
        # Sorted by subject, the changes of one kind follow one another.
        if not kind or not change.subject.startswith(kind):
            name = change.subject.removeprefix(wire.POLICY_PREFIX).partition(".")[0]
            kind, phase = f"{wire.POLICY_PREFIX}{name}.", _PHASE_OF.get(name, len(PHASES))
        (removals if change.body is None else puts)[phase].append(change)
    return [change for of_phase in (*puts, *reversed(removals)) for change in of_phase]


def apply(rows: Mapping[str, bytes], changes: Iterable[RowChange]) -> dict[str, bytes]:
    """The state after some changes."""
    state = dict(rows)
    for change in changes:
        if change.body is None:
            state.pop(change.subject, None)
        else:
            state[change.subject] = change.body
    return state


_PHASE_OF = {kind: phase for phase, kind in enumerate(PHASES)}
