"""``yett doctor``: what Yett stands on, checked in order, and the next command to run."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

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
from services.cli.output import EXIT_DIFFERENT, NatsOption, Output, OutputOption
from services.operate.doctor import Facts, Finding, Kube, State, diagnose, find_next
from services.operate.examine import ask_bus, look_here
from services.operate.way import NoWay

PIN_ROOT = "/sys/fs/bpf/yett"
COLOURS = {State.FINE: "green", State.WRONG: "red", State.UNKNOWN: "yellow"}


def command(
    *,
    here: Annotated[
        bool, typer.Option("--here", help="This machine is a node; else where it has pinned maps.")
    ] = False,
    nats: NatsOption = "",
    creds: CredsOption = "",
    kube: KubeOption = False,
    wait: WaitOption = WAIT_SECONDS,
    output: OutputOption = Output.TABLE,
) -> None:
    """Check what Yett stands on, in order. Exit 0: all is fine; 1: something is wrong, and what to run next."""
    findings = diagnose(asyncio.run(_examine(find_server(nats, creds, kube=kube), here, wait, is_kube=kube)))
    wrong = find_next(findings)
    if output is Output.JSON:
        told = {"findings": [asdict(one) for one in findings], "next": wrong.command if wrong else ""}
        sys.stdout.write(json.dumps(told) + "\n")
    else:
        _print(findings, wrong)
    if wrong is not None:
        raise typer.Exit(EXIT_DIFFERENT)


async def _examine(server: Server, is_node: bool, wait_seconds: float, *, is_kube: bool) -> Facts:
    root = os.environ.get("YETT_PIN_ROOT", PIN_ROOT)
    here = look_here(root) if is_node or (os.access(root, os.R_OK) and Path(root).is_dir()) else None
    kube = await _ask_kube() if is_kube else None
    try:
        async with open_connection(server, "yett doctor", wait_seconds) as client:
            return replace(await ask_bus(client), here=here, kube=kube)
    except Unreachable as error:
        return Facts(here=here, bus=str(error), kube=kube)


async def _ask_kube() -> Kube:
    from services.operate.examine_kube import ask_kube  # a second that other commands do not need
    from services.operate.reach import open_api

    try:
        async with open_api() as api:
            return await ask_kube(api)
    except NoWay as error:
        return Kube(problem=str(error))


def _print(findings: list[Finding], wrong: Finding | None) -> None:
    console = Console(emoji=False)
    for one in findings:
        line = f"[{COLOURS[one.state]}]{one.state:7}[/] {one.check}: {escape(one.message)}"
        console.print(line, highlight=False, soft_wrap=True)
    if wrong is not None:
        console.print(f"next: {escape(wrong.command)}", highlight=False, soft_wrap=True)
