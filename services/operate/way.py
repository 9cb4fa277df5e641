"""Words for the way to a cluster. Apart from ``reach``, because the API server's client takes a second to import."""

from __future__ import annotations

from dataclasses import dataclass


class NoWay(Exception):
    """The cluster cannot be reached, or refuses; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Way:
    """Where the bus is, and the ``YETT_`` settings that go with it."""

    url: str
    settings: dict[str, str]
