"""The few calls of the JetStream API that Yett needs, with the server's own words for an error.

Streams and consumers are made from plain JSON, so that a field younger than the client library reaches the server.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import nats.errors
from nats.aio.client import Client

from services.common.cancellation import heeding_cancellation
from services.common.messages import Message
from services.common.received import read_stored

API_PREFIX = "yett_api_prefix"
"""Among a connection's options: whoever is handed a connection then speaks to the API that it may use."""
STREAM_NOT_FOUND = 10059
MESSAGE_NOT_FOUND = 10037
CONSUMER_NOT_FOUND = 10014


class JetStreamError(Exception):
    """The server refused ``operation``. ``error_code`` is its own number for it, 0 if it did not answer at all."""

    def __init__(self, operation: str, description: str, error_code: int = 0) -> None:
        super().__init__(f"{operation}: {description}" + (f" (error {error_code})" if error_code else ""))
        self.operation = operation
        self.error_code = error_code


@dataclass(frozen=True, slots=True)
class StreamState:
    """What identifies a stream and how far it is. ``created`` changes when it is deleted and made again."""

    created: str
    first_sequence: int
    last_sequence: int
    consumers: int
    config: dict[str, Any]


class JetStream:
    """The API where the connection's settings say that it is; another account's is imported under another prefix."""

    def __init__(self, connection: Client, *, timeout_seconds: float = 2.0) -> None:
        self.connection = connection
        self.prefix: str = connection.options.get(API_PREFIX, "$JS.API")
        self._timeout_seconds = timeout_seconds

    async def call(self, operation: str, body: object = None) -> dict[str, Any]:
        """One request; raises JetStreamError where the server refuses or does not answer."""
        payload = b"" if body is None else msgspec.json.encode(body)
        subject, seconds = f"{self.prefix}.{operation}", self._timeout_seconds
        try:
            with heeding_cancellation():
                reply = await self.connection.request(subject, payload, timeout=seconds)
        except (nats.errors.Error, OSError) as error:
            raise JetStreamError(operation, str(error) or type(error).__name__) from error
        answer: dict[str, Any] = msgspec.json.decode(reply.data)
        if "error" in answer:
            refusal = answer["error"]
            raise JetStreamError(operation, str(refusal.get("description", "")), int(refusal.get("err_code", 0)))
        return answer

    async def read_stream(self, stream: str) -> StreamState:
        """The stream's present state; JetStreamError with STREAM_NOT_FOUND if there is none."""
        answer = await self.call(f"STREAM.INFO.{stream}")
        state = answer["state"]
        return StreamState(
            created=answer["created"],
            first_sequence=state["first_seq"],
            last_sequence=state["last_seq"],
            consumers=state["consumer_count"],
            config=answer["config"],
        )

    async def read_last(self, stream: str, subject: str) -> Message | None:
        """The last message on a subject, from the stream's leader (never a lagging replica); None if there is none."""
        try:
            answer = await self.call(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
        except JetStreamError as error:
            if error.error_code == MESSAGE_NOT_FOUND:
                return None
            raise
        stored = answer["message"]
        return read_stored(
            subject=stored["subject"],
            body=base64.b64decode(stored.get("data", "")),
            header_block=base64.b64decode(stored.get("hdrs", "")),
            sequence=stored["seq"],
            unix_nanos=parse_unix_nanos(stored["time"]),
        )


def parse_unix_nanos(text: str) -> int:
    """The server's RFC 3339 time, up to nine digits of fraction, as nanoseconds since 1970."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole + "+00:00").timestamp())
    return seconds * 1_000_000_000 + int(fraction.ljust(9, "0") or 0)
