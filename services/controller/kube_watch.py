"""Lists and watches one kind, for ever: what it says is always the difference to what it said before.

* A list is read in pages and told whole: half a list never leaves this module.
* A watch goes on from the last resourceVersion it heard, bookmarks included; only where the server has forgotten that
  version (410) is there a new list.
* A watch is asked to end after ``watch_seconds`` and given up some seconds later: a server that hangs, or a path
  that swallows packets, looks like a quiet cluster.
* A custom kind exists while a definition serves it. A 404 alone is no proof that its objects are gone: servers that
  start answer so before they have read their definitions. Until the definition itself is gone what was known stays.
* A definition that serves none of the versions that are read is said: it is no missing kind.

Deliberately absent: what objects mean, and when the whole is complete (``kube``).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from services.common.log import get_logger
from services.controller.kube_api import Api, KubeError
from services.controller.kube_kinds import (
    Item,
    Kind,
    decode_failure,
    decode_item,
    decode_line,
    decode_page,
    read_bookmark,
)
from services.controller.kube_memory import Memory
from services.controller.policy.model import PolicyKey

BRIEF_SECONDS = 0.5
"""A watch that the server ended sooner is no success."""
WAIT_FIRST_SECONDS, WAIT_MAX_SECONDS = 0.1, 5.0
GONE, NOT_FOUND = 410, 404

Tell = Callable[[list[Item], list[PolicyKey]], None]

_log = get_logger("kube")


class ExpiredError(Exception):
    """The server has forgotten the version that the watch was to go on from."""


@dataclass(frozen=True, slots=True)
class Pace:
    """``page``: objects in one page of a list. ``watch_seconds``: how long the server is asked to keep a watch;
    ``silence_seconds``: how much later it is given up. A server ends a watch by itself before."""

    page: int = 500
    watch_seconds: float = 60.0
    silence_seconds: float = 10.0


class Definitions:
    """What the CustomResourceDefinitions serve; takes what a ``Watcher`` tells."""

    def __init__(self) -> None:
        self._served: dict[str, frozenset[str]] = {}
        self._changed = asyncio.Event()
        self._listed = asyncio.Event()

    def take(self, items: list[Item], gone: list[PolicyKey]) -> None:
        for item in items:
            self._served[item.key[2]] = item.served
        for _, _, name in gone:
            self._served.pop(name, None)
        self._listed.set()
        self._changed.set()
        self._changed = asyncio.Event()

    async def listed(self) -> None:
        """Until it is known what is served."""
        await self._listed.wait()

    def version_of(self, kind: Kind) -> str:
        """The version to read; empty if the kind is not served."""
        served = self._served.get(kind.resource, frozenset())
        return next((version for version in kind.versions if version in served), "")

    def served(self, kind: Kind) -> frozenset[str] | None:
        """All versions that are served, read or not; None if there is no definition."""
        return self._served.get(kind.resource)

    async def change(self) -> None:
        """Until something changes."""
        await self._changed.wait()


class Watcher:
    """One kind. ``tell`` is called with what changed and what went; ``is_complete`` once there has been a whole list.

    ``trouble``: what is wrong, empty while the watch stands. ``heard_at``: when the server last spoke, Unix seconds.
    ``is_unread``: there is a definition, and what it serves cannot be read; until there has been a whole list again.
    """

    def __init__(
        self,
        api: Api,
        kind: Kind,
        tell: Tell,
        pace: Pace,
        *,
        definitions: Definitions | None = None,
    ) -> None:
        self.kind = kind
        self.is_complete = False
        self.is_unread = False
        self.trouble = ""
        self.heard_at = time.time()
        self.lists = 0
        self._api = api
        self._tell = tell
        self._pace = pace
        self._definitions = definitions
        self._memory = Memory()
        self._version = ""
        self._said_unread = ""
        self._attempts = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                if await self._choose_version():
                    await self._watch_on(await self._list())
                else:
                    await self._wait_for_definition()
            except ExpiredError as error:
                _log.info("list again", kind=self.kind.resource, reason=str(error))
                await self._pause()
            except KubeError as error:
                await self._rest(error)

    # -- which version

    async def _choose_version(self) -> bool:
        """Whether the kind is served; sets the version to read. KubeError if that cannot be known."""
        if self.kind.is_custom and self._definitions is not None:
            await self._definitions.listed()
            self._version = self._definitions.version_of(self.kind)
        elif len(self.kind.versions) > 1:
            self._version = await self._discover()
        else:
            self._version = self.kind.versions[0]
        return bool(self._version)

    async def _discover(self) -> str:
        group = _GROUP.decode(await self._api.get(f"/apis/{self.kind.group}"))
        served = {each.version for each in group.versions}
        for version in self.kind.versions:
            if version in served:
                return version
        raise KubeError(f"{self.kind.resource}: none of {', '.join(self.kind.versions)} is served", code=NOT_FOUND)

    async def _wait_for_definition(self) -> None:
        """Complete: without a definition empty, else with what was known."""
        assert self._definitions is not None
        gone: list[PolicyKey] = []
        self.is_unread = self._definitions.served(self.kind) is not None
        if not self.is_unread:
            self._memory.begin_list()
            gone = self._memory.end_list()
        self._told_whole([], gone)
        unread = self.unread
        if unread and unread != self._said_unread:
            _log.warning("not read", kind=self.kind.resource, reason=unread)
        self._said_unread = unread
        await self._definitions.change()

    @property
    def unread(self) -> str:
        """Why objects that may be there are not read; empty if they are, or if there is no such kind."""
        if self._definitions is None or not self.kind.is_custom or self._definitions.version_of(self.kind):
            return ""
        served, known = self._definitions.served(self.kind), len(self._memory)
        if not served and not known:
            return ""  # no definition, or one that is not established yet
        said = f"served as {', '.join(sorted(served or ())) or 'nothing'} and read as {', '.join(self.kind.versions)}"
        return f"{said}: none of its objects is read" + (f", the {known} last known stay" if known else "")

    # -- lists

    async def _list(self) -> str:
        """Everything, page by page, told as the difference to what was known; the version to watch from."""
        self._memory.begin_list()
        changed: list[Item] = []
        query = self._query({"limit": str(self._pace.page)})
        while True:
            body = await self._api.get(self.kind.path(self._version), query)
            try:
                page = decode_page(body)
                items = [item for raw in page.items or () if (item := self._decode(bytes(raw))) is not None]
            except msgspec.MsgspecError as error:
                raise KubeError(f"list of {self.kind.resource} is unreadable: {error}") from error
            changed += self._memory.take_page(items)
            if not page.metadata.continue_:
                break
            query = query | {"continue": page.metadata.continue_}
        self.lists += 1
        self.is_unread = False
        self._told_whole(changed, self._memory.end_list())
        return page.metadata.resource_version

    def _told_whole(self, changed: list[Item], gone: list[PolicyKey]) -> None:
        self._heard()
        self.is_complete = True
        self._tell(changed, gone)

    # -- watches

    async def _watch_on(self, version: str) -> None:
        """Watch after watch, each from where the last one ended; returns where the kind must be looked at anew."""
        while True:
            began = time.monotonic()
            try:
                version = await self._watch_once(version)
            except _BrokenOffError as broken:
                version = broken.version
                if broken.cause.code == GONE:
                    raise ExpiredError(str(broken.cause)) from broken.cause
                if broken.cause.code == NOT_FOUND:
                    raise broken.cause from None
                await self._rest(broken.cause)
                continue
            if time.monotonic() - began < BRIEF_SECONDS:
                # A server that ends watches at once is not asked in a circle.
                await self._pause()
            if self.kind.is_custom and self._definitions and self._definitions.version_of(self.kind) != self._version:
                return

    async def _watch_once(self, version: str) -> str:
        """One watch to its end -> the last version heard. _BrokenOffError with that version, ExpiredError."""
        seconds = self._pace.watch_seconds
        query = self._query(
            {
                "watch": "true",
                "resourceVersion": version,
                "allowWatchBookmarks": "true",
                "timeoutSeconds": str(max(1, round(seconds * random.uniform(0.8, 1.0)))),
            }
        )
        path = self.kind.path(self._version)
        try:
            async with self._api.lines(path, query, silence_seconds=seconds + self._pace.silence_seconds) as lines:
                self._heard()
                async for line in lines:
                    version = self._take_line(line) or version
                    self._heard()
                    self._attempts = 0
        except KubeError as error:
            raise _BrokenOffError(version, error) from error
        return version

    def _take_line(self, line: bytes) -> str:
        """Tell what a line says -> its version."""
        try:
            read = decode_line(line)
            raw = bytes(read.object)
            if read.type == "BOOKMARK":
                return read_bookmark(raw)
            if read.type == "ERROR":
                failure = decode_failure(raw)
                raise KubeError(failure.message or failure.reason, code=failure.code, reason=failure.reason)
            item = self._decode(raw)
        except msgspec.MsgspecError as error:
            # What the line said is lost: only a list can tell.
            raise ExpiredError(f"watch of {self.kind.resource}: unreadable line: {error}") from error
        if item is None:
            return ""
        if read.type == "DELETED":
            if self._memory.drop(item.key):
                self._tell([], [item.key])
        elif self._memory.put(item):
            self._tell([item], [])
        return item.resource_version

    # -- what both need

    def _decode(self, raw: bytes) -> Item | None:
        return decode_item(self.kind, self._version, raw)

    def _query(self, query: dict[str, str]) -> dict[str, str]:
        return query | ({"fieldSelector": f"metadata.name={self.kind.name}"} if self.kind.name else {})

    def _heard(self) -> None:
        if self.trouble:
            _log.info("heard again", kind=self.kind.resource)
        self.trouble = ""
        self.heard_at = time.time()

    async def _rest(self, error: KubeError) -> None:
        """After a failure: say it once, wait longer each time."""
        if not self.trouble:
            _log.warning("not heard", kind=self.kind.resource, reason=str(error))
        self.trouble = str(error)
        await self._pause(error.retry_after_seconds)

    async def _pause(self, least_seconds: float = 0.0) -> None:
        seconds = min(WAIT_MAX_SECONDS, WAIT_FIRST_SECONDS * 2**self._attempts)
        self._attempts = min(self._attempts + 1, 16)
        await asyncio.sleep(max(least_seconds, seconds * random.uniform(0.5, 1.0)))


class _BrokenOffError(Exception):
    """A watch that failed after it had come to ``version``."""

    def __init__(self, version: str, cause: KubeError) -> None:
        super().__init__(str(cause))
        self.version = version
        self.cause = cause


class _GroupVersion(msgspec.Struct):
    version: str


class _Group(msgspec.Struct):
    versions: list[_GroupVersion] = []


_GROUP = msgspec.json.Decoder(_Group)
