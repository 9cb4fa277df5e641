"""What following a stream yields: batches of messages, and the two things that are not messages.

Pure, so that a core which is fed with them need not know NATS.
"""

from __future__ import annotations

import msgspec


class Message(msgspec.Struct, frozen=True):
    """One stored message. ``unix_nanos`` is the server's clock when it stored it, never the sender's.

    ``schema``: ``Kind/version`` of the body, empty if the sender said nothing. ``uid``: on a removal, whose it was.
    """

    subject: str
    body: bytes
    is_delete: bool
    sequence: int
    trace: str = ""
    unix_nanos: int = 0
    uid: str = ""
    schema: str = ""


class Reset(msgspec.Struct, frozen=True):
    """What was followed so far is void: every message of the stream comes again, from the first."""

    reason: str


class CaughtUp(msgspec.Struct, frozen=True):
    """The backlog there was when following began (or began again) has been delivered, up to ``sequence``."""

    sequence: int


class Position(msgspec.Struct, frozen=True):
    """Where to go on: the stream by its time of creation, and the first sequence that is wanted."""

    created: str
    sequence: int


Item = list[Message] | Reset | CaughtUp
