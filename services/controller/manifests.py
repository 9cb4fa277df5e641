"""Objects from a folder of Kubernetes YAML or JSON, watched.

* A file that cannot be read as YAML changes nothing but a problem with its line; what it last gave stays.
* What vanishes is believed only after the folder has been quiet for ``QUIET_SECONDS``: editors truncate, or move a file
  away, before they write it again, and a moment without a Deny is a hole. What appears or changes is taken at once.
* An object that stands in two files: the last change wins, with a warning; where one goes the other one's counts.

Deliberately absent: what objects mean. ``Folder`` is pure; only ``load`` and ``watch`` touch files.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from watchfiles import awatch

from schemas.status import Problem
from services.controller.nesting import DEPTH_MAX, BaseLoader, find_excess, is_too_deep
from services.controller.policy.model import PolicyKey
from services.controller.policy.parse import identify, parse_object

SUFFIXES = (".yaml", ".yml", ".json")
STEP_MILLIS = 1
"""How often the watcher looks whether a burst of changes is over: an event is late by one or two of these."""
DEBOUNCE_MILLIS = 50
QUIET_SECONDS = 0.010
FILE_BYTES_MAX = 64 * 1024 * 1024
"""A larger file is refused with a problem."""


class _Loader(BaseLoader):  # type: ignore[misc]  # the C loader where PyYAML has it, so its type is not known
    """Safe YAML that refuses a key given twice, as kubectl does: one of the two would be lost in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = (key_node.tag, key_node.value if isinstance(key_node.value, str) else id(key_node))
            if key in seen and key_node.value != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class ManifestEvent:
    """One change, exactly one of four: an object's present version (``obj``), an object that is gone (``gone``), what
    is wrong with the whole file (``problems``, which replace its former ones; empty: none any more), or which kinds, as
    in ``parse.identify``, cannot be read, so that none of their objects is known to be gone (``unread``, likewise)."""

    file: str
    obj: dict[str, Any] | None = None
    gone: PolicyKey | None = None
    problems: tuple[Problem, ...] | None = None
    unread: frozenset[str] | None = None


@dataclass
class Folder:
    """What each file last gave."""

    objects: dict[str, dict[PolicyKey, dict[str, Any]]] = field(default_factory=dict)
    problems: dict[str, tuple[Problem, ...]] = field(default_factory=dict)

    def read(self, file: str, text: str | None, *, is_quiet: bool = True) -> list[ManifestEvent]:
        """A file's present text (None: no such file) -> events. Unless ``is_quiet`` nothing is taken for gone."""
        documents, problems = read_documents(file, text) if text is not None else ([], [])
        before = self.objects.get(file, {})
        if documents is None:
            return self._report(file, problems)
        given: dict[PolicyKey, dict[str, Any]] = {}
        for obj in documents:
            key = identify(obj)
            if key is None:
                problems += parse_object(obj, file=file)[1]
            elif key in given:
                problems.append(_problem(file, key, "stands twice in this file; the last one counts"))
                given[key] = obj
            else:
                problems += [
                    _problem(file, key, f"stands in {other} too; the last change counts")
                    for other, objects in self.objects.items()
                    if other != file and key in objects
                ]
                given[key] = obj
        events = [ManifestEvent(file, obj=obj) for key, obj in given.items() if before.get(key) != obj]
        if is_quiet:
            self.objects[file] = given
            events += [self._go(file, key) for key in before if key not in given]
            if text is None:
                self.objects.pop(file, None)
        else:
            self.objects[file] = {**before, **given}
        return self._report(file, problems) + events

    def has_vanished(self, file: str, text: str | None) -> bool:
        """Whether this text lacks an object that the file last gave."""
        documents, _ = read_documents(file, text) if text is not None else ([], [])
        given = {identify(obj) for obj in documents or ()}
        return documents is not None and any(key not in given for key in self.objects.get(file, ()))

    def _go(self, file: str, key: PolicyKey) -> ManifestEvent:
        for other, objects in self.objects.items():
            if other != file and key in objects:
                return ManifestEvent(other, obj=objects[key])
        return ManifestEvent(file, gone=key)

    def _report(self, file: str, problems: list[Problem]) -> list[ManifestEvent]:
        found = tuple(problems)
        if found == self.problems.get(file, ()):
            return []
        self.problems[file] = found
        return [ManifestEvent(file, problems=found)]


def read_documents(file: str, text: str) -> tuple[list[Any] | None, list[Problem]]:
    """The objects of one file, ``List`` kinds unfolded; None and a problem with the line where it is no YAML."""
    try:
        if is_too_deep(text):
            return None, [Problem(object=file, path="", message=f"nested deeper than {DEPTH_MAX} levels", file=file)]
        documents = _read_json(text) if file.endswith(".json") else None
        if documents is None:
            documents = [each for each in yaml.load_all(text, Loader=_Loader) if each is not None]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}" if mark is not None else ""
        cause = getattr(error, "problem", None) or str(error)
        return None, [Problem(object=file, path=line, message=f"not YAML: {cause}", file=file)]
    excess = next((found for found in map(find_excess, documents) if found), "") if "*" in text else ""
    if excess:
        return None, [Problem(object=file, path="", message=f"refused: {excess}", file=file)]
    return [each for document in documents for each in unfold(document)], []


def _read_json(text: str) -> list[Any] | None:
    """One document, in a fraction of YAML's time; None where it is not plain JSON: YAML says what it is."""
    try:
        document = parse_json(text)
    except (ValueError, RecursionError):
        return None
    return [document] if document is not None else []


def parse_json(text: str) -> Any:
    """JSON as RFC 8259 has it: no key twice, no NaN or Infinity, no half of a surrogate pair. ValueError."""
    document = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    if "\\ud" in text.lower():  # the only way by which a surrogate gets in; no row and no answer could carry it
        json.dumps(document, ensure_ascii=False).encode()
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is given twice")
        found[key] = value
    return found


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def unfold(document: Any) -> Iterator[Any]:
    """An object as it is; what a ``List`` kind holds, lists in it as well."""
    is_list = isinstance(document, dict) and str(document.get("kind", "")).endswith("List") and "items" in document
    if not is_list or not isinstance(document["items"], list | None):
        yield document
        return
    for item in document["items"] or ():
        yield from unfold(item)


def _problem(file: str, key: PolicyKey, message: str) -> Problem:
    name = f"{key[0]} {key[1] + '/' if key[1] else ''}{key[2]}"
    return Problem(object=name, path="", message=message, file=file, severity="warning")


# ---------------------------------------------------------------------------------------------------------------------
# Files


def load(folder: Path, state: Folder | None = None) -> list[ManifestEvent]:
    """Everything in a folder now, by file name."""
    state = state if state is not None else Folder()
    events: list[ManifestEvent] = []
    for path in sorted(folder.rglob("*")):
        if _is_manifest(path, folder) and path.is_file():
            events += _read(folder, path, state, is_quiet=True)
    return events


async def watch(folder: Path, *, stop: asyncio.Event | None = None) -> AsyncIterator[list[ManifestEvent]]:
    """First everything that is there, possibly nothing; then every change, as it comes. Ends when ``stop`` is set.

    Raises FileNotFoundError if there is no such folder.
    """
    state = Folder()
    bursts = awatch(folder, stop_event=stop, step=STEP_MILLIS, debounce=DEBOUNCE_MILLIS)
    # The watcher stands before the folder is read, so that nothing falls between the two.
    burst = asyncio.ensure_future(anext(bursts, None))
    try:
        await asyncio.sleep(0)
        yield load(folder, state)
        while (changes := await burst) is not None:
            burst = asyncio.ensure_future(anext(bursts, None))
            paths = {Path(name) for _, name in changes}
            events = await _reread(folder, state, {path for path in paths if _is_manifest(path, folder)})
            if events:
                yield events
    finally:
        burst.cancel()
        await asyncio.gather(burst, return_exceptions=True)
        await bursts.aclose()


async def _reread(folder: Path, state: Folder, paths: set[Path]) -> list[ManifestEvent]:
    """What changed in these files: additions now, removals once they have been quiet."""
    events: list[ManifestEvent] = []
    doubtful = []
    for path in sorted(paths):
        before = set(state.objects.get(_name(folder, path), ()))
        events += _read(folder, path, state, is_quiet=False)
        if before and state.has_vanished(_name(folder, path), _text(path)):
            doubtful.append(path)
    if doubtful:
        await asyncio.sleep(QUIET_SECONDS)
    for path in doubtful:
        events += _read(folder, path, state, is_quiet=True)
    return events


def _read(folder: Path, path: Path, state: Folder, *, is_quiet: bool) -> list[ManifestEvent]:
    return state.read(_name(folder, path), _text(path), is_quiet=is_quiet)


def _text(path: Path) -> str | None:
    """A file's text, None if there is none. Bytes that are no UTF-8 become characters that YAML refuses."""
    try:
        with path.open("rb") as file:
            body = file.read(FILE_BYTES_MAX + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    if len(body) > FILE_BYTES_MAX:
        return "\0 larger than a manifest may be"
    return body.decode("utf-8", errors="replace").replace("\ufffd", "\0")


def _name(folder: Path, path: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _is_manifest(path: Path, folder: Path) -> bool:
    """By suffix; hidden files and folders are an editor's or a version control's."""
    parts = path.relative_to(folder).parts if path.is_relative_to(folder) else path.parts
    return path.suffix in SUFFIXES and not any(part.startswith(".") for part in parts)
