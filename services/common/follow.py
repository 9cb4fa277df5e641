"""Follow a stream: a pull loop of our own that survives what streams go through.

A follower yields batches of messages in the stream's order, ``Reset`` when everything comes again, ``CaughtUp`` when
the backlog has been delivered. It makes its consumer again, at the right sequence, when the server restarts, the
connection returns, a heartbeat or a delivery is missed; it starts over when the stream was deleted and made again or
has lost messages it had (checked at every connection and every ten seconds).

Why not the client's ordered consumer: after its stream was made again it stays deaf.
A stream that keeps one message a subject skips messages by design: a batch is not every change, the last one wins.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from services.common.jetstream import STREAM_NOT_FOUND, JetStream, JetStreamError, StreamState
from services.common.log import get_logger
from services.common.messages import CaughtUp, Item, Message, Position, Reset
from services.common.received import parse_delivery, read_message

_log = get_logger("follow")

_STATUS = "Status"
_HEARTBEAT = "100"
_REQUEST_OVER = ("404", "408")
_BATCH_COMPLETED = "Batch Completed"
"""A 409 that only says that the request is over; every other 409 is about the consumer."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Times in seconds, and how much one pull asks for."""

    heartbeat: float = 2.0
    deadline: float = 5.0
    """Without a message or heartbeat for this long the consumer is made again.

    Counted in waits that ended with nothing: of a process that gets no processor it is not the server that is silent,
    and to make consumers again would be more work for both.
    """
    check: float = 10.0
    """How often the stream's identity and last sequence are compared."""
    poll: float = 0.25
    """How often a returned connection is noticed."""
    pull_messages: int = 1_000
    pull_bytes: int = 16 * 1024 * 1024
    pull_expires: float = 30.0
    inactive: float = 30.0
    """The server forgets a consumer that has not pulled for this long."""
    retry_first: float = 0.05
    retry_longest: float = 2.0


class Follower:
    """``async with Follower(...) as follower: async for item in follower``. Cancelling a wait loses nothing.

    ``tick_seconds``: after that long without an item an empty batch is one, for who must look at a clock; 0: never.

    ``filters``: subjects, none covering another. ``start``: where to go on; None: from the first message on.
    A stream that does not exist (yet) is waited for, or JetStreamError where it ``must_exist``. JetStreamError once the
    connection has been closed.
    """

    def __init__(
        self,
        connection: Client,
        stream: str,
        filters: Sequence[str],
        *,
        start: Position | None = None,
        must_exist: bool = False,
        tick_seconds: float = 0.0,
        pace: Pace | None = None,
        jetstream: JetStream | None = None,
    ) -> None:
        self._connection = connection
        self._jetstream = jetstream or JetStream(connection)
        self._stream = stream
        self._filters = list(filters)
        self._must_exist = must_exist
        self._tick_seconds = tick_seconds
        self._yielded = float("-inf")
        self._pace = pace or Pace()
        self._created = start.created if start else ""
        self._next = start.sequence if start else 1
        self._consumer = ""
        self._subscription: Subscription | None = None
        self._arrivals: deque[Msg] = deque()
        self._arrived = asyncio.Event()
        self._items: deque[Item] = deque()
        self._consumer_sequence = 0
        self._pulled = 0
        self._catching_up = True
        self._backlog_end = 0
        self._reconnects = 0
        self._silence = 0.0
        self._checked = 0.0
        self._restart_reason = ""

    async def __aenter__(self) -> Follower:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> Follower:
        return self

    async def __anext__(self) -> Item:
        while not self._items:
            if self._restart_reason:
                self._start_over(self._restart_reason)
            elif not self._consumer:
                await self._attach()
            else:
                await self._receive()
                self._tick()
        self._yielded = self._now()
        return self._items.popleft()

    @property
    def position(self) -> Position:
        """Where a follower that takes over from here would start. ``created`` is empty before the first connection."""
        return Position(self._created, self._next)

    def restart(self, reason: str) -> None:
        """Begin again with the first message; a ``Reset`` comes first."""
        self._restart_reason = reason

    async def close(self) -> None:
        """Tell the server that this follower is gone."""
        consumer = self._consumer
        await self._detach()
        if consumer and self._connection.is_connected:
            try:
                await self._jetstream.call(f"CONSUMER.DELETE.{self._stream}.{consumer}")
            except JetStreamError as error:
                _log.debug("consumer not deleted, the server will forget it", problem=str(error))

    # -- attaching

    async def _attach(self) -> None:
        """Make a consumer at the next sequence wanted; waits for the stream and for the server."""
        wait = self._pace.retry_first
        said = ""
        while True:
            try:
                await self._try_attach()
                return
            except JetStreamError as error:
                is_missing = error.error_code == STREAM_NOT_FOUND
                if self._connection.is_closed or (is_missing and self._must_exist):
                    raise
                reason = "no such stream yet" if is_missing else str(error)
                if reason != said:
                    _log.info("waiting for the stream", stream=self._stream, problem=reason)
                    said = reason
            await asyncio.sleep(wait)
            wait = min(wait * 2, self._pace.retry_longest)

    async def _try_attach(self) -> None:
        await self._detach()
        state = await self._jetstream.read_stream(self._stream)
        if self._compare(state):
            return
        inbox = self._connection.new_inbox()
        try:
            self._subscription = await self._connection.subscribe(inbox, cb=self._make_receiver(inbox))
        except (nats.errors.Error, OSError) as error:
            raise JetStreamError("subscribe", str(error) or type(error).__name__) from error
        consumer = inbox.rpartition(".")[2]
        answer = await self._jetstream.call(
            f"CONSUMER.CREATE.{self._stream}.{consumer}",
            {"stream_name": self._stream, "action": "create", "config": self._consumer_config(consumer)},
        )
        self._consumer = consumer
        self._backlog_end = state.last_sequence
        self._reconnects = self._connection.stats["reconnects"]
        self._silence = 0.0
        self._checked = self._now()
        if answer.get("num_pending", 0) == 0:
            self._end_backlog()

    def _consumer_config(self, consumer: str) -> dict[str, Any]:
        return {
            "name": consumer,
            "ack_policy": "none",
            "replay_policy": "instant",
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": max(self._next, 1),
            "filter_subjects": self._filters,
            "inactive_threshold": _nanos(self._pace.inactive),
            "num_replicas": 1,
            "mem_storage": True,
        }

    def _compare(self, state: StreamState) -> bool:
        """Whether the stream is not the one followed so far, or has lost what we have seen: then start over."""
        if self._created and state.created != self._created:
            reason = f"stream made again at {state.created}"
        elif state.last_sequence + 1 < self._next:
            reason = f"stream is at {state.last_sequence}, behind {self._next - 1} that was seen"
        else:
            self._created = state.created
            return False
        self._created = state.created
        self._start_over(reason)
        return True

    def _start_over(self, reason: str) -> None:
        _log.info("starting over", stream=self._stream, reason=reason)
        self._restart_reason = ""
        self._next = 1
        self._catching_up = True
        self._consumer = ""
        self._arrivals.clear()
        self._items.append(Reset(reason))

    async def _detach(self) -> None:
        subscription, self._subscription = self._subscription, None
        self._consumer = ""
        self._consumer_sequence = 0
        self._pulled = 0
        if subscription is not None and not self._connection.is_closed:
            await subscription.unsubscribe()
        self._arrivals.clear()

    def _lose_consumer(self, reason: str) -> None:
        _log.info("consumer lost, making it again", stream=self._stream, reason=reason, next=self._next)
        self._consumer = ""

    # -- receiving

    def _make_receiver(self, inbox: str) -> Callable[[Msg], Awaitable[None]]:
        """Takes what arrives for this inbox for as long as it is ours; a former one's leftovers are dropped."""

        async def on_message(message: Msg) -> None:
            if self._subscription is not None and self._subscription.subject == inbox:
                self._arrivals.append(message)
                self._arrived.set()

        return on_message

    async def _receive(self) -> None:
        """Wait for something to happen, then turn what has arrived into items."""
        if self._pulled <= 0:
            await self._pull()
        if not self._arrivals:
            self._arrived.clear()
            try:
                async with asyncio.timeout(self._pace.poll):
                    await self._arrived.wait()
            except TimeoutError:
                self._silence += self._pace.poll
                await self._check()
                return
        self._silence = 0.0
        self._take_arrivals()
        if self._now() - self._checked > self._pace.check:
            await self._check()

    def _tick(self) -> None:
        if self._tick_seconds and not self._items and self._now() - self._yielded >= self._tick_seconds:
            self._items.append([])

    async def _pull(self) -> None:
        request = (
            b'{"batch":%d,"max_bytes":%d,"expires":%d,"idle_heartbeat":%d}'
            % (
                self._pace.pull_messages,
                self._pace.pull_bytes,
                _nanos(self._pace.pull_expires),
                _nanos(self._pace.heartbeat),
            )
        )  # fmt: skip
        subscription = self._subscription
        if subscription is None:
            self._lose_consumer("not subscribed")
            return
        subject = f"{self._jetstream.prefix}.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}"
        try:
            await self._connection.publish(subject, request, reply=subscription.subject)
        except (nats.errors.Error, OSError) as error:
            self._lose_consumer(str(error) or type(error).__name__)
            return
        self._pulled = self._pace.pull_messages

    def _take_arrivals(self) -> None:
        batch: list[Message] = []
        while self._arrivals and self._consumer:
            message = self._arrivals.popleft()
            if message.headers and _STATUS in message.headers:
                self._on_status(message.headers, batch)
            else:
                self._on_delivery(message, batch)
        self._yield_batch(batch)

    def _on_delivery(self, message: Msg, batch: list[Message]) -> None:
        delivery = parse_delivery(message.reply)
        if delivery is None:
            return
        if delivery.consumer_sequence != self._consumer_sequence + 1:
            self._lose_consumer(f"delivery {self._consumer_sequence + 1} is missing")
            return
        self._consumer_sequence = delivery.consumer_sequence
        self._next = delivery.sequence + 1
        self._pulled -= 1
        batch.append(
            read_message(message.subject, message.data, message.headers or {}, delivery.sequence, delivery.unix_nanos)
        )
        if self._catching_up and (delivery.pending == 0 or delivery.sequence >= self._backlog_end):
            self._yield_batch(batch)
            self._end_backlog()

    def _on_status(self, headers: dict[str, str], batch: list[Message]) -> None:
        status, description = headers[_STATUS], headers.get("Description", "")
        if status == _HEARTBEAT:
            # Nothing to deliver: what remained of the backlog has been replaced or has expired.
            if self._catching_up:
                self._yield_batch(batch)
                self._end_backlog()
        elif status in _REQUEST_OVER or description.startswith(_BATCH_COMPLETED):
            self._pulled = 0
        else:
            self._lose_consumer(f"{status} {description}".strip())

    def _yield_batch(self, batch: list[Message]) -> None:
        if batch:
            self._items.append(batch.copy())
            batch.clear()

    def _end_backlog(self) -> None:
        if self._catching_up:
            self._catching_up = False
            self._items.append(CaughtUp(self._next - 1))

    # -- doubting

    async def _check(self) -> None:
        """Is the connection, the consumer and the stream still the one we follow?"""
        now = self._now()
        if self._connection.stats["reconnects"] != self._reconnects:
            self._lose_consumer("reconnected")
        elif self._silence > self._pace.deadline:
            self._lose_consumer(f"nothing heard for {self._pace.deadline} s")
        elif now - self._checked > self._pace.check:
            self._checked = now
            try:
                self._compare(await self._jetstream.read_stream(self._stream))
            except JetStreamError as error:
                self._lose_consumer(str(error))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _nanos(seconds: float) -> int:
    return int(seconds * 1_000_000_000)
