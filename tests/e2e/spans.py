"""Spans as a receiver printed them, and the links and parents between them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WAIT_SECONDS = 20.0
"""A batch leaves within a second; a machine that several tests share gets more."""


@dataclass(frozen=True)
class Span:
    """One span. ``links``: (trace, span) of each."""

    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    links: tuple[tuple[str, str], ...]


def read_span(line: str) -> Span:
    """From OTLP's JSON form."""
    raw = json.loads(line)
    attributes = {one["key"]: next(iter(one["value"].values()), None) for one in raw["attributes"]}
    links = tuple((link["traceId"], link["spanId"]) for link in raw["links"])
    return Span(raw["name"], raw["traceId"], raw["spanId"], raw["parentSpanId"], attributes, links)


class Spans:
    """Everything a receiver has printed to ``log``."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def all(self) -> list[Span]:
        if not self._log.exists():
            return []
        lines = self._log.read_text().splitlines()
        return [read_span(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def find(self, what: str, matches: Callable[[Span], bool]) -> Span:
        """The last span that matches, waited for; AssertionError if none comes."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not (found := [span for span in self.all() if matches(span)]):
            assert time.monotonic() < deadline, f"no span: {what}"
        return found[-1]

    def by_id(self, what: str, trace: str, span: str) -> Span:
        """The span that a link or a parent names."""
        return self.find(what, lambda one: (one.trace, one.id) == (trace, span))

    def linked(self, span: Span) -> dict[str, Span]:
        """Name -> span at the other end of each link."""
        found = [self.by_id(f"linked from {span.name}", *link) for link in span.links]
        return {one.name: one for one in found}

    def parent(self, span: Span) -> Span:
        """The span it is a child of."""
        return self.by_id(f"parent of {span.name}", span.trace, span.parent)
