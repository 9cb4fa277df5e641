"""What the server says in subjects and headers, read without NATS."""

from __future__ import annotations

import pytest

from services.common.jetstream import parse_unix_nanos
from services.common.received import Delivery, parse_delivery, read_message, read_stored


@pytest.mark.parametrize(
    "reply",
    [
        "$JS.ACK.YETT_POLICY.consumer.1.50.7.1700000000000000001.3",
        "$JS.ACK.hub.ACCOUNTHASH.YETT_POLICY.consumer.1.50.7.1700000000000000001.3",
        "$JS.ACK.hub.ACCOUNTHASH.YETT_POLICY.consumer.1.50.7.1700000000000000001.3.random",
    ],
    ids=["short", "with domain and account", "with a random token"],
)
def test_a_delivery_is_read_in_all_its_forms(reply: str) -> None:
    """Sequence, consumer sequence, server time and pending stand in the reply subject, whatever stands before them."""
    assert parse_delivery(reply) == Delivery(50, 7, 1700000000000000001, 3)


@pytest.mark.parametrize("reply", ["", "_INBOX.abc", "$JS.ACK.x", "$JS.API.STREAM.INFO.a.b.c.d.e"])
def test_what_is_no_delivery_is_none(reply: str) -> None:
    """Other reply subjects are not mistaken for a delivery."""
    assert parse_delivery(reply) is None


def test_a_delete_marker_of_the_server_is_a_removal() -> None:
    """A marker that the server leaves when a message's TTL ends counts as a removal, as our own header does."""
    assert read_message("s", b"", {"Nats-Marker-Reason": "MaxAge"}, 1, 0).is_delete
    assert read_message("s", b"", {"Yett-Op": "delete"}, 1, 0).is_delete
    assert not read_message("s", b"", {"Yett-Op": "other"}, 1, 0).is_delete


def test_a_stored_header_block_is_read() -> None:
    """The headers of a message fetched from the stream say the same as those of a delivered one."""
    block = b"NATS/1.0\r\nYett-Op: delete\r\nYett-Uid: a:b\r\ntraceparent: 00-1-2-01\r\n\r\n"
    message = read_stored(subject="s", body=b"", header_block=block, sequence=4, unix_nanos=9)
    assert (message.is_delete, message.uid, message.trace, message.sequence) == (True, "a:b", "00-1-2-01", 4)


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000_000),
        ("1970-01-01T00:00:00.5Z", 500_000_000),
        ("1970-01-01T00:00:00.000000001Z", 1),
    ],
)
def test_server_times_keep_their_nanoseconds(text: str, nanos: int) -> None:
    """The server writes up to nine digits of a second; none is lost."""
    assert parse_unix_nanos(text) == nanos
