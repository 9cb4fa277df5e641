"""Two states of rows -> the changes between them, in an order that is safe to stop at anywhere.

Facts that nothing refers to yet come first, then what rulesets are made of, then rulesets, then endpoints (the flip);
then removals in the reverse order. A controller that dies at any row leaves a state that is closed: no endpoint
without its rulesets and identity, no ruleset without its peersets, no address without its identity.

``apply(old, diff(old, new)) == new`` for any two states.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
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


def order(changes: Iterable[RowChange], flips: Sequence[RowChange] = ()) -> list[RowChange]:
    """Changes in an order that is safe at every prefix; ties by subject, so that a plan is reproducible.

    ``flips``: endpoint rows to write besides, ordered already.
    """
    puts: list[list[RowChange]] = [[] for _ in range(len(PHASES) + 1)]
    removals: list[list[RowChange]] = [[] for _ in range(len(PHASES) + 1)]
    ordered = sorted(changes, key=_subject_of)
    start = 0
    while start < len(ordered):
        end = _end_of_kind(ordered, start)
        name = ordered[start].subject.removeprefix(wire.POLICY_PREFIX).partition(".")[0]
        phase = _PHASE_OF.get(name, len(PHASES))
        puts[phase] += [change for change in ordered[start:end] if change.body is not None]
        removals[phase] += [change for change in ordered[start:end] if change.body is None]
        start = end
    if flips:
        written = puts[_PHASE_OF["endpoint"]]
        puts[_PHASE_OF["endpoint"]] = sorted((*written, *flips), key=_subject_of) if written else list(flips)
    return [change for of_phase in (*puts, *reversed(removals)) for change in of_phase]


def _end_of_kind(ordered: list[RowChange], start: int) -> int:
    """Where, in order of subjects, the kind ends that begins here: all of ``yett.policy.<kind>.`` stand together."""
    subject = ordered[start].subject
    dot = subject.find(".", len(wire.POLICY_PREFIX) if subject.startswith(wire.POLICY_PREFIX) else 0)
    if dot < 0:
        return start + 1
    # "/" is the character after ".".
    return bisect_left(ordered, subject[:dot] + "/", lo=start + 1, key=_subject_of)


def apply(rows: Mapping[str, bytes], changes: Iterable[RowChange]) -> dict[str, bytes]:
    """The state after some changes."""
    state = dict(rows)
    for change in changes:
        if change.body is None:
            state.pop(change.subject, None)
        else:
            state[change.subject] = change.body
    return state


_subject_of = attrgetter("subject")
_PHASE_OF = {kind: phase for phase, kind in enumerate(PHASES)}
