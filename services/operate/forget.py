"""A name, or what a node published, out of the stream and out of every node's kernel.

The word comes first and the purge after it, up to the word: what is published in between is younger, and true. A node
that is away hears the word when it comes back. Saying it again is harmless.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import nats.errors
from nats.aio.client import Client

from schemas import wire
from schemas.resolution import Forget, Resolution
from schemas.terms import NodeName
from services.common.bus import Bus, wait_for
from services.common.follow import Follower
from services.common.forgetting import subject_of
from services.common.jetstream import JetStream, JetStreamError
from services.common.messages import CaughtUp

PUBLISH_SECONDS = 5.0
LISTEN_SECONDS = 1.5
"""Recorders speak once a second, and nobody lists them: whoever is there has been heard then."""
RECORDER = "recorder of "


class NotForgotten(Exception):
    """The bus did not take it; the message says why."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """``sequence``: of the word in the stream; ``purged``: messages that went; ``done``: who carried it out, or not."""

    sequence: int
    purged: int
    done: Mapping[str, bool]

    @property
    def is_done(self) -> bool:
        """Whether every node that the leader knows has forgotten."""
        return all(self.done.values())


async def forget_name(client: Client, name: str, *, wait_seconds: float) -> Outcome:
    """NotForgotten; WireError if it is no name."""
    pattern = wire.filter_resolution(name)
    try:
        addresses = await _read_addresses(client, pattern)
    except JetStreamError as error:
        raise NotForgotten(str(error)) from error
    return await _forget(client, Forget(name=name, addresses=addresses), pattern, wait_seconds)


async def forget_node(client: Client, node: str, *, wait_seconds: float) -> Outcome:
    """NotForgotten; WireError if it could be no node's name."""
    pattern = f"{wire.RESOLUTION_PREFIX}{wire.encode_name(node)}.>"
    return await _forget(client, Forget(node=NodeName(node)), pattern, wait_seconds)


async def _read_addresses(client: Client, pattern: str) -> tuple[str, ...]:
    found: set[str] = set()
    async with Follower(client, wire.STREAM_RESOLUTION, [pattern], must_exist=True) as follower:
        async for item in follower:
            if isinstance(item, CaughtUp):
                break
            for message in item if isinstance(item, list) else ():
                row = wire.decode(message.subject, message.body)
                found.update(row.addresses if isinstance(row, Resolution) else ())
    return tuple(sorted(found))


async def _forget(client: Client, forget: Forget, pattern: str, wait_seconds: float) -> Outcome:
    bus = await Bus.listen(client, verdicts=False)
    headers = wire.headers_for(forget) | {wire.HEADER_TTL: wire.FORGET_TTL}
    try:
        answer = await client.request(subject_of(forget), wire.encode(forget), timeout=PUBLISH_SECONDS, headers=headers)
        stored = msgspec.json.decode(answer.data)
        if "error" in stored:
            raise NotForgotten(str(stored["error"].get("description", stored["error"])))
        sequence = int(stored["seq"])
        purge = {"filter": pattern, "seq": sequence}
        purged = await JetStream(client).call(f"STREAM.PURGE.{wire.STREAM_RESOLUTION}", purge)
    except nats.errors.Error as error:
        hint = "; an operator's credential is needed (yett keys init --operator), and a stream"
        raise NotForgotten(f"{subject_of(forget)}: {str(error) or type(error).__name__}{hint}") from error
    except (JetStreamError, TimeoutError) as error:
        raise NotForgotten(f"what the stream holds is not purged, say it again: {error}") from error
    return Outcome(sequence, int(purged.get("purged", 0)), await _await_nodes(bus, sequence, wait_seconds))


async def _await_nodes(bus: Bus, sequence: int, wait_seconds: float) -> dict[str, bool]:
    controller = await bus.ask_controller()
    expected = set(controller.nodes) if controller else set()

    def look() -> dict[str, bool]:
        agents = {node: status.forgotten >= sequence for node, status in bus.agents.items()}
        recorders = {f"{RECORDER}{node}": one.forgotten >= sequence for node, one in bus.recorders.items()}
        return {**dict.fromkeys(expected, False), **agents, **recorders}

    await asyncio.sleep(min(LISTEN_SECONDS, wait_seconds))
    await wait_for(lambda: bool(expected) and all(look().values()), wait_seconds)
    return look()
