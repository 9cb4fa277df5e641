"""Classes: what looks the same to every local ruleset shares one number, and (ruleset, class) has one rule mask.

Identities, prefixes, port ranges and domain nodes all work alike. A *content* is what a rule names (a selector, a CIDR
peer, a port range, a pattern). An *entity* is what a packet has (an identity, a prefix node, ..). The members of an
entity are the contents that match it; entities with equal members share a class.

Rules of this module:

* The mask of (ruleset, class) is a function of the two contents alone: a row is added or removed, never changed. So a
  policy edit is a neutral split: new classes are filled, entities are repointed, old classes are removed.
* Work is proportional to what changed: an entity that moves, or the classes that a ruleset's contents are in.
* A class that nothing uses keeps its number until ``settle``: its rows may still be in the kernel.

Deliberately absent: what matches what, the order of writes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Generic, TypeVar

from services.nodeagent.numbers import Numbers

K = TypeVar("K")
V = TypeVar("V")
C = TypeVar("C", bound=Hashable)
E = TypeVar("E", bound=Hashable)


class TrackedDict(dict[K, V]):
    """A dict that remembers which keys got another value (or none) since ``take_touched``.

    Only item assignment, ``pop`` of one key and ``del`` are used on it: other ways in are refused by omission of use.
    """

    def __init__(self) -> None:
        super().__init__()
        self.touched: set[K] = set()

    def __setitem__(self, key: K, value: V) -> None:
        if key not in self or self[key] != value:
            self.touched.add(key)
            super().__setitem__(key, value)

    def __delitem__(self, key: K) -> None:
        self.touched.add(key)
        super().__delitem__(key)

    def drop(self, key: K) -> None:
        """Delete if present."""
        if key in self:
            del self[key]

    def become(self, wanted: Mapping[K, V]) -> None:
        """Have exactly this content."""
        for key in [key for key in self if key not in wanted]:
            del self[key]
        for key, value in wanted.items():
            self[key] = value

    def fill(self, keys: range, value: V) -> None:
        """``keys`` all have this value; faster than one by one, for the port array."""
        self.touched.update(keys)  # type: ignore[arg-type]  # only used where K is int
        super().update(dict.fromkeys(keys, value))  # type: ignore[arg-type]

    def take_touched(self) -> set[K]:
        """The keys touched since the last call."""
        touched, self.touched = self.touched, set()
        return touched


@dataclass(slots=True)
class _Class(Generic[C]):
    number: int
    members: frozenset[C]
    uses: int = 0


@dataclass(slots=True)
class _User(Generic[C]):
    """One ruleset: content -> mask."""

    masks: Mapping[C, int]
    classes: set[int] = field(default_factory=set)


class ClassTable(Generic[E, C]):
    """Entities, their classes, and the rows (ruleset handle, class) -> mask that follow."""

    def __init__(
        self,
        numbers: Numbers,
        rows: TrackedDict[tuple[int, int], int],
        *,
        flag: int,
        make_key: Callable[[E, frozenset[C]], str],
    ) -> None:
        """``rows`` may be shared with other tables whose ``flag`` (top bits of the class) differs."""
        self._numbers = numbers
        self._rows = rows
        self._flag = flag
        self._make_key = make_key
        self._classes: dict[str, _Class[C]] = {}
        self._by_number: dict[int, _Class[C]] = {}
        self._class_of: dict[E, str] = {}
        self._containing: dict[C, set[int]] = {}
        self._users: dict[int, _User[C]] = {}
        self._unsettled = True
        """At first: numbers remembered from before may stand for content that is wanted no more."""

    def __iter__(self) -> Iterator[E]:
        return iter(self._class_of)

    def number_of(self, entity: E) -> int:
        """The class of an entity, flag included; 0 if it has none."""
        key = self._class_of.get(entity)
        return 0 if key is None else self._flag | self._classes[key].number

    def assign(self, entity: E, members: frozenset[C]) -> int:
        """The entity has these members now. Its class, flag included. NumbersExhausted."""
        key = self._make_key(entity, members)
        if self._class_of.get(entity) != key:
            self._use(key, members)
            self.forget(entity)
            self._class_of[entity] = key
        elif self._classes[key].members != members:
            self._change_members(self._classes[key], members)
        return self._flag | self._classes[key].number

    def forget(self, entity: E) -> None:
        """The entity is gone. Unknown ones are fine."""
        key = self._class_of.pop(entity, None)
        if key is None:
            return
        used = self._classes[key]
        used.uses -= 1
        if used.uses == 0:
            self._unlink(used)
            del self._classes[key]
            del self._by_number[used.number]
            self._unsettled = True

    def _use(self, key: str, members: frozenset[C]) -> None:
        found = self._classes.get(key)
        if found is None:
            found = _Class(self._numbers.take(key), members)
            self._classes[key] = found
            self._by_number[found.number] = found
            self._link(found)
        elif found.members != members:
            self._change_members(found, members)
        found.uses += 1

    def _change_members(self, changed: _Class[C], members: frozenset[C]) -> None:
        """Only where the key is not made of the members: domain rows, whose number outlives a change of patterns."""
        for content in changed.members - members:
            self._containing[content].discard(changed.number)
        for content in members - changed.members:
            self._containing.setdefault(content, set()).add(changed.number)
        changed.members = members
        for handle, user in self._users.items():
            self._write_row(handle, user, changed)

    def _link(self, added: _Class[C]) -> None:
        concerned: set[int] = set()
        for content in added.members:
            self._containing.setdefault(content, set()).add(added.number)
        for handle, user in self._users.items():
            if not user.masks.keys().isdisjoint(added.members):
                concerned.add(handle)
        for handle in concerned:
            self._write_row(handle, self._users[handle], added)

    def _unlink(self, removed: _Class[C]) -> None:
        for content in removed.members:
            numbers = self._containing[content]
            numbers.discard(removed.number)
            if not numbers:
                del self._containing[content]
        for handle, user in self._users.items():
            if removed.number in user.classes:
                user.classes.discard(removed.number)
                self._rows.drop((handle, self._flag | removed.number))

    def _write_row(self, handle: int, user: _User[C], row_class: _Class[C]) -> None:
        mask = 0
        for content in row_class.members:
            mask |= user.masks.get(content, 0)
        key = (handle, self._flag | row_class.number)
        if mask:
            self._rows[key] = mask
            user.classes.add(row_class.number)
        else:
            self._rows.drop(key)
            user.classes.discard(row_class.number)

    def add_ruleset(self, handle: int, masks: Mapping[C, int]) -> None:
        """A ruleset with these contents is in force; its rows for the classes of today follow."""
        user = self._users[handle] = _User(masks)
        concerned: set[int] = set()
        for content in masks:
            concerned |= self._containing.get(content, set())
        for number in concerned:
            self._write_row(handle, user, self._by_number[number])

    def drop_ruleset(self, handle: int) -> None:
        """The ruleset is no longer in force; its rows go."""
        user = self._users.pop(handle, None)
        for number in user.classes if user else ():
            self._rows.drop((handle, self._flag | number))

    def contents(self) -> set[C]:
        """Every content that some ruleset names."""
        named: set[C] = set()
        for user in self._users.values():
            named.update(user.masks)
        return named

    def settle(self) -> None:
        """Everything unused is gone from the kernel: the numbers may be given again."""
        if self._unsettled:
            self._numbers.keep_only(self._classes)
            self._unsettled = False


def digest_texts(texts: list[str]) -> str:
    """A short key for a set of texts, whatever their order."""
    return blake2b("\n".join(sorted(texts)).encode(), digest_size=16).hexdigest()
