"""Messages as the server delivers them -> ``Message``: headers, and the numbers in an acknowledgement subject.

Pure. The delivery's numbers stand in its reply subject, ``$JS.ACK.<stream>.<consumer>.<times>.<sequence>.<consumer
sequence>.<unix nanos>.<pending>``, with a domain and an account before the stream where the server has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from schemas import wire
from services.common.messages import Message

_MARKER = "Nats-Marker-Reason"
"""The server's own delete marker, where a stream is set to leave one when a message's TTL ends."""
_SHORT_TOKENS = 9


class Delivery(NamedTuple):
    """Where a delivered message stands in its stream and in its consumer, and how many more there were."""

    sequence: int
    consumer_sequence: int
    unix_nanos: int
    pending: int


def parse_delivery(reply: str) -> Delivery | None:
    """None if it is not the reply subject of a JetStream delivery."""
    tokens = reply.split(".")
    if len(tokens) < _SHORT_TOKENS or tokens[0] != "$JS" or tokens[1] != "ACK":
        return None
    numbers = tokens[5:9] if len(tokens) == _SHORT_TOKENS else tokens[7:11]
    return Delivery(*(int(number) for number in numbers))


def read_message(subject: str, body: bytes, headers: Mapping[str, str], sequence: int, unix_nanos: int) -> Message:
    """The message with what its headers say."""
    return Message(
        subject,
        body,
        headers.get(wire.HEADER_OPERATION) == wire.OPERATION_DELETE or _MARKER in headers,
        sequence,
        headers.get(wire.HEADER_TRACE, ""),
        unix_nanos,
        headers.get(wire.HEADER_UID, ""),
        headers.get(wire.HEADER_SCHEMA, ""),
    )


def read_stored(*, subject: str, body: bytes, header_block: bytes, sequence: int, unix_nanos: int) -> Message:
    """The message from a stored header block (``NATS/1.0``, then one ``Name: value`` a line)."""
    lines = header_block.decode(errors="replace").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if line)
    return read_message(subject, body, {name: value.strip() for name, _, value in pairs}, sequence, unix_nanos)
