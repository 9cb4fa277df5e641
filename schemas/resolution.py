"""What an address is called: facts from DNS answers, on stream YETT_RESOLUTION and on plain subjects."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from schemas.terms import NodeName


class Resolution(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``yett.resolution.<node>.<labels reversed>``: a node saw ``name`` resolve to ``addresses``.

    ``name``: lower case, no trailing dot. ``ttl_seconds``: as answered, before any clamp.
    ``endpoint``: ``namespace/pod`` that asked. Age is the server's (message timestamp), never the sender's.
    """

    name: str
    addresses: tuple[str, ...]
    ttl_seconds: Annotated[int, Meta(ge=0, le=0x7FFFFFFF)]
    node: NodeName
    resolver: str = ""
    endpoint: str = ""
    learned_unix_nanos: int = 0
    """Sender's clock when the kernel released the answer: for tracing only."""


class Forget(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``yett.forget.name.<labels reversed>`` or ``yett.forget.node.<node>``, kept on YETT_RESOLUTION for a day.

    What was learned of the name before, or published by the node before, admits no new flow any more. Forgetting opens
    nothing, so it is not signed. Either ``name`` or ``node`` is set. ``addresses``: what the stream held of the name.
    """

    name: str = ""
    node: NodeName = NodeName("")
    addresses: tuple[str, ...] = ()


class Observed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``yett.observed.<node>``: plain NATS; what one endpoint was told, covered by a pattern or not.

    The agent of the same node uses it to say which name a denied address was asked for.
    ``handed_over``: the kernel could not read this answer, so the agent is to teach it all of ``addresses``.
    """

    endpoint_id: int
    name: str
    addresses: tuple[str, ...]
    ttl_seconds: int = 0
    rcode: int = 0
    handed_over: bool = False
    forgotten: bool = False
    """The recorder has forgotten the name; these are the addresses that it knew for it."""
    reason: int = 0
    """Why the kernel did not learn it, or not in full: a ``LEARN_*`` reason, 0 if it did.

    LEARN_RCODE and LEARN_NO_ADDRESS: the answer holds no address; some pattern in force covers the name.
    """
    resolver: str = ""
    suppressed: int = 0
    """Of such an answer: how many more of this endpoint the kernel held back since the last one."""
