"""Where scenarios and manifests come from: files of YAML, JSON or JSON lines, and folders of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from services.controller.manifests import SUFFIXES, parse_json, read_documents, unfold
from services.controller.policy.model import PolicyKey
from services.controller.policy.parse import identify
from services.scenario.model import Scenario, ScenarioError, read_scenario

LINES_SUFFIX = ".jsonl"


class UnusableInput(ValueError):
    """A file that cannot be read, or is not what it should be; the message names it."""


def find_files(paths: Iterable[Path], suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """The files meant by paths: themselves, and what folders hold, sorted, hidden ones left out. UnusableInput."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(each for each in path.rglob("*") if each.suffix in suffixes and each.is_file())
            found += [each for each in inside if not any(part.startswith(".") for part in each.relative_to(path).parts)]
        elif path.exists():
            found.append(path)
        else:
            raise UnusableInput(f"{path}: no such file")
    return found


def read_manifests(paths: Iterable[Path]) -> list[tuple[str, Any]]:
    """(file, object) of every document, ``List`` kinds unfolded. UnusableInput if a file is not YAML."""
    return [(str(path), obj) for path in find_files(paths) for obj in _read_documents(path)]


def keys_of(objects: Iterable[tuple[str, Any]]) -> list[PolicyKey]:
    """(kind, namespace, name) of those that are Kubernetes objects."""
    return [key for _, obj in objects if (key := identify(obj)) is not None]


def read_scenarios(paths: Iterable[Path]) -> Iterator[Scenario | ScenarioError]:
    """Every scenario of these files and folders in turn, or why it cannot be used.

    Manifests in a folder are passed over: scenarios name them in ``files``. One that is given by name is no scenario.
    """
    for given in paths:
        found = False
        for path in find_files([given], (*SUFFIXES, LINES_SUFFIX)):
            for each in _read_file(path, takes_manifests=given.is_dir()):
                found = True
                yield each
        if not found:
            yield ScenarioError("", ["no scenario in it"], file=str(given))


def _read_file(path: Path, *, takes_manifests: bool) -> Iterator[Scenario | ScenarioError]:
    try:
        documents = list(_read_lines(path)) if path.suffix == LINES_SUFFIX else _list_documents(path)
    except UnusableInput as error:
        yield ScenarioError("", [str(error).removeprefix(f"{path}: ")], file=str(path))
        return
    for index, document in enumerate(documents):
        if takes_manifests and identify(document) is not None:
            continue
        default = path.stem if len(documents) == 1 else f"{path.stem}[{index}]"
        try:
            yield read_scenario(document, file=str(path), default_name=default)
        except ScenarioError as error:
            yield error


def read_objects(scenario: Scenario) -> list[tuple[str, Any]]:
    """(where, object) of all that a scenario gives: its files, relative to its own place, then its objects."""
    folder = Path(scenario.file).parent
    given = [(f"objects[{index}]", obj) for index, obj in enumerate(scenario.objects)]
    unfolded = [(where, each) for where, obj in given for each in unfold(obj)]
    return read_manifests(folder / name for name in scenario.files) + unfolded


def _list_documents(path: Path) -> list[Any]:
    """The scenarios of a file: one a document, or a list of them."""
    found: list[Any] = []
    for document in _read_documents(path):
        found += document if isinstance(document, list) else [document]
    return found


def _read_documents(path: Path) -> list[Any]:
    text = _read_text(path)
    if path.suffix == ".json":
        try:
            return list(unfold(parse_json(text)))
        except ValueError as error:
            raise UnusableInput(f"{path}: not JSON: {error}") from error
        except RecursionError as error:
            raise UnusableInput(f"{path}: nested too deeply") from error
    documents, problems = read_documents(str(path), text)
    if documents is None:
        raise UnusableInput(": ".join(part for part in (str(path), problems[0].path, problems[0].message) if part))
    return documents


def _read_lines(path: Path) -> Iterator[Any]:
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if line.strip():
            try:
                yield parse_json(line)
            except ValueError as error:
                raise UnusableInput(f"{path}: line {number}: not JSON: {error}") from error
            except RecursionError as error:
                raise UnusableInput(f"{path}: line {number}: nested too deeply") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # a byte order mark is no part of the text (RFC 8259, 8.1)
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableInput(f"{path}: {error}") from error
