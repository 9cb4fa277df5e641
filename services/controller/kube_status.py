"""Writes what is true of policies into their status, and an Event where one is refused.

* Other controllers' conditions stay: what stands there is read before each write, which carries the version that was
  read. Server-side apply would do, but a server of 1.20 takes the list of conditions of a definition for one value.
* A transition is written at once; a message that merely counts further at most once a minute.
* What stands there is also read once before the first comparison: a new leader writes only what is different, and the
  time of the last transition is kept.
* An Event's name follows from the object's version and the fault: a second leader says nothing twice.
* NetworkPolicy has no status: there are Events only. The same where a definition serves none.

A write that is refused is tried again, later each time, and no other policy waits for it; where the server does not
answer, or is too busy, all wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from schemas.terms import PolicyKind
from services.common.log import get_logger
from services.controller.kube_api import Api, KubeError
from services.controller.kube_events import instant, post_warning
from services.controller.kube_kinds import Kind, kinds_read
from services.controller.policy.model import NAMESPACED_KINDS, PolicyKey
from services.controller.policy.parse import API_OF
from services.controller.policy_status import ACCEPTED, PROGRAMMED, Condition, Told

LOOK_SECONDS = 0.25
"""Changes that come within this time are one look."""
COUNT_SECONDS = 60.0
RETRY_SECONDS = 1.0
LISTEN_SECONDS = 2.0
"""Before a new leader's first look. Agents speak once a second; one not heard yet would be counted as behind."""
WRITES_A_LOOK_MAX = 50
"""So that a start with thousands of policies leaves the API server time for others."""
MERGE = "application/merge-patch+json"
NOT_FOUND = 404
UNAUTHORIZED, TOO_MANY, SERVERS_OWN = 401, 429, 500
"""Not about the object: 401, 429, and from 500 on."""
NO_STATUS = frozenset({PolicyKind.NETWORK_POLICY})

_log = get_logger("status")


class _Written(msgspec.Struct, rename="camel"):
    """One condition as it stands in an object."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    observed_generation: int = 0
    last_transition_time: str = ""


class _Status(msgspec.Struct):
    conditions: list[msgspec.Raw] | None = None


class _Metadata(msgspec.Struct, rename="camel"):
    uid: str = ""
    resource_version: str = ""


class _Object(msgspec.Struct):
    metadata: _Metadata
    status: _Status | None = None

    def conditions(self) -> dict[str, msgspec.Raw]:
        """By type, as they stand; unreadable ones are nobody's."""
        found = {}
        for raw in (self.status.conditions if self.status else None) or ():
            try:
                found[msgspec.json.decode(raw, type=_Written).type] = raw
            except msgspec.MsgspecError:
                continue
        return found


_OBJECT = msgspec.json.Decoder(_Object)
OURS = frozenset({ACCEPTED, PROGRAMMED})


@dataclass(slots=True)
class _Stand:
    """What an object's status says by our hand, and when we wrote it last (seconds of the loop's clock)."""

    conditions: dict[str, _Written]
    at_seconds: float = float("-inf")
    is_silent: bool = False
    """It has no status to write."""


@dataclass(slots=True)
class _Rest:
    """A generation of which the server refused a request. ``until_seconds``: by the loop's clock."""

    generation: int
    until_seconds: float
    seconds: float


class StatusWriter:
    """One per process; works while ``run`` does. ``count_seconds``: least time between two writes of mere counts."""

    def __init__(self, api: Api, namespace: str, *, count_seconds: float = COUNT_SECONDS) -> None:
        self._api = api
        self._kinds = {(kind.group, kind.kind): kind for kind in kinds_read(namespace)}
        self._count_seconds = count_seconds
        self._stands: dict[tuple[PolicyKey, str], _Stand] = {}
        self._rests: dict[tuple[PolicyKey, str], _Rest] = {}
        self._evented: set[tuple[PolicyKey, str]] = set()
        self.writes = 0

    async def run(self, changed: asyncio.Event, read: Callable[[], list[Told]]) -> None:
        """While leading: look whenever something has ``changed``, and write what is different. Until cancelled."""
        self._stands.clear()
        self._rests.clear()
        await asyncio.sleep(LISTEN_SECONDS)
        while True:
            changed.clear()
            seconds = await self._write_all(read())
            try:
                async with asyncio.timeout(seconds):
                    await changed.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(LOOK_SECONDS)

    async def _write_all(self, told: Iterable[Told]) -> float:
        """Write what is due -> in how many seconds to look again if nothing changes."""
        budget, live = WRITES_A_LOOK_MAX, set()
        for each in told:
            place = (each.key, each.uid)
            live.add(place)
            if budget == 0:
                return RETRY_SECONDS
            rest = self._rests.get(place)
            if rest is not None and rest.generation == each.generation and self._now() < rest.until_seconds:
                continue
            try:
                budget -= await self._write(each)
                self._rests.pop(place, None)
            except KubeError as error:
                _log.info("status not written", object=" ".join(each.key), reason=str(error))
                if error.code in (0, UNAUTHORIZED, TOO_MANY) or error.code >= SERVERS_OWN:
                    return max(RETRY_SECONDS, error.retry_after_seconds)
                budget -= 1
                self._let_rest(each)
        for of_place in (self._stands, self._rests):
            for gone in of_place.keys() - live:
                del of_place[gone]
        waits = [rest.until_seconds - self._now() for rest in self._rests.values()]
        return max(0.0, min(waits, default=self._count_seconds))

    def _let_rest(self, told: Told) -> None:
        """Twice as long each time, at most as long as a count waits; another generation is tried at once."""
        rest = self._rests.get((told.key, told.uid))
        is_again = rest is not None and rest.generation == told.generation
        seconds = min(self._count_seconds, rest.seconds * 2 if rest is not None and is_again else RETRY_SECONDS)
        self._rests[told.key, told.uid] = _Rest(told.generation, self._now() + seconds, seconds)

    async def _write(self, told: Told) -> bool:
        """Whether anything was asked of the server."""
        stand = self._stands.get((told.key, told.uid))
        is_new = stand is None
        if stand is None:
            stand = self._stands[told.key, told.uid] = await self._read(told)
        is_due = self._is_due(told, stand)
        if is_due and not stand.is_silent:
            await self._apply(told, stand)
        has_said = await self._say_refusal(told)
        return is_new or is_due or has_said

    def _is_due(self, told: Told, stand: _Stand) -> bool:
        wanted = {condition.type: condition for condition in told.conditions}
        if any(_is_transition(condition, told, stand.conditions.get(condition.type)) for condition in wanted.values()):
            return True
        is_same = all(stand.conditions[name].message == condition.message for name, condition in wanted.items())
        return not is_same and self._now() - stand.at_seconds >= self._count_seconds

    # -- requests

    async def _read(self, told: Told) -> _Stand:
        if PolicyKind(told.key[0]) in NO_STATUS:
            return _Stand({}, is_silent=True)
        obj = _OBJECT.decode(await self._api.get(self._path(told)))
        ours = [msgspec.json.decode(raw, type=_Written) for name, raw in obj.conditions().items() if name in OURS]
        return _Stand({each.type: each for each in ours})

    async def _apply(self, told: Told, stand: _Stand) -> None:
        path = self._path(told)
        try:
            obj = _OBJECT.decode(await self._api.get(path))
            if obj.metadata.uid != told.uid:
                return
            written = [_word(condition, told, stand.conditions.get(condition.type)) for condition in told.conditions]
            foreign = [msgspec.json.decode(raw) for name, raw in obj.conditions().items() if name not in OURS]
            conditions = foreign + msgspec.to_builtins(written)
            metadata = {"resourceVersion": obj.metadata.resource_version}
            body = {"metadata": metadata, "status": {"conditions": conditions}}
            await self._api.send("PATCH", f"{path}/status", body=body, content_type=MERGE)
        except KubeError as error:
            if error.code != NOT_FOUND:
                raise
            # Gone meanwhile, or a definition without a status.
            stand.is_silent = True
            return
        self.writes += 1
        stand.conditions |= {each.type: each for each in written}
        stand.at_seconds = self._now()

    async def _say_refusal(self, told: Told) -> bool:
        accepted = next(condition for condition in told.conditions if condition.type == ACCEPTED)
        if accepted.status:
            return False
        seed = f"{told.uid} {told.generation} {accepted.message}"
        if (told.key, seed) in self._evented:
            return False
        kind = API_OF[PolicyKind(told.key[0])][1]
        involved = {"apiVersion": told.api_version, "kind": kind, "name": told.key[2], "uid": told.uid}
        involved |= {"namespace": told.key[1]} if told.key[1] else {}
        await post_warning(self._api, involved, reason="Refused", message=accepted.message, seed=seed)
        self._evented.add((told.key, seed))
        return True

    def _path(self, told: Told) -> str:
        """In the version by which it was read: another may not be served."""
        key = told.key
        group, _, short = told.api_version.rpartition("/")
        kind: Kind = self._kinds[group, API_OF[PolicyKind(key[0])][1]]
        place = f"/namespaces/{key[1]}" if PolicyKind(key[0]) in NAMESPACED_KINDS else ""
        return f"/apis/{group}/{short}{place}/{kind.plural}/{key[2]}"

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _is_transition(condition: Condition, told: Told, stands: _Written | None) -> bool:
    if stands is None or stands.observed_generation != told.generation:
        return True
    if condition.type == ACCEPTED and stands.message != condition.message:
        return True
    return (stands.status, stands.reason) != (str(condition.status), condition.reason)


def _word(condition: Condition, told: Told, stands: _Written | None) -> _Written:
    is_same = stands is not None and stands.status == str(condition.status) and stands.last_transition_time
    return _Written(
        type=condition.type,
        status=str(condition.status),
        reason=condition.reason,
        message=condition.message,
        observed_generation=told.generation,
        last_transition_time=stands.last_transition_time if is_same and stands is not None else instant(),
    )
