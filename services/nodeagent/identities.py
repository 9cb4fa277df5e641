"""Which local selectors select which identity, kept up to date piece by piece.

Rules of this module: an identity's labels are immutable, its namespace's are not; a selector is evaluated only on
identities that its strictest requirement leaves over. An identity that no local selector selects has no class at all.
Deliberately absent: rulesets, addresses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from schemas.policy import IdentityRow, Labels, NodePeer, PodPeer, Selector
from schemas.selectors import IN, NAMESPACE_NAME_LABEL, peer_selects_identity
from services.nodeagent.classes import ClassTable, TrackedDict

SelectorPeer = PodPeer | NodePeer


class IdentityIndex:
    """Feeds ``classes`` (identity -> class). Selectors are known by their canonical text."""

    def __init__(self, table: ClassTable[int, str], classes: TrackedDict[int, int]) -> None:
        self._table = table
        self._classes = classes
        self._selectors: dict[str, SelectorPeer] = {}
        self._identities: dict[int, IdentityRow] = {}
        self._matches: dict[int, set[str]] = {}
        self._namespaces: dict[str, Labels] = {}
        self._by_namespace: dict[str, set[int]] = {}
        self._by_label: dict[tuple[str, str], set[int]] = {}

    def namespaces(self) -> frozenset[str]:
        """Names of the namespaces known."""
        return frozenset(self._namespaces)

    def numbers(self) -> frozenset[int]:
        """The identities known."""
        return frozenset(self._identities)

    def of_namespace(self, name: str) -> frozenset[int]:
        """The identities of one namespace."""
        return frozenset(self._by_namespace.get(name, ()))

    def set_identity(self, number: int, row: IdentityRow | None) -> None:
        """An identity's row, or None if it is gone."""
        self._remove(number)
        if row is None:
            return
        self._identities[number] = row
        self._by_namespace.setdefault(row.namespace, set()).add(number)
        for label in row.labels.items():
            self._by_label.setdefault(label, set()).add(number)
        self._evaluate(number)

    def _remove(self, number: int) -> None:
        row = self._identities.pop(number, None)
        if row is None:
            return
        self._by_namespace[row.namespace].discard(number)
        for label in row.labels.items():
            self._by_label[label].discard(number)
        del self._matches[number]
        self._table.forget(number)
        self._classes.drop(number)

    def set_namespace(self, name: str, labels: Labels | None) -> None:
        """A namespace's labels, or None if it is gone (its name is then its only label)."""
        if self._namespaces.get(name) == labels:
            return
        if labels is None:
            self._namespaces.pop(name, None)
        else:
            self._namespaces[name] = labels
        for number in self._by_namespace.get(name, ()):
            self._evaluate(number)

    def _evaluate(self, number: int) -> None:
        row = self._identities[number]
        self._matches[number] = {
            text for text, peer in self._selectors.items() if peer_selects_identity(peer, row, self._namespaces)
        }
        self._classify(number)

    def _classify(self, number: int) -> None:
        members = self._matches[number]
        if members:
            self._classes[number] = self._table.assign(number, frozenset(members))
        else:
            self._table.forget(number)
            self._classes.drop(number)

    def set_selectors(self, selectors: Mapping[str, SelectorPeer]) -> None:
        """The selectors that local rulesets use now."""
        moved: set[int] = set()
        for text in self._selectors.keys() - selectors.keys():
            del self._selectors[text]
            gone = {number for number, members in self._matches.items() if text in members}
            for number in gone:
                self._matches[number].discard(text)
            moved |= gone
        for text in selectors.keys() - self._selectors.keys():
            peer = self._selectors[text] = selectors[text]
            for number in self._candidates(peer):
                if peer_selects_identity(peer, self._identities[number], self._namespaces):
                    self._matches[number].add(text)
                    moved.add(number)
        for number in moved:
            self._classify(number)

    def _candidates(self, peer: SelectorPeer) -> Iterable[int]:
        if isinstance(peer, NodePeer):
            found = self._labelled(peer.nodes)
            return self._identities if found is None else found
        for requirement in peer.namespaces.requirements:
            if requirement.operator == IN and requirement.key == NAMESPACE_NAME_LABEL:
                return {one for name in requirement.values for one in self._by_namespace.get(name, ())}
        found = self._labelled(peer.pods)
        return self._identities if found is None else found

    def _labelled(self, selector: Selector) -> set[int] | None:
        """Identities that one In requirement leaves over; None if there is no such requirement."""
        for requirement in selector.requirements:
            if requirement.operator == IN:
                labels = ((requirement.key, value) for value in requirement.values)
                return {one for label in labels for one in self._by_label.get(label, ())}
        return None
