"""A cursor over untrusted objects that remembers where it is.

Every fault becomes a problem with its path and reading goes on, so that one pass names everything that is wrong.
null equals absent everywhere. Strictness is the caller's choice: ``fields`` refuses what it was not told of, ``get``
does not.

Deliberately absent: Kubernetes. What fields mean is the other ``parse_*`` modules' affair.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from schemas.status import Problem

SEVERITY_ERROR = "error"
SEVERITY_WARNING = "warning"


class Report:
    """The problems of one object. ``name``: ``Kind namespace/name``, ``file`` where it stands."""

    def __init__(self, name: str, file: str) -> None:
        self.name = name
        self.file = file
        self.problems: list[Problem] = []

    def add(self, path: str, message: str, severity: str = SEVERITY_ERROR) -> None:
        self.problems.append(Problem(object=self.name, path=path, message=message, file=self.file, severity=severity))

    @property
    def is_refused(self) -> bool:
        return any(problem.severity == SEVERITY_ERROR for problem in self.problems)


class Reader:
    """A value, its path, and where to complain. A missing value is a Reader of None."""

    __slots__ = ("path", "report", "value")

    def __init__(self, value: Any, path: str, report: Report) -> None:
        self.value = value
        self.path = path
        self.report = report

    @property
    def is_present(self) -> bool:
        return self.value is not None

    def fault(self, message: str) -> None:
        self.report.add(self.path, message)

    def warn(self, message: str) -> None:
        self.report.add(self.path, message, SEVERITY_WARNING)

    def get(self, key: str) -> Reader:
        """A field of an object, present or not; never complains."""
        value = self.value.get(key) if isinstance(self.value, dict) else None
        return Reader(value, f"{self.path}.{key}" if self.path else key, self.report)

    def fields(self, *known: str) -> bool:
        """Whether this is an object; every field that is not ``known`` is a fault."""
        if not isinstance(self.value, dict):
            self.fault(f"an object is expected, not {describe(self.value)}")
            return False
        for key, value in self.value.items():
            if key not in known and value is not None:
                self.report.add(f"{self.path}.{key}", f"unknown field; known here: {', '.join(known)}")
        return True

    def present(self) -> list[str]:
        """The names of the fields that are there."""
        if not isinstance(self.value, dict):
            return []
        return [str(key) for key, value in self.value.items() if value is not None]

    def items(self, *, at_least: int = 0, at_most: int = 0) -> list[Reader]:
        """The members of a list; absent is empty. ``at_most`` 0: no limit."""
        if self.value is None:
            if at_least:
                self.fault(f"required: a list of at least {at_least}")
            return []
        if not isinstance(self.value, list):
            self.fault(f"a list is expected, not {describe(self.value)}")
            return []
        if len(self.value) < at_least:
            self.fault(f"at least {at_least} item expected, got {len(self.value)}")
        if at_most and len(self.value) > at_most:
            self.fault(f"at most {at_most} items, got {len(self.value)}")
        return [Reader(value, f"{self.path}[{index}]", self.report) for index, value in enumerate(self.value)]

    def distinct(self, *, at_least: int = 0, at_most: int = 0) -> list[Reader]:
        """The members of a list that is a set (``x-kubernetes-list-type``): one given twice is a fault."""
        members = self.items(at_least=at_least, at_most=at_most)
        seen: set[str] = set()
        for member in members:
            if not isinstance(member.value, str):
                continue
            if member.value in seen:
                member.fault(f"{describe(member.value)} is given twice")
            seen.add(member.value)
        return members

    def pairs(self) -> Iterator[tuple[str, Reader]]:
        """The entries of a map; absent is empty."""
        if self.value is None:
            return
        if not isinstance(self.value, dict):
            self.fault(f"a map is expected, not {describe(self.value)}")
            return
        for key, value in self.value.items():
            yield str(key), Reader(value, f"{self.path}[{key}]", self.report)

    def text(self, default: str = "") -> str:
        """A string; absent is the default."""
        if self.value is None:
            return default
        if not isinstance(self.value, str):
            self.fault(f"a string is expected, not {describe(self.value)}")
            return default
        return self.value

    def required_text(self) -> str:
        if not self.is_present:
            self.fault("required")
        return self.text()

    def choice(self, *known: str, default: str = "") -> str:
        """A string out of a few; without a default it is required."""
        if self.value is None and default:
            return default
        value = self.required_text()
        if isinstance(self.value, str) and value not in known:
            self.fault(f"{value!r} is none of {', '.join(known)}")
        return value

    def integer(self, *, first: int, last: int) -> int:
        """A required whole number in a range; ``first`` if it is not one."""
        value = self.value
        if value is None:
            self.fault("required")
        elif isinstance(value, bool) or not isinstance(value, int):
            self.fault(f"a whole number is expected, not {describe(value)}")
        elif not first <= value <= last:
            self.fault(f"{value} is out of range {first}..{last}")
        else:
            return value
        return first


def describe(value: Any) -> str:
    """A type as YAML people call it, with the value where it is short."""
    names = {dict: "an object", list: "a list", bool: "a boolean", type(None): "nothing"}
    if type(value) in names:
        return names[type(value)]
    return repr(value)[:40]
