"""Spans as a receiver printed them, and the links and parents between them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

WAIT_SECONDS = 20.0
"""A batch leaves within a second; a machine that several tests share gets more."""


class SpanNotFoundError(AssertionError):
    """No such span came in time."""


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """One span. ``links``: (trace, span) of each. Times are Unix time."""

    name: str
    trace: str
    id: str
    parent: str = ""
    start_nanos: int
    end_nanos: int
    attributes: dict[str, Any]
    links: tuple[tuple[str, str], ...] = ()


def read_span(line: str) -> Span:
    """From OTLP's JSON form."""
    raw = json.loads(line)
    return Span(
        name=raw["name"],
        trace=raw["traceId"],
        id=raw["spanId"],
        parent=raw["parentSpanId"],
        start_nanos=int(raw["startTimeUnixNano"]),
        end_nanos=int(raw["endTimeUnixNano"]),
        attributes={one["key"]: _read_value(one["value"]) for one in raw["attributes"]},
        links=tuple((link["traceId"], link["spanId"]) for link in raw["links"]),
    )


def _read_value(value: dict[str, Any]) -> Any:
    """Numbers are text in OTLP's JSON, and stay so."""
    if "arrayValue" in value:
        return [_read_value(one) for one in value["arrayValue"].get("values", ())]
    return next(iter(value.values()), None)


class Spans:
    """Everything a receiver has printed to ``log``."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def all(self) -> list[Span]:
        """In the order in which they came."""
        if not self._log.exists():
            return []
        lines = self._log.read_text().splitlines()
        return [read_span(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def find(self, what: str, matches: Callable[[Span], bool]) -> Span:
        """The last span that matches, waited for; SpanNotFoundError if none comes."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not (found := [span for span in self.all() if matches(span)]):
            if time.monotonic() > deadline:
                raise SpanNotFoundError(f"no span: {what}")
            time.sleep(0.02)
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
