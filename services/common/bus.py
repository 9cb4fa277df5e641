"""What is heard on the bus: statuses of controller, agents and recorders, and every verdict.

A listener only, for the demo and for who looks at a cluster: nothing is published, and what is told of a row is what
the services said of it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from schemas import wire
from schemas.status import AgentStatus, ControllerStatus, RecorderStatus
from schemas.verdict import VerdictEvent
from services.common.nats import flush

VERDICTS_KEPT = 20_000
POLL_SECONDS = 0.01
REQUEST_SECONDS = 1.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Heard:
    """A verdict, and when it came, by this process's monotonic clock."""

    at: float
    event: VerdictEvent


class Bus:
    """A connection that listens."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.agents: dict[str, AgentStatus] = {}
        """Newest status by node name."""
        self.recorders: dict[str, RecorderStatus] = {}
        self.controller: ControllerStatus | None = None
        self.verdicts: deque[Heard] = deque(maxlen=VERDICTS_KEPT)
        self.undecodable = 0

    @classmethod
    async def open(cls, url: str) -> Bus:
        """Connected and listening; nats.errors.Error or OSError if there is no server."""
        client = Client()
        await client.connect(url, name="yett", allow_reconnect=True, max_reconnect_attempts=-1, error_cb=_ignore)
        return await cls.listen(client)

    @classmethod
    async def listen(cls, client: Client, *, verdicts: bool = True) -> Bus:
        """Over a connection that is there. ``verdicts``: those too."""
        bus = cls(client)
        if verdicts:
            await client.subscribe("yett.verdict.>", cb=bus._on_message)
        await client.subscribe("yett.status.>", cb=bus._on_message)
        await flush(client)
        return bus

    async def close(self) -> None:
        """Ends the connection."""
        await self._client.close()

    async def ask_controller(self) -> ControllerStatus | None:
        """The leader's status now; None if no controller answers."""
        try:
            answer = await self._client.request(wire.SUBJECT_STATUS_CONTROLLER_GET, b"", timeout=REQUEST_SECONDS)
            status = wire.decode(wire.SUBJECT_STATUS_CONTROLLER, answer.data)
        except (nats.errors.Error, TimeoutError, wire.WireError):
            return None
        assert isinstance(status, ControllerStatus)
        self.controller = status
        return status

    def find_verdicts(self, since: float, matches: Callable[[VerdictEvent], bool]) -> list[VerdictEvent]:
        """Verdicts that came after ``since``, oldest first."""
        return [heard.event for heard in self.verdicts if heard.at >= since and matches(heard.event)]

    async def _on_message(self, message: Msg) -> None:
        if message.subject == wire.SUBJECT_STATUS_CONTROLLER_GET:
            return
        try:
            body = wire.decode(message.subject, message.data)
        except wire.WireError:
            self.undecodable += 1
            return
        self._keep(body)

    def _keep(self, body: msgspec.Struct) -> None:
        match body:
            case VerdictEvent():
                self.verdicts.append(Heard(time.monotonic(), body))
            case AgentStatus():
                self.agents[body.node] = body
            case RecorderStatus():
                self.recorders[body.node] = body
            case ControllerStatus():
                self.controller = body
            case _:
                self.undecodable += 1


async def wait_for(find: Callable[[], T | None], seconds: float) -> T | None:
    """The first thing ``find`` returns that is neither None nor False, or None when the time is over."""
    deadline = time.monotonic() + seconds
    while not (found := find()):
        if time.monotonic() > deadline:
            return None
        await asyncio.sleep(POLL_SECONDS)
    return found


async def _ignore(error: Exception) -> Any:
    """Reconnecting is nats-py's affair, and what is missed shows as a row without a verdict."""
