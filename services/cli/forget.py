"""``yett forget``: what a name was resolved to, or what a node published, admits no new flow on any node any more."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Annotated

import typer
from rich.console import Console

from schemas.wire import WireError
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
from services.cli.output import EXIT_DIFFERENT, NatsOption, Output, OutputOption, fail
from services.operate.forget import NotForgotten, Outcome, forget_name, forget_node


def command(
    name: Annotated[str, typer.Argument(help="A domain name, not a pattern.")] = "",
    *,
    node: Annotated[str, typer.Option("--node", help="Instead of a name: everything that this node published.")] = "",
    nats: NatsOption = "",
    creds: CredsOption = "",
    kube: KubeOption = False,
    wait: WaitOption = WAIT_SECONDS,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make all nodes forget a learned name, or what a node published. Live connections go on. Exit 1: not everywhere
    yet; 2: not said."""
    if bool(name) == bool(node):
        fail("a NAME or --node NODE, one of both")
    server = find_server(nats, creds, kube=kube, is_operator=True)
    try:
        outcome = asyncio.run(_forget(server, name.lower().rstrip("."), node, wait))
    except (Unreachable, NotForgotten, WireError) as error:
        fail(str(error))
    if output is Output.JSON:
        told = {"sequence": outcome.sequence, "purged": outcome.purged, "forgotten": dict(sorted(outcome.done.items()))}
        sys.stdout.write(json.dumps(told) + "\n")
    else:
        _print(name or f"what {node} published", outcome)
    if not outcome.is_done:
        raise typer.Exit(EXIT_DIFFERENT)


async def _forget(server: Server, name: str, node: str, wait_seconds: float) -> Outcome:
    async with open_connection(server, "yett forget", wait_seconds) as client:
        if name:
            return await forget_name(client, name, wait_seconds=wait_seconds)
        return await forget_node(client, node, wait_seconds=wait_seconds)


def _print(what: str, outcome: Outcome) -> None:
    console = Console(emoji=False)
    missing = [name for name, is_done in sorted(outcome.done.items()) if not is_done]
    console.print(
        f"{what}: {outcome.purged} messages purged, forgotten by {len(outcome.done) - len(missing)} of "
        f"{len(outcome.done)} agents and recorders",
        highlight=False,
        markup=False,
    )
    if missing:
        console.print(f"not yet: {', '.join(missing)}; they forget when they are back", highlight=False, markup=False)
