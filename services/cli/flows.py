"""``yett flows``: verdicts as they fall, a line each."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from schemas import wire
from schemas.terms import Direction, Protocol, Tier, Verdict
from schemas.verdict import VerdictEvent
from services.cli.connection import WAIT_SECONDS, Unreachable, WaitOption, open_connection
from services.cli.output import NatsOption, Output, OutputOption, fail, find_nats_url

COLOURS = {Verdict.ALLOW: "green", Verdict.DENY: "red", Verdict.AUDIT: "yellow"}


def command(
    *,
    nats: NatsOption = "",
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Only pods of this namespace.")] = "",
    pod: Annotated[str, typer.Option("--pod", help="Only this pod.")] = "",
    verdict: Annotated[str, typer.Option("--verdict", help="Only allow, deny or audit.")] = "",
    wait: WaitOption = WAIT_SECONDS,
    output: OutputOption = Output.TABLE,
) -> None:
    """Follow verdicts until Ctrl-C."""
    if verdict and verdict.upper() not in Verdict.__members__:
        fail(f"--verdict {verdict}: there are allow, deny and audit")
    where = [wire.encode_name(name) if name else "*" for name in (namespace, pod)]
    subject = ".".join(["yett.verdict.*", *where, verdict.lower() or "*"])
    show = _print_json if output is Output.JSON else _print_line
    url = find_nats_url(nats)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_follow(url, subject, wait, show))
    except Unreachable as error:
        fail(str(error))


async def _follow(url: str, subject: str, wait_seconds: float, show: Callable[[VerdictEvent], None]) -> None:
    async for event in read_verdicts(url, subject, wait_seconds):
        show(event)


async def read_verdicts(url: str, subject: str, wait_seconds: float) -> AsyncIterator[VerdictEvent]:
    """Verdicts on a subject for ever; ``Unreachable`` if there is no server. What does not decode is left out."""
    async with open_connection(url, "yett flows", wait_seconds) as client:
        subscription = await client.subscribe(subject)
        async for message in subscription.messages:
            with contextlib.suppress(wire.WireError):
                event = wire.decode(message.subject, message.data)
                if isinstance(event, VerdictEvent):
                    yield event


def describe_flow(event: VerdictEvent) -> str:
    """One line: when, what, who, to where, and why."""
    protocols = {member.value: member.name for member in Protocol}
    moment = (
        datetime.fromtimestamp(event.unix_nanos / 1e9, UTC).strftime("%H:%M:%S.%f")[:-3] if event.unix_nanos else ""
    )
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
    return f"{moment} {event.namespace}/{event.pod} {ends} {protocol}: {why}".strip()


def _print_line(event: VerdictEvent) -> None:
    colour = COLOURS[event.verdict]
    Console(emoji=False).print(
        f"[{colour}]{event.verdict.name.lower():5}[/] {escape(describe_flow(event))}", highlight=False, soft_wrap=True
    )


def _print_json(event: VerdictEvent) -> None:
    sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
    sys.stdout.flush()
