"""``yett migrate``: from the managed service's enforcer to this one, without an open moment."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict, replace
from typing import Annotated

import typer
import yaml
from rich.console import Console

from services.access.kubernetes import NAMESPACE
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
from services.controller.policy.parse_settings import SETTINGS_NAME
from services.operate.examine import read_statuses
from services.operate.migrate import Found, Progress, Step, plan_steps, want_settings
from services.operate.way import NoWay

COLOURS = {Progress.DONE: "green", Progress.TODO: "yellow", Progress.BLOCKED: "dim"}


def command(
    *,
    apply: Annotated[bool, typer.Option("--apply", help="Write our ConfigMap; nothing of theirs is touched.")] = False,
    nats: NatsOption = "",
    creds: CredsOption = "",
    kube: KubeOption = False,
    wait: WaitOption = WAIT_SECONDS,
    output: OutputOption = Output.TABLE,
) -> None:
    """What is there of the managed service, our settings that mean the same, and what to do next, in order. Exit 0:
    nothing is left; 1: something is."""
    try:
        found = asyncio.run(_look(find_server(nats, creds, kube=kube), wait, is_applied=apply))
    except (NoWay, Unreachable) as error:
        fail(str(error))
    steps = plan_steps(found)
    metadata = {"name": SETTINGS_NAME, "namespace": NAMESPACE}
    settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": want_settings(found)}
    if output is Output.JSON:
        told = {"config": settings, "node_classes": dict(found.node_classes), "steps": [asdict(one) for one in steps]}
        sys.stdout.write(json.dumps(told) + "\n")
    else:
        _print(yaml.safe_dump(settings, sort_keys=False), found, steps)
    if any(one.progress is not Progress.DONE for one in steps):
        raise typer.Exit(EXIT_DIFFERENT)


async def _look(server: Server, wait_seconds: float, *, is_applied: bool) -> Found:
    from services.operate.managed import read_managed, write_settings  # a second that other commands do not need
    from services.operate.reach import open_api

    async with open_api() as api:
        found = await read_managed(api)
        if is_applied:
            wanted = want_settings(found)
            await write_settings(api, wanted)
            found = replace(found, ours=wanted)
    async with open_connection(server, "yett migrate", wait_seconds) as client:
        controller, agents = await read_statuses(client)
    return replace(found, controller=controller, agents=agents)


def _print(settings: str, found: Found, steps: list[Step]) -> None:
    console = Console(emoji=False)
    console.print(settings, highlight=False, markup=False)
    for name, default in sorted(found.node_classes.items()):
        console.print(f"NodeClass {name}: {default or 'no default'}; the controller reads it", highlight=False)
    for one in steps:
        console.print(f"[{COLOURS[one.progress]}]{one.progress:7}[/]", end=" ", highlight=False)
        console.print(f"{one.name}: {one.message}", highlight=False, markup=False, soft_wrap=True)
    following = next((one for one in steps if one.progress is Progress.TODO), None)
    if following is not None:
        console.print(f"next: {following.command}", highlight=False, markup=False, soft_wrap=True)
