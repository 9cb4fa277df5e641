"""``yett flows``: verdicts and refused names as they fall, or back from the stream of denials; a line each."""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import nats.errors
import typer
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import Error as JetStreamError
from rich.console import Console
from rich.markup import escape

from schemas import wire
from schemas.terms import Direction, Protocol, Tier, Verdict
from schemas.verdict import NameRefused, VerdictEvent
from services.cli.connection import (
    WAIT_SECONDS,
    CredsOption,
    KubeOption,
    Server,
    Unreachable,
    WaitOption,
    find_server,
    open_connection,
)
from services.cli.output import NatsOption, Output, OutputOption, fail

NAME_REFUSED = "name_refused"
"""As a ``--verdict``: the gate was open, DNS said no."""
COLOURS = {Verdict.ALLOW: "green", Verdict.DENY: "red", Verdict.AUDIT: "yellow"}
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
FETCH = 500
FETCH_SECONDS = 5.0

Event = VerdictEvent | NameRefused


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which flows. Empty strings are all; ``name`` may hold ``*``, ``policy`` is a name or ``namespace/name``."""

    namespace: str = ""
    pod: str = ""
    verdict: str = ""
    name: str = ""
    policy: str = ""

    def subjects(self, verdicts: str) -> list[str]:
        """The subscriptions, for what a subject can tell. ``verdicts``: what those of verdicts begin with."""
        where = ["*", *(wire.encode_name(name) if name else "*" for name in (self.namespace, self.pod))]
        verdict = verdicts + ".".join([*where, self.verdict.lower() or "*"])
        refused = wire.NAME_REFUSED_PREFIX + ".".join(where)
        if self.verdict.lower() == NAME_REFUSED:
            return [refused]
        return [verdict] if self.verdict or self.policy else [verdict, refused]

    def takes(self, event: Event) -> bool:
        """The rest."""
        if self.name and not fnmatch.fnmatchcase(event.name, self.name.lower().rstrip(".")):
            return False
        if isinstance(event, NameRefused):
            return True
        source = event.policy
        return not self.policy or (
            source is not None and self.policy in (source.name, f"{source.namespace}/{source.name}")
        )


def command(
    *,
    nats: NatsOption = "",
    creds: CredsOption = "",
    kube: KubeOption = False,
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Only pods of this namespace.")] = "",
    pod: Annotated[str, typer.Option("--pod", help="Only this pod.")] = "",
    verdict: Annotated[
        str, typer.Option("--verdict", help="Only allow, deny or audit; name_refused: DNS said no.")
    ] = "",
    name: Annotated[str, typer.Option("--name", help="Only this domain name; * stands for anything.")] = "",
    policy: Annotated[str, typer.Option("--policy", help="Only by this policy, NAME or NAMESPACE/NAME.")] = "",
    since: Annotated[str, typer.Option("--since", help="Denials of the last 90s, 10m, 2h, 1d, then end.")] = "",
    follow: Annotated[bool, typer.Option("--follow", help="With --since: go on with new verdicts.")] = False,
    wait: WaitOption = WAIT_SECONDS,
    output: OutputOption = Output.TABLE,
) -> None:
    """Follow verdicts and refused names until Ctrl-C, or query denials and those back with --since."""
    if verdict and verdict.upper() not in Verdict.__members__ and verdict.lower() != NAME_REFUSED:
        fail(f"--verdict {verdict}: there are allow, deny, audit and {NAME_REFUSED}")
    seconds = parse_duration(since) if since else 0.0
    if seconds is None:
        fail(f"--since {since}: a number and s, m, h or d, as in 10m")
    asked = Asked(find_server(nats, creds, kube=kube), wait, Wanted(namespace, pod, verdict, name, policy))
    show = _print_json if output is Output.JSON else _print_line
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_show(asked, show, since_seconds=seconds, follow=follow or not since))
    except Unreachable as error:
        fail(str(error))


def parse_duration(text: str) -> float | None:
    """Seconds of ``10m`` and the like; None if it is nothing of the kind."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    return float(found[1]) * UNITS[found[2]] if found else None


@dataclass(frozen=True, slots=True)
class Asked:
    """Where, how long to wait for a server, and for which flows."""

    server: Server
    wait_seconds: float
    wanted: Wanted


async def _show(asked: Asked, show: Callable[[Event], None], *, since_seconds: float, follow: bool) -> None:
    if since_seconds:
        async for event in read_denials(asked, since_seconds):
            show(event)
    if follow:
        async for event in read_verdicts(asked):
            show(event)


async def read_denials(asked: Asked, since_seconds: float) -> AsyncIterator[Event]:
    """What the stream holds of the last seconds, oldest first. ``Unreachable`` if it cannot be read."""
    since = datetime.fromtimestamp(time.time() - since_seconds, UTC).isoformat().replace("+00:00", "Z")
    async with open_connection(asked.server, "yett flows", asked.wait_seconds) as client:
        try:
            kept = [_read_kept(client, asked.wanted, one, since) for one in asked.wanted.subjects(wire.DENIED_PREFIX)]
            async for event in merge_by_time(kept):
                yield event
        except (nats.errors.Error, JetStreamError) as error:
            raise Unreachable(f"stream {wire.STREAM_VERDICT}: {str(error) or type(error).__name__}") from error


async def merge_by_time(readings: Sequence[AsyncIterator[Event]]) -> AsyncIterator[Event]:
    """One reading of several, each of which is in order."""
    heads = [(await anext(one, None), one) for one in readings]
    while heads := [(event, one) for event, one in heads if event is not None]:
        event, reading = min(heads, key=lambda head: head[0].unix_nanos)
        yield event
        heads = [(await anext(one, None) if one is reading else head, one) for head, one in heads]


async def _read_kept(client: Client, wanted: Wanted, subject: str, since: str) -> AsyncIterator[Event]:
    config = ConsumerConfig(
        deliver_policy=DeliverPolicy.BY_START_TIME,
        opt_start_time=since,  # sent as it stands; the server wants RFC 3339
        ack_policy=AckPolicy.NONE,
        inactive_threshold=30.0,
    )
    reading = await client.jetstream().pull_subscribe(subject, stream=wire.STREAM_VERDICT, config=config)
    left = (await reading.consumer_info()).num_pending or 0
    while left > 0:
        for message in await reading.fetch(min(FETCH, left), timeout=FETCH_SECONDS):
            left -= 1
            if (event := _decode(message, wanted)) is not None:
                yield event


async def read_verdicts(asked: Asked) -> AsyncIterator[Event]:
    """Verdicts and refused names as they fall, for ever; ``Unreachable`` if there is no server."""
    heard: asyncio.Queue[Msg] = asyncio.Queue()
    async with open_connection(asked.server, "yett flows", asked.wait_seconds) as client:
        for subject in asked.wanted.subjects("yett.verdict."):
            await client.subscribe(subject, cb=heard.put)
        while True:
            if (event := _decode(await heard.get(), asked.wanted)) is not None:
                yield event


def _decode(message: Msg, wanted: Wanted) -> Event | None:
    """None for what does not decode, and for what is not wanted."""
    try:
        event = wire.decode(message.subject, message.data)
    except wire.WireError:
        return None
    return event if isinstance(event, Event) and wanted.takes(event) else None


def format_moment(unix_nanos: int) -> str:
    """Time of day in UTC, to the millisecond; empty where there is none."""
    return datetime.fromtimestamp(unix_nanos / 1e9, UTC).strftime("%H:%M:%S.%f")[:-3] if unix_nanos else ""


def describe_refused(event: NameRefused) -> str:
    """One line: when, who, which name, and what DNS said."""
    names = f"{event.name} and other names" if event.varies else event.name
    said = event.reason.name if event.reason else "no"
    given = f" ({', '.join(event.addresses)})" if event.addresses else ""
    by = f" by {event.resolver}" if event.resolver else ""
    times = f" ({event.count} times)" if event.count > 1 else ""
    more = f" (and {event.suppressed} more)" if event.suppressed else ""
    who = f"{format_moment(event.unix_nanos)} {event.namespace}/{event.pod}".strip()
    return f"{who} -> {names}: the gate is open, DNS said {said}{given}{by}{times}{more}"


def describe_flow(event: VerdictEvent) -> str:
    """One line: when, what, who, to where, and why."""
    protocols = {member.value: member.name for member in Protocol}
    outward = event.direction is Direction.EGRESS
    other = event.destination_address if outward else event.source_address
    peer = event.peer or event.name
    remote = f"{peer} ({other})" if peer else other
    port = f":{event.destination_port}" if event.destination_port else ""
    ends = f"-> {remote}{port}" if outward else f"<- {remote} on{port or ' -'}"
    rule = " by " + "/".join(filter(None, (event.policy.name, event.policy.rule))) if event.policy else ""
    tier = f" in {event.tier.name.lower()}" if event.tier is not Tier.NONE else ""
    times = f" ({event.count} times{', peers and ports vary' if event.varies else ''})" if event.count > 1 else ""
    more = f" (and {event.suppressed} like it)" if event.suppressed else ""
    protocol = protocols.get(event.protocol, str(event.protocol))
    why = f"{event.reason.name}{rule}{tier}{times}{more}"
    return f"{format_moment(event.unix_nanos)} {event.namespace}/{event.pod} {ends} {protocol}: {why}".strip()


def _print_line(event: Event) -> None:
    if isinstance(event, NameRefused):
        colour, head, line = "magenta", "dns", describe_refused(event)
    else:
        colour, head, line = COLOURS[event.verdict], event.verdict.name.lower(), describe_flow(event)
    Console(emoji=False).print(f"[{colour}]{head:5}[/] {escape(line)}", highlight=False, soft_wrap=True)


def _print_json(event: Event) -> None:
    sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
    sys.stdout.flush()
