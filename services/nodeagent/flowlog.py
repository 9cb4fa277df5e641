"""Flow logs: a line a verdict, to standard output or to a file that is rotated, in a thread that nobody waits for.

Two forms: JSON (``schemas.flowlog``), and the same with what makes CloudWatch count it (embedded metric format).
Source: docs.aws.amazon.com, "Specification: Embedded metric format".
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import Counter, deque
from fnmatch import fnmatchcase
from logging.handlers import RotatingFileHandler
from typing import TextIO

import msgspec

from schemas.flowlog import FlowLog as FlowLine
from schemas.flowlog import make_flow_log, make_refused_log
from schemas.verdict import NameRefused, VerdictEvent
from services.common.log import get_logger
from services.common.settings import NodeagentSettings, SettingsError

STDOUT = "stdout"
QUEUE = 20_000
"""Lines that wait for the disk; what does not fit is dropped, and counted."""
BATCH = 1_000
EMF_NAMESPACE = "Yett"
EMF_METRIC = "Verdicts"
EMF_DIMENSIONS = (("verdict",), ("namespace", "verdict"), ("reason", "verdict"))

Event = VerdictEvent | NameRefused

_encode = msgspec.json.Encoder().encode
_log = get_logger("flowlog")


def make_line(event: Event) -> FlowLine:
    """Its fields."""
    return make_refused_log(event) if isinstance(event, NameRefused) else make_flow_log(event)


def format_json(event: Event) -> str:
    """One line, without its end."""
    return _encode(make_line(event)).decode()


def format_emf(event: Event) -> str:
    """The same fields, and the metric ``Verdicts`` by verdict, namespace and reason."""
    fields = msgspec.to_builtins(make_line(event))
    metrics = {
        "Namespace": EMF_NAMESPACE,
        "Dimensions": EMF_DIMENSIONS,
        "Metrics": [{"Name": EMF_METRIC, "Unit": "Count"}],
    }
    aws = {"Timestamp": event.unix_nanos // 1_000_000, "CloudWatchMetrics": [metrics]}
    return _encode({"_aws": aws, **fields, EMF_METRIC: event.count}).decode()


FORMATS = {"json": format_json, "emf": format_emf}


class Choice:
    """Whose flows are logged: pods that every setting agrees on; one that says nothing agrees."""

    def __init__(self, settings: NodeagentSettings) -> None:
        self._namespaces = frozenset(settings.flow_log_namespaces)
        self._pods = settings.flow_log_pods
        self._owners = settings.flow_log_owners
        self._labels = {tuple(text.split("=", 1)) for text in settings.flow_log_labels}
        for text in settings.flow_log_labels:
            if "=" not in text:
                raise SettingsError("YETT_FLOW_LOG_LABELS", f"{text!r} is not key=value")

    def takes(self, event: Event) -> bool:
        """Whether it is one of those."""
        return (
            (not self._namespaces or event.namespace in self._namespaces)
            and _is_one_of(f"{event.namespace}/{event.pod}", self._pods)
            and _is_one_of(event.owner, self._owners)
            and self._labels <= event.labels.items()
        )


def _is_one_of(name: str, globs: tuple[str, ...]) -> bool:
    return not globs or any(fnmatchcase(name, glob) for glob in globs)


class FlowLog:
    """A sink of the verdict bus; ``run`` writes."""

    def __init__(self, settings: NodeagentSettings) -> None:
        self._format = FORMATS[settings.flow_log_format]
        self._choice = Choice(settings)
        self._queue: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self.counters: Counter[str] = Counter()
        self._handler = self._open(settings)

    def __call__(self, event: Event) -> None:
        """One event, if its pod is among those chosen."""
        if not self._choice.takes(event):
            return
        if len(self._queue) >= QUEUE:
            self.counters["flow_log_dropped"] += event.count
            return
        self._queue.append(event)
        self._arrived.set()

    async def run(self) -> None:
        """Write for ever."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._queue:
                await asyncio.to_thread(self._write, self._take())

    def close(self) -> None:
        """Write what waits, and let go of the file."""
        while self._queue:
            self._write(self._take())
        self._handler.close()

    def _take(self) -> list[Event]:
        return [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]

    def _write(self, events: list[Event]) -> None:
        for event in events:
            self._handler.handle(logging.makeLogRecord({"msg": self._format(event)}))
        self.counters["flow_log_lines"] += len(events)

    def _open(self, settings: NodeagentSettings) -> logging.StreamHandler[TextIO]:
        handler: logging.StreamHandler[TextIO]
        if settings.flow_log == STDOUT:
            handler = logging.StreamHandler(sys.stdout)
        else:
            handler = RotatingFileHandler(  # type: ignore[assignment]  # a text stream too, as typeshed does not say
                settings.flow_log,
                maxBytes=settings.flow_log_max_bytes,
                backupCount=settings.flow_log_files,
                delay=True,
            )
        handler.handleError = self._on_error  # type: ignore[method-assign]  # logging's own hook for failed writes
        return handler

    def _on_error(self, record: logging.LogRecord) -> None:
        """Called by logging where a line could not be written."""
        self.counters["flow_log_failed"] += 1
        if self.counters["flow_log_failed"] == 1:
            _log.error("a flow was not logged; others are only counted", problem=str(sys.exc_info()[1]))
