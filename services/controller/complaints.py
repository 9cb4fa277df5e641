"""What is wrong with present objects and files, each until its next version."""

from __future__ import annotations

from collections.abc import Iterable

from schemas.status import Problem
from services.controller.policy.model import PolicyKey


class Complaints:
    """By object and by file; listed in order."""

    def __init__(self) -> None:
        self._of_object: dict[PolicyKey, list[Problem]] = {}
        self._of_file: dict[str, tuple[Problem, ...]] = {}
        self._files: dict[PolicyKey, str] = {}

    def renew(self, key: PolicyKey, problems: list[Problem], file: str) -> None:
        """An object's present version, the file that it stands in, and what is wrong with it."""
        self._files[key] = file
        self._of_object.pop(key, None)
        if problems:
            self._of_object[key] = problems

    def renew_file(self, file: str, problems: Iterable[Problem]) -> None:
        """Replace what is wrong with a whole file; nothing any more if empty."""
        self._of_file[file] = tuple(problems)
        if not self._of_file[file]:
            del self._of_file[file]

    def add(self, key: PolicyKey, path: str, message: str, *, severity: str) -> None:
        """One more about an object's present version."""
        self._of_object.setdefault(key, []).append(self.word(key, path, message, severity=severity))

    def drop(self, key: PolicyKey) -> None:
        """The object is gone."""
        self._of_object.pop(key, None)
        self._files.pop(key, None)

    def of_object(self, key: PolicyKey) -> tuple[Problem, ...]:
        """What is wrong with one object's present version."""
        return tuple(self._of_object.get(key, ()))

    def list(self) -> list[Problem]:
        """Of files, then of objects."""
        of_files = [problem for file in sorted(self._of_file) for problem in self._of_file[file]]
        return of_files + [problem for key in sorted(self._of_object) for problem in self._of_object[key]]

    def word(self, key: PolicyKey, path: str, message: str, *, severity: str = "error") -> Problem:
        """A problem of an object, with its name and file."""
        name = f"{key[0]} {key[1] + '/' if key[1] else ''}{key[2]}"
        return Problem(object=name, path=path, message=message, file=self._files.get(key, ""), severity=severity)
