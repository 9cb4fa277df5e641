"""What a source has said, as the controller's inventory would hold it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from schemas.status import Problem
from services.controller.kube import Cluster
from services.controller.kube_api import Api
from services.controller.kube_watch import Pace
from services.controller.manifests import ManifestEvent
from services.controller.policy.model import PolicyKey
from services.controller.policy.parse import identify

QUICK = Pace(page=3, watch_seconds=30, silence_seconds=2)
"""Small pages, so that every list has several."""


class Seen:
    """Follows a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.objects: dict[PolicyKey, dict[str, object]] = {}
        self.problems: tuple[Problem, ...] = ()
        self.batches: list[list[ManifestEvent]] = []
        self._news = asyncio.Event()

    async def follow(self) -> None:
        async for events in self.cluster.watch():
            self.batches.append(events)
            for event in events:
                if event.problems is not None:
                    self.problems = event.problems
                elif event.gone is not None:
                    del self.objects[event.gone]
                elif (key := identify(event.obj)) is not None and event.obj is not None:
                    self.objects[key] = event.obj
            self._news.set()

    async def until(self, is_true: Callable[[], bool], seconds: float = 20) -> None:
        """Wait for a condition on what was said; TimeoutError if it does not come."""
        async with asyncio.timeout(seconds):
            while not is_true():
                self._news.clear()
                await self._news.wait()

    def names(self, kind: str, namespace: str = "") -> set[str]:
        """The names of one kind's objects."""
        return {key[2] for key in self.objects if key[:2] == (kind, namespace)}

    @property
    def events(self) -> int:
        return sum(len(batch) for batch in self.batches)


@asynccontextmanager
async def seeing(kubeconfig: Path, pace: Pace = QUICK) -> AsyncIterator[Seen]:
    """A source on a server; has said nothing yet."""
    api = await Api.open(str(kubeconfig))
    seen = Seen(Cluster(api, "yett-system", pace))
    following = asyncio.create_task(seen.follow())
    try:
        yield seen
    finally:
        following.cancel()
        outcome = (await asyncio.gather(following, return_exceptions=True))[0]
        await api.close()
        if not isinstance(outcome, asyncio.CancelledError):
            raise outcome if isinstance(outcome, BaseException) else RuntimeError("the source ended")
