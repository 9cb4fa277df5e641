"""Objects from a cluster: the same stream of events that a folder of manifests gives.

Nothing is said before every kind has been listed once: half a cluster compiled would open what a policy not yet read
shuts, and shut what a namespace not yet read opens. From then on changes are told as they come. Where the server cannot
be heard, what was known stays, and a problem says since when it may be out of date.

What a complete list lacks is gone; of a kind that the server has and that cannot be read nothing is known to be gone,
and it is said which kinds those are, with the very events that make it so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from schemas.status import STALE_SINCE, Problem
from services.common.log import get_logger
from services.controller.kube_api import Api
from services.controller.kube_kinds import DEFINITIONS, Item, kinds_read
from services.controller.kube_watch import Definitions, Pace, Watcher
from services.controller.manifests import ManifestEvent
from services.controller.policy.model import PolicyKey

SOURCE = "kubernetes"
"""Stands where a file's name stands."""
STALE_SECONDS = 5.0
"""Trouble of less is no news: connections end."""
LOOK_SECONDS = 1.0
WAITING_SAID_SECONDS = 10.0

Ended = asyncio.Future[tuple[set[asyncio.Task[None]], set[asyncio.Task[None]]]]

_log = get_logger("kube")


class Cluster:
    """Watches everything that makes up a world."""

    def __init__(self, api: Api, namespace: str, pace: Pace) -> None:
        self._definitions = Definitions()
        self._defining = Watcher(api, DEFINITIONS, self._definitions.take, pace)
        self.watchers = [
            Watcher(api, kind, self._tell, pace, definitions=self._definitions) for kind in kinds_read(namespace)
        ]
        self._events: list[ManifestEvent] = []
        self._happened = asyncio.Event()
        self._problems: tuple[Problem, ...] = ()
        self._unread: frozenset[str] = frozenset()

    async def watch(self) -> AsyncIterator[list[ManifestEvent]]:
        """First everything, once it is known whole; then every change. Never ends by itself."""
        tasks = [asyncio.create_task(each.run()) for each in (self._defining, *self.watchers)]
        tasks.append(asyncio.create_task(self._look_for_staleness()))
        failed = asyncio.ensure_future(asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED))
        try:
            await self._until_complete(failed)
            while True:
                self._happened.clear()
                events, self._events = self._events, []
                yield events
                if not self._events:
                    await self._until_happened(failed)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, failed, return_exceptions=True)

    @property
    def lists(self) -> int:
        """How many lists have been read, of all kinds."""
        return sum(watcher.lists for watcher in self.watchers)

    def _tell(self, changed: list[Item], gone: list[PolicyKey]) -> None:
        self._events += [ManifestEvent(SOURCE, obj=item.obj) for item in changed]
        self._events += [ManifestEvent(SOURCE, gone=key) for key in gone]
        unread = frozenset(watcher.kind.key_kind for watcher in self.watchers if watcher.is_unread)
        if unread != self._unread:
            self._unread = unread
            self._events.append(ManifestEvent(SOURCE, unread=unread))
        self._happened.set()

    async def _until_complete(self, failed: Ended) -> None:
        started = said = time.monotonic()
        while waiting := [each for each in (self._defining, *self.watchers) if not each.is_complete]:
            await self._until_happened(failed, LOOK_SECONDS)
            self._happened.clear()
            if time.monotonic() - said > WAITING_SAID_SECONDS:
                said = time.monotonic()
                reasons = {each.kind.resource: each.trouble or "being listed" for each in waiting}
                _log.warning("not all kinds are listed yet, so nothing is", waiting=reasons)
        millis = round((time.monotonic() - started) * 1000)
        _log.info("cluster listed", objects=len(self._events), millis=millis)

    async def _until_happened(self, failed: Ended, seconds: float | None = None) -> None:
        happened = asyncio.ensure_future(self._happened.wait())
        waited: set[asyncio.Future[Any]] = {happened, failed}
        try:
            await asyncio.wait(waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            happened.cancel()
        if failed.done():
            for task in failed.result()[0]:
                task.result()
            raise RuntimeError("a watch on the cluster ended")

    async def _look_for_staleness(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            problems = self.describe_staleness(time.time()) + self.describe_unread()
            if problems != self._problems:
                self._problems = problems
                self._events.append(ManifestEvent(SOURCE, problems=problems))
                self._happened.set()

    def describe_staleness(self, now: float) -> tuple[Problem, ...]:
        """What has not been heard for ``STALE_SECONDS``, and since when. ``now``: Unix seconds."""
        return tuple(
            Problem(
                object=f"Kubernetes API {watcher.kind.resource}",
                path="",
                message=f"{STALE_SINCE} {_instant(watcher.heard_at)}, the last good state stays: {watcher.trouble}",
                severity="warning",
            )
            for watcher in (self._defining, *self.watchers)
            if watcher.trouble and now - watcher.heard_at > STALE_SECONDS
        )

    def describe_unread(self) -> tuple[Problem, ...]:
        """Kinds that the server has in versions that are not read."""
        return tuple(
            Problem(
                object=f"Kubernetes API {watcher.kind.resource}", path="", message=watcher.unread, severity="warning"
            )
            for watcher in self.watchers
            if watcher.unread
        )


def _instant(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
