"""Numbers for identities: allocated once, never reused within an epoch, the same after a restart.

An identity is a namespace and those labels that some policy names, derived port labels included. The stream is the
memory: ``restore`` reads rows and tombstones back, so that a restarted controller renumbers nothing.
"""

from __future__ import annotations

from schemas.policy import IdentityRow, Labels
from schemas.terms import IDENTITY_FIRST_FREE, IDENTITY_PARITY_BIT, AddressKind, IdentityId

Content = tuple[AddressKind, str, frozenset[tuple[str, str]]]


class IdentitiesExhausted(RuntimeError):
    """All 2**31 numbers of an epoch are used; the stream must be made anew."""


class Identities:
    """Content <-> number. ``parity``: top bit of every number of this epoch, so that two epochs never meet."""

    def __init__(self, parity: int = 0) -> None:
        self._base = IDENTITY_PARITY_BIT if parity else 0
        self._next = self._base + IDENTITY_FIRST_FREE
        self._numbers: dict[Content, IdentityId] = {}

    def restore(self, number: IdentityId, row: IdentityRow | None) -> None:
        """A number that the stream knows; ``row`` None: a removed one, which stays taken. Other epochs' are ignored."""
        if (number ^ self._base) & IDENTITY_PARITY_BIT or number < self._base + IDENTITY_FIRST_FREE:
            return
        self._next = max(self._next, number + 1)
        if row is not None:
            self._numbers[_content(row.kind, row.namespace, row.labels)] = number

    def number_of(self, kind: AddressKind, namespace: str, labels: Labels) -> IdentityId:
        """The number of an identity, a new one if it has none."""
        content = _content(kind, namespace, labels)
        number = self._numbers.get(content)
        if number is None:
            if self._next - self._base >= IDENTITY_PARITY_BIT:
                raise IdentitiesExhausted
            number = self._numbers[content] = IdentityId(self._next)
            self._next += 1
        return number


def _content(kind: AddressKind, namespace: str, labels: Labels) -> Content:
    return kind, namespace, frozenset(labels.items())
