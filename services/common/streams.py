"""The streams, the bucket of usage among them: made if absent, brought to what is wanted if present, and checked.

A server that does not know a field ignores it without an error, so what it stored is compared with what was asked.
"""

from __future__ import annotations

from typing import Any

from schemas import wire
from services.common.jetstream import STREAM_NOT_FOUND, JetStream, JetStreamError

MAX_CONSUMERS = 20_000
"""2.15 gives a stream 1,000 unless told; one agent, one consumer."""
MAX_MESSAGE_BYTES = wire.MAX_ROW_BYTES + 16 * 1024
"""A row and its headers."""

Config = dict[str, Any]


class StreamError(Exception):
    """A stream that is not what Yett needs, and could not be made so."""


def policy_stream(*, replicas: int = 1) -> Config:
    """One message a subject: replaying it is the snapshot, following it is the delta.

    On several servers rows come in batches (``services.common.batches``), which takes a server of 2.12.
    """
    return {
        "name": wire.STREAM_POLICY,
        "subjects": [wire.POLICY_PREFIX + ">"],
        "max_msgs_per_subject": 1,
        "allow_msg_ttl": True,
        "max_age": 0,
        "max_bytes": -1,
        **({"allow_atomic": True} if replicas > 1 else {}),
        **_common(replicas),
    }


def resolution_stream(*, max_bytes: int, replicas: int = 1) -> Config:
    """Each message lives for its own TTL; when the stream is full the oldest go. A name may have many at once."""
    return {
        "name": wire.STREAM_RESOLUTION,
        "subjects": [wire.RESOLUTION_PREFIX + ">", wire.FORGET_PREFIX + ">"],
        "max_msgs_per_subject": -1,
        "allow_msg_ttl": True,
        "max_age": 0,
        "max_bytes": max_bytes,
        **_common(replicas),
    }


def verdict_stream(*, max_bytes: int, max_age_seconds: int, replicas: int = 1) -> Config:
    """Aggregated denials and refused names. Single verdicts are plain NATS: no stream takes 50,000 a second a node."""
    return {
        "name": wire.STREAM_VERDICT,
        "subjects": [wire.DENIED_PREFIX + ">", wire.NAME_REFUSED_PREFIX + ">"],
        "max_msgs_per_subject": -1,
        "max_age": max_age_seconds * 1_000_000_000,
        "max_bytes": max_bytes,
        **_common(replicas),
    }


def usage_stream(*, max_bytes: int, max_age_seconds: int, replicas: int = 1) -> Config:
    """The bucket ``yett_usage``. When it is full nothing new is stored, and that is told; nothing old is lost for it.

    What is of use still is written again once a day, so only what is gone grows old.
    """
    return {
        "name": wire.STREAM_USAGE,
        "subjects": [wire.USAGE_BUCKET_PREFIX + ">"],
        "max_msgs_per_subject": 1,
        "max_age": max_age_seconds * 1_000_000_000,
        "max_bytes": max_bytes,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        **_common(replicas),
        "discard": "new",
    }


def _common(replicas: int) -> Config:
    return {
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "allow_direct": True,
        "max_consumers": MAX_CONSUMERS,
        "max_msg_size": MAX_MESSAGE_BYTES,
        "max_msgs": -1,
        "num_replicas": replicas,
        "duplicate_window": 1_000_000_000,
    }


async def ensure_stream(jetstream: JetStream, config: Config) -> None:
    """Make the stream or bring it to ``config``; StreamError names the fields that the server does not honour."""
    name = config["name"]
    try:
        present = (await jetstream.read_stream(name)).config
    except JetStreamError as error:
        if error.error_code != STREAM_NOT_FOUND:
            raise
        present = {}
    if not find_differences(config, present):
        return
    operation = "UPDATE" if present else "CREATE"
    try:
        answer = await jetstream.call(f"STREAM.{operation}.{name}", {**present, **config})
    except JetStreamError as error:
        if not error.error_code:
            raise
        changes = ", ".join(find_differences(config, present)) if present else "a new stream"
        raise StreamError(f"stream {name} ({changes}): {error}") from error
    refused = find_differences(config, answer["config"])
    if refused:
        raise StreamError(f"stream {name}: the server does not honour {', '.join(refused)}")


def find_differences(wanted: Config, present: Config) -> list[str]:
    """``field: present, wanted x`` for every field wanted that is not so. Zero, -1 and absent limits are one."""
    return [
        f"{field}: {present.get(field)!r}, wanted {value!r}"
        for field, value in wanted.items()
        if _normal(present.get(field)) != _normal(value)
    ]


def _normal(value: object) -> object:
    return None if value in (0, -1, None, False) else value
