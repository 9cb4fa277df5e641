"""Usage in the bucket ``yett_usage``: whoever leads takes the nodes' reports, merges and stores them.

Every entry is written against the version that was read, so that two who both believe they lead lose nothing of each
other's; a refused one is read and merged again. A report is answered once all of it is stored.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from schemas import wire
from schemas.policy import Labels
from schemas.usage import NodeUsage, PeerKind, PodUsage, RuleCount, RuleUsage, UsageReport, UsageTaken
from services.common.cancellation import heeding_cancellation
from services.common.jetstream import JetStream, JetStreamError
from services.common.log import get_logger
from services.common.window import WRONG_LAST_SEQUENCE
from services.controller.usage import merge_node, merge_pod, merge_rule

ATTEMPTS = 5
"""Versions that others may write while one entry is merged."""
CACHED = 5_000
"""Entries whose last version is remembered; others are read."""
AT_ONCE = 32
STORE_SECONDS = 3.0
_log = get_logger("usage")

T = TypeVar("T", bound=msgspec.Struct)


Outcome = bool | Exception
"""Stored; refused, because it cannot be said at all (a name that is none); or why it could not be stored now.

A failed TaskGroup of 3.11 leaves its parent with a cancellation too many, so a task returns what went wrong.
"""


class StoreError(Exception):
    """An entry was not stored; the report is not answered, and comes again."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of objects now. ``find_uid``: of a policy by key, None if there is none of that name."""

    find_uid: Callable[[tuple[str, str, str]], str | None]
    find_labels: Callable[[PeerKind, str], Labels | None]


@dataclass(slots=True)
class _Entry(Generic[T]):
    sequence: int
    row: T | None


class UsageStore:
    """One controller's. ``keep_seconds``: how long a silent node is told apart. Counters are the board's."""

    def __init__(self, connection: Client, known: Known, counters: dict[str, int], *, keep_seconds: int) -> None:
        self._connection = connection
        self._jetstream = JetStream(connection)
        self._known = known
        self._counters = counters
        self._keep_seconds = keep_seconds
        self._cache: OrderedDict[str, _Entry[msgspec.Struct]] = OrderedDict()
        self._room = asyncio.Semaphore(AT_ONCE)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Take reports, while leading."""
        self._cache.clear()
        subscription = await self._connection.subscribe(f"{wire.USAGE_PREFIX}*", cb=self._on_report)
        try:
            yield
        finally:
            if not self._connection.is_closed:
                await subscription.unsubscribe()

    async def _on_report(self, message: Msg) -> None:
        try:
            report = wire.decode(message.subject, message.data)
            if not isinstance(report, UsageReport) or message.subject != wire.subject_usage(report.node):
                raise wire.WireError("UsageReport", f"on {message.subject}: speaks for another node")
            taken = await self.take(report)
            await message.respond(msgspec.json.encode(taken))
        except wire.WireError as error:
            self._count("usage_reports_malformed", error)
        except (StoreError, JetStreamError, nats.errors.Error) as error:
            self._count("usage_reports_not_stored", error)

    def _count(self, name: str, error: Exception) -> None:
        if name not in self._counters:
            _log.warning("a report of usage was left aside; others are only counted", cause=name, problem=str(error))
        self._counters[name] = self._counters.get(name, 0) + 1

    async def take(self, report: UsageReport) -> UsageTaken:
        """Store everything that a report says. StoreError."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._take_rule(report, rule)) for rule in report.rules]
            tasks += [group.create_task(self._take_pod(report, pod)) for pod in report.pods]
        outcomes = [task.result() for task in tasks]
        outcomes.append(
            await self._try_merge(
                lambda: wire.subject_usage_node(report.node), NodeUsage, lambda before: merge_node(before, report)
            )
        )
        failed = next((each for each in outcomes if isinstance(each, Exception)), None)
        if failed is not None:
            raise StoreError(str(failed) or type(failed).__name__) from failed
        self._counters["usage_reports"] = self._counters.get("usage_reports", 0) + 1
        return UsageTaken(refused=outcomes.count(False))

    async def _take_rule(self, report: UsageReport, rule: RuleCount) -> Outcome:
        key = (rule.kind, rule.namespace, rule.name)
        uid = self._known.find_uid(key)
        if uid is None:  # gone since: nobody will ask
            return True
        return await self._try_merge(
            lambda: wire.subject_usage_rule(key, uid, rule.hash),
            RuleUsage,
            lambda before: merge_rule(before, report, rule, uid=uid, keep_seconds=self._keep_seconds),
        )

    async def _take_pod(self, report: UsageReport, pod: PodUsage) -> Outcome:
        if pod.node != report.node or pod.epoch != report.epoch:
            return False
        return await self._try_merge(
            lambda: wire.subject_usage_pod(pod.namespace, pod.pod),
            PodUsage,
            lambda before: merge_pod(before, pod, self._known.find_labels),
        )

    async def _try_merge(self, subject: Callable[[], str], kind: type[T], merge: Callable[[T | None], T]) -> Outcome:
        try:
            await self._merge(subject(), kind, merge)
        except wire.WireError as error:
            self._count("usage_entries_refused", error)
            return False
        except (StoreError, JetStreamError, nats.errors.Error, OSError) as error:
            return error
        return True

    async def _merge(self, subject: str, kind: type[T], merge: Callable[[T | None], T]) -> None:
        async with self._room:
            for _ in range(ATTEMPTS):
                entry = await self._read(subject, kind)
                merged = merge(entry.row if isinstance(entry.row, kind) else None)
                if merged == entry.row:
                    return
                sequence = await self._write(subject, merged, entry.sequence)
                if sequence:
                    self._remember(subject, _Entry(sequence, merged))
                    return
                self._cache.pop(subject, None)
        raise StoreError(f"{subject}: written by another {ATTEMPTS} times")

    async def _read(self, subject: str, kind: type[T]) -> _Entry[msgspec.Struct]:
        found = self._cache.get(subject)
        if found is not None:
            return found
        message = await self._jetstream.read_last(wire.STREAM_USAGE, subject)
        if message is None:
            return _Entry(0, None)
        try:
            return _Entry(message.sequence, wire.decode(subject, message.body) if message.body else None)
        except wire.WireError:  # nothing that can be read is nothing that can be added to
            return _Entry(message.sequence, None)

    def _remember(self, subject: str, entry: _Entry[msgspec.Struct]) -> None:
        self._cache[subject] = entry
        self._cache.move_to_end(subject)
        if len(self._cache) > CACHED:
            self._cache.popitem(last=False)

    async def _write(self, subject: str, row: msgspec.Struct, expected: int) -> int:
        """Its sequence; 0 if another version came first. StoreError."""
        headers = wire.headers_for(row) | {wire.HEADER_FENCE_SEQUENCE: str(expected)}
        try:
            with heeding_cancellation():
                reply = await self._connection.request(
                    subject, wire.encode(row), timeout=STORE_SECONDS, headers=headers
                )
        except (nats.errors.Error, OSError) as error:
            raise StoreError(f"{subject}: {str(error) or type(error).__name__}") from error
        answer = msgspec.json.decode(reply.data)
        if refusal := answer.get("error"):
            if refusal.get("err_code") in WRONG_LAST_SEQUENCE:
                return 0
            raise StoreError(f"{subject}: {refusal.get('description')} (error {refusal.get('err_code')})")
        return int(answer["seq"])
