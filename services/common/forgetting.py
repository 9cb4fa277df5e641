"""Names that are to be forgotten, as an agent and a recorder follow them on YETT_RESOLUTION.

Every one kept by the stream is told at each start, because what it makes void may be heard again; which of them were
carried out before is remembered on disk, so that a restart forgets nothing that was learned since.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from nats.aio.client import Client

from schemas import wire
from schemas.resolution import Forget
from services.common.follow import Follower
from services.common.log import get_logger
from services.common.messages import CaughtUp, Message, Reset

FILES = AGENT_FILE, RECORDER_FILE = "forgotten.json", "recorder-forgotten.json"
"""In the state folder."""

_log = get_logger("forgetting")


@dataclass(frozen=True, slots=True)
class Asked:
    """Forget what the stream has before ``sequence``. ``is_done``: it was carried out here before."""

    forget: Forget
    sequence: int
    is_done: bool


class _Position(msgspec.Struct):
    """How far it has been carried out. ``created``: of the stream, so that another one begins anew."""

    created: str = ""
    sequence: int = 0


class Forgetting:
    """``run`` beside what learns; ``caught_up`` is set once everything that the stream keeps was told."""

    def __init__(self, connection: Client, file: Path, carry_out: Callable[[Asked], Awaitable[None]]) -> None:
        self._connection = connection
        self._file = file
        self._carry_out = carry_out
        self._done = self._read()
        self.caught_up = asyncio.Event()

    @property
    def sequence(self) -> int:
        """Of the last one carried out; 0 if none."""
        return self._done.sequence

    async def run(self) -> None:
        """Until cancelled."""
        async with Follower(self._connection, wire.STREAM_RESOLUTION, [wire.FORGET_PREFIX + ">"]) as follower:
            async for item in follower:
                if isinstance(item, Reset):
                    continue
                if isinstance(item, CaughtUp):
                    self.caught_up.set()
                    continue
                for message in item:
                    await self._take(message, follower.position.created)

    async def _take(self, message: Message, created: str) -> None:
        try:
            forget = wire.decode(message.subject, message.body)
        except wire.WireError as error:
            _log.warning("not understood, passed over", problem=str(error))
            return
        if not isinstance(forget, Forget) or message.subject != subject_of(forget):
            return
        if self._done.created != created:
            self._done = _Position(created)
        is_done = message.sequence <= self._done.sequence
        await self._carry_out(Asked(forget, message.sequence, is_done))
        if not is_done:
            self._done.sequence = message.sequence
            self._write()
            _log.info("forgotten", name=forget.name, node=forget.node, sequence=message.sequence)

    def _read(self) -> _Position:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=_Position)
        except (OSError, msgspec.MsgspecError):
            return _Position()

    def _write(self) -> None:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._file.with_name(f"{self._file.name}.new")
            temporary.write_bytes(msgspec.json.encode(self._done))
            temporary.replace(self._file)
        except OSError as error:
            _log.warning("not remembered; it is carried out again after a restart", problem=str(error))


def subject_of(forget: Forget) -> str:
    """Where one is published; WireError if its name or node could not be one."""
    return wire.subject_forget_name(forget.name) if forget.name else wire.subject_forget_node(forget.node)
