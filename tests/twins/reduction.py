"""The smallest scenario that still shows a difference: parts are taken away as long as it does.

Greedy and deterministic. A list loses halves, quarters, .. single items; an object loses fields; each trial is judged
by the predicate alone, so a part whose loss makes the scenario unusable stays.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

Document = dict[str, Any]
Path = tuple[str | int, ...]
TRIALS_MAX = 600
"""Where it stops; what is left differs in any case."""
KEPT = frozenset({"apiVersion", "kind", "metadata", "name", "id", "from", "to", "address", "ip"})
"""Fields without which nothing is told apart."""


def reduce_document(document: Document, still_differs: Callable[[Document], bool]) -> Document:
    """A document that differs, and from which nothing more can be taken. ``document`` itself must differ."""
    reducer = _Reducer(copy.deepcopy(document), still_differs)
    while reducer.run_once() and reducer.trials < TRIALS_MAX:
        pass
    return reducer.document


class _Reducer:
    def __init__(self, document: Document, still_differs: Callable[[Document], bool]) -> None:
        self.document = document
        self.trials = 0
        self._still_differs = still_differs

    def run_once(self) -> bool:
        """Whether anything could be taken away."""
        before = copy.deepcopy(self.document)
        for top in ("probes", "objects", "resolutions"):
            self._shorten((top,))
        for path in list(_containers(self.document, ())):
            found = _find(self.document, path)
            if isinstance(found, list) and path not in (("probes",), ("objects",), ("resolutions",)):
                self._shorten(path)
            elif isinstance(found, dict) and len(path) > 1:
                self._strip(path)
        return before != self.document

    def _shorten(self, path: Path) -> None:
        items = _find(self.document, path)
        size = len(items) if isinstance(items, list) else 0
        while size >= 1:
            start = 0
            while start < len(items):
                if self._try(path, items[:start] + items[start + size :]):
                    items = items[:start] + items[start + size :]
                else:
                    start += size
            size //= 2

    def _strip(self, path: Path) -> None:
        fields = _find(self.document, path)
        for key in [key for key in fields if key not in KEPT]:
            smaller = {each: value for each, value in fields.items() if each != key}
            if self._try(path, smaller):
                fields = smaller

    def _try(self, path: Path, value: Any) -> bool:
        if self.trials >= TRIALS_MAX:
            return False
        self.trials += 1
        trial = _replaced(self.document, path, value)
        if not self._still_differs(trial):
            return False
        self.document = trial
        return True


def _containers(value: Any, path: Path) -> Iterator[Path]:
    """Every list and object, outer ones first."""
    if isinstance(value, dict | list):
        yield path
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _containers(each, (*path, key))


def _find(value: Any, path: Path) -> Any:
    """What stands at a path, None where it is gone."""
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError):
            return None
    return value


def _replaced(document: Document, path: Path, value: Any) -> Document:
    changed = copy.deepcopy(document)
    place: Any = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed
