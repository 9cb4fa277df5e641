"""Two states of rows -> the changes between them, in an order that is safe to stop at anywhere.

Facts that nothing refers to yet come first, then what rulesets are made of, then rulesets, then endpoints (the flip);
then removals in the reverse order. A controller that dies at any row leaves a state that is closed: no endpoint
without its rulesets and identity, no ruleset without its peersets, no address without its identity.

``apply(old, diff(old, new)) == new`` for any two states.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from schemas import wire

PHASES = (
    "yett.policy.source.",
    "yett.policy.namespace.",
    "yett.policy.identity.",
    "yett.policy.address.",
    "yett.policy.frontend.",
    wire.SUBJECT_CONFIG,
    "yett.policy.domain.",
    "yett.policy.peerset.",
    "yett.policy.ruleset.",
    "yett.policy.endpoint.",
)
"""In order of publication. Sources first: a controller that dies right after must know what it had accepted."""


@dataclass(frozen=True, slots=True)
class RowChange:
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
    return sorted(changes, key=_place)


def apply(rows: Mapping[str, bytes], changes: Iterable[RowChange]) -> dict[str, bytes]:
    """The state after some changes."""
    state = dict(rows)
    for change in changes:
        if change.body is None:
            state.pop(change.subject, None)
        else:
            state[change.subject] = change.body
    return state


def _place(change: RowChange) -> tuple[int, int, str]:
    phase = _phase(change.subject)
    return (0, phase, change.subject) if change.body is not None else (1, -phase, change.subject)


def _phase(subject: str) -> int:
    for phase, prefix in enumerate(PHASES):
        if subject.startswith(prefix):
            return phase
    return len(PHASES)
