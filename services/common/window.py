"""Acknowledged publishing through a window of our own.

At most ``limit`` messages are on their way; each has a deadline; the first refusal, silence or failure ends the window
for good, naming the message. There is no retry here: a row that was refused means that someone else leads, or that the
stream's content is no longer known, and both end the term.

Why not the client's own: its asynchronous publish never resolves a refusal, and a server under load answers "too many
requests" to what was not paced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

LIMIT = 4_000
"""In flight at once: below what a server sheds, above what a round trip needs."""
DEADLINE_SECONDS = 5.0
POLL_SECONDS = 0.25
"""How often a connection that was lost and found again is noticed: what was in flight then is never answered."""
WRONG_LAST_SEQUENCE = (10071, 10164)
"""The server's numbers for an expectation (our fence) that does not hold."""


class WindowError(Exception):
    """Publishing ended. ``subject``: the message it ended at. ``error_code``: the server's, 0 without an answer."""

    def __init__(self, subject: str, message: str, error_code: int = 0) -> None:
        super().__init__(f"{subject}: {message}" + (f" (error {error_code})" if error_code else ""))
        self.subject = subject
        self.error_code = error_code


class FencedError(WindowError):
    """Refused by the fence: another leader has written its mark."""


class _Refusal(msgspec.Struct):
    err_code: int = 0
    description: str = ""


class _Ack(msgspec.Struct):
    seq: int = 0
    error: _Refusal | None = None


_decode_ack = msgspec.json.Decoder(_Ack).decode


class Window:
    """Use as ``async with``. One task publishes; ``refused`` counts the refusals seen."""

    def __init__(self, connection: Client, *, limit: int = LIMIT, deadline_seconds: float = DEADLINE_SECONDS) -> None:
        self._connection = connection
        self._limit = limit
        self._deadline_seconds = deadline_seconds
        self._inbox = connection.new_inbox()
        self._subscription: Subscription | None = None
        self._waiting: dict[int, tuple[str, float]] = {}
        self._number = 0
        self._failure: WindowError | None = None
        self._reconnects = connection.stats["reconnects"]
        self._moved = asyncio.Event()
        self._until = 0
        self.last_sequence = 0
        """Highest stream sequence acknowledged so far."""
        self.acknowledged = 0
        self.refused = 0

    async def __aenter__(self) -> Window:
        self._subscription = await self._connection.subscribe(f"{self._inbox}.*", cb=self._on_answer)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._subscription is not None and not self._connection.is_closed:
            await self._subscription.unsubscribe()
        self._subscription = None

    async def publish(self, subject: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Send when there is room. Raises WindowError once anything sent before was refused or not answered in time."""
        while len(self._waiting) >= self._limit:
            await self._wait(until=self._limit // 2)
        self._raise_failure()
        self._number += 1
        self._waiting[self._number] = (subject, self._now() + self._deadline_seconds)
        try:
            await self._connection.publish(subject, body, reply=f"{self._inbox}.{self._number}", headers=dict(headers))
        except (nats.errors.Error, OSError) as error:
            self._fail(WindowError(subject, f"could not be sent: {str(error) or type(error).__name__}"))
            self._raise_failure()

    async def drain(self) -> None:
        """Return when everything sent is acknowledged; raises WindowError as ``publish``."""
        while self._waiting:
            await self._wait(until=0)
        self._raise_failure()

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    async def _wait(self, *, until: int) -> None:
        """Sleep until no more than ``until`` are in flight: to wake at each answer costs more than the answer."""
        self._raise_failure()
        self._until = until
        self._moved.clear()
        subject, deadline = next(iter(self._waiting.values()))
        try:
            async with asyncio.timeout(min(deadline - self._now(), POLL_SECONDS)):
                await self._moved.wait()
        except TimeoutError:
            self._judge_silence(subject, deadline)
        self._raise_failure()

    def _judge_silence(self, subject: str, deadline: float) -> None:
        if self._connection.stats["reconnects"] != self._reconnects:
            self._fail(WindowError(subject, "the connection was lost before it was acknowledged"))
        elif self._now() >= deadline:
            self._fail(WindowError(subject, f"no acknowledgement within {self._deadline_seconds} s"))

    async def _on_answer(self, message: Msg) -> None:
        waiting = self._waiting.pop(int(message.subject.rpartition(".")[2]), None)
        if waiting is None:
            return
        self._judge(waiting[0], message)
        if len(self._waiting) <= self._until:
            self._moved.set()

    def _judge(self, subject: str, message: Msg) -> None:
        if not message.data:
            self._fail(WindowError(subject, "no stream takes this subject"))
            return
        try:
            ack = _decode_ack(message.data)
        except msgspec.DecodeError as error:
            self._fail(WindowError(subject, f"an acknowledgement that does not decode: {error}"))
            return
        if ack.error is None:
            self.acknowledged += 1
            self.last_sequence = max(self.last_sequence, ack.seq)
            return
        self.refused += 1
        kind = FencedError if ack.error.err_code in WRONG_LAST_SEQUENCE else WindowError
        self._fail(kind(subject, f"refused: {ack.error.description}", ack.error.err_code))

    def _fail(self, failure: WindowError) -> None:
        if self._failure is None:
            self._failure = failure
        self._moved.set()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
