"""The present objects, whoever leads: a term's state of the world is built from them, then follows the events.

Pure. A standby keeps it hot, so that taking over needs no reading of files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol

from schemas.policy import Labels
from schemas.status import Problem
from schemas.usage import PeerKind
from services.controller.ledger import RowChange, Rows
from services.controller.manifests import ManifestEvent
from services.controller.policy.model import PolicyKey
from services.controller.policy.parse import identify
from services.controller.policy_status import Standing
from services.controller.sources import KINDS, POLICY_KINDS


class State(Protocol):
    """The world and the rows that follow from it (``world.State``)."""

    def upsert(self, obj: Any, file: str = "") -> list[Problem]: ...
    def delete(self, kind: str, namespace: str, name: str) -> None: ...
    def rows(self) -> dict[str, bytes]: ...
    def changes(self) -> Sequence[RowChange]: ...
    def problems(self) -> list[Problem]: ...
    def restore(self, rows: Rows) -> None: ...
    def adopt_unseen(self, kinds: Collection[str]) -> list[PolicyKey]: ...
    def forget_unseen(self) -> None: ...
    def standings(self, keys: Iterable[PolicyKey]) -> dict[PolicyKey, Standing]: ...


class Inventory:
    """Every object's present version, with its file, what is wrong with whole files, and which kinds are unread."""

    def __init__(self) -> None:
        self._objects: dict[PolicyKey, ManifestEvent] = {}
        self._file_problems: dict[str, tuple[Problem, ...]] = {}
        self._unread: dict[str, frozenset[str]] = {}
        self._adopted: list[PolicyKey] = []

    def take(self, events: Iterable[ManifestEvent]) -> None:
        """Events in their order."""
        for event in events:
            if event.problems is not None:
                self._file_problems[event.file] = event.problems
            elif event.unread is not None:
                self._unread[event.file] = event.unread
            elif event.gone is not None:
                self._objects.pop(event.gone, None)
            elif (key := identify(event.obj)) is not None:
                self._objects[key] = event

    @property
    def problems(self) -> list[Problem]:
        """What is wrong with whole files."""
        return [problem for file in sorted(self._file_problems) for problem in self._file_problems[file]]

    def policies(self) -> dict[PolicyKey, dict[str, Any]]:
        """The present policies."""
        found = ((key, event.obj) for key, event in self._objects.items() if key[0] in POLICY_KINDS)
        return {key: obj for key, obj in found if obj is not None}

    def find_uid(self, key: PolicyKey) -> str | None:
        """Of a present object, empty if it has none (an object from a file); None if there is no such object."""
        event = self._objects.get(key)
        if event is None or event.obj is None:
            return None
        uid = _read_metadata(event.obj).get("uid")
        return uid if isinstance(uid, str) else ""

    def find_labels(self, kind: PeerKind, name: str) -> Labels | None:
        """A pod's labels, or those that a Service selects by, by namespace/name; None if nothing is known of it."""
        event = self._objects.get(("Service" if kind is PeerKind.SERVICE else "Pod", *_split(name)))
        if event is None or event.obj is None:
            return None
        if kind is PeerKind.SERVICE:
            spec = event.obj.get("spec")
            labels = spec.get("selector") if isinstance(spec, dict) else None
            return labels if isinstance(labels, dict) and labels else None
        labels = _read_metadata(event.obj).get("labels")
        return labels if isinstance(labels, dict) else {}

    @property
    def doubted(self) -> frozenset[str]:
        """The kinds of which what is not here is not known to be gone: all while a file cannot be read."""
        if any(problem.severity == "error" for problem in self.problems):
            return KINDS
        return frozenset().union(*self._unread.values())

    def fill(self, state: State, remembered: Rows) -> None:
        """Bring a fresh state to the present: what the stream remembers, then every object."""
        state.restore(remembered)
        self._adopted = []
        self.follow(state, self._objects.values())
        if doubted := self.doubted:
            self._adopted = state.adopt_unseen(doubted)
        state.forget_unseen()

    def follow(self, state: State, events: Iterable[ManifestEvent]) -> None:
        """Tell the state of objects that came, changed or went; ``take`` had them before."""
        for event in events:
            if event.gone is not None:
                state.delete(*event.gone)
            elif event.obj is not None:
                state.upsert(event.obj, event.file)
        if self._adopted:
            self._settle(state)

    def _settle(self, state: State) -> None:
        """Of what was adopted is gone what could be read now and is not here."""
        doubted = self.doubted
        for key in self._adopted:
            if key[0] not in doubted and key not in self._objects:
                state.delete(*key)
        self._adopted = [key for key in self._adopted if key[0] in doubted]


def _read_metadata(obj: dict[str, Any]) -> dict[str, Any]:
    metadata = obj.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def _split(name: str) -> tuple[str, str]:
    namespace, _, own = name.partition("/")
    return namespace, own
