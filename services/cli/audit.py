"""``yett audit``: which rules nothing uses, what pods may and do reach, and a policy from what they did."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import typer
import yaml
from rich.console import Console
from rich.markup import escape

from schemas.terms import Direction
from schemas.usage import Contact, PodUsage
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
from services.cli.flows import parse_duration
from services.cli.output import NatsOption, Output, OutputOption, fail
from services.demo.report import make_console, make_table
from services.scenario.live import LiveError, LiveUsage, read_usage
from services.scenario.recommend import NotEnough, recommend_policy, write_yaml
from services.scenario.usage import PodAnswer, RuleAnswer, Use, find_pods, find_use, format_age
from services.scenario.words import format_protocol, format_source

COLOURS = {Use.UNUSED: "red", Use.UNPROVEN: "yellow", Use.NO_DATA: "yellow", Use.NO_PODS: "yellow", Use.USED: "green"}
app = typer.Typer(help="What rules and pods are used for, counted in full.", no_args_is_help=True)


@app.command("unused")
def unused(
    *,
    since: Annotated[str, typer.Option("--since", help="How far back: 90s, 10m, 2h, 7d.")] = "7d",
    everything: Annotated[bool, typer.Option("--all", help="Rules that are used, too.")] = False,
    nats: NatsOption = "",
    creds: CredsOption = "",
    kube: KubeOption = False,
    wait: WaitOption = WAIT_SECONDS,
    output: OutputOption = Output.TABLE,
) -> None:
    """Rules that nothing matched, and since when there is data that says so."""
    seconds = parse_duration(since)
    if not seconds:
        fail(f"--since {since}: a number and s, m, h or d, as in 7d")
    live = _read(find_server(nats, creds, kube=kube), wait)
    answers = find_use(live.policies, live.rows, live.world, live.kept, seconds=seconds, now=live.now)
    shown = [each for each in answers if everything or each.use is not Use.USED]
    if output is Output.JSON:
        _write_json([_rule_to_json(each) for each in shown])
        return
    console = make_console()
    table = make_table(
        f"Rules that nothing matched in {since}", ("use", "policy", "rule", "last", "data since", "notes")
    )
    for each in shown:
        table.add_row(
            f"[{COLOURS[each.use]}]{each.use}[/]",
            escape(format_source(each.policy.source(""))),
            escape(f"{each.rule.name}: {each.text}"),
            _format_time(each.last) or "never",
            _format_time(each.since) or "-",
            escape("; ".join(each.notes)),
        )
    console.print(table)
    _print_nodes(console, live)


@app.command("pods")
def pods(
    pod: Annotated[str, typer.Argument(help="NAMESPACE/POD, or NAMESPACE; every pod without it.")] = "",
    *,
    nats: NatsOption = "",
    creds: CredsOption = "",
    kube: KubeOption = False,
    wait: WaitOption = WAIT_SECONDS,
    output: OutputOption = Output.TABLE,
) -> None:
    """What each pod may reach and be reached by, and what it did."""
    live = _read(find_server(nats, creds, kube=kube), wait)
    answers = [
        each for each in find_pods(live.rows, live.kept) if pod in ("", each.namespace, f"{each.namespace}/{each.pod}")
    ]
    if pod and not answers:
        fail(f"{pod}: no such pod or namespace is governed")
    if output is Output.JSON:
        _write_json([_pod_to_json(each) for each in answers])
        return
    console = make_console()
    for each in answers:
        _print_pod(console, each, live.now)
    _print_nodes(console, live)


@app.command("recommend")
def recommend(
    pod: Annotated[str, typer.Argument(help="NAMESPACE/POD.")],
    *,
    partial: Annotated[bool, typer.Option("--partial", help="Also where not all contacts were kept.")] = False,
    nats: NatsOption = "",
    creds: CredsOption = "",
    kube: KubeOption = False,
    wait: WaitOption = WAIT_SECONDS,
    output: OutputOption = Output.TABLE,
) -> None:
    """An ApplicationNetworkPolicy that allows what a pod, and those with its labels, were seen to do."""
    namespace, _, name = pod.partition("/")
    if not name:
        fail(f"{pod}: NAMESPACE/POD is wanted")
    live = _read(find_server(nats, creds, kube=kube), wait)
    try:
        found = recommend_policy(live.kept.pods, namespace, name, now=live.now, is_partial_fine=partial)
    except NotEnough as error:
        fail(str(error))
    if output is Output.JSON:
        _write_json({"policy": found.policy, "notes": found.notes})
    else:
        sys.stdout.write(write_yaml(found, lambda policy: yaml.safe_dump(policy, sort_keys=False)))


def _read(server: Server, wait: float) -> LiveUsage:
    try:
        return asyncio.run(_read_live(server, wait))
    except (Unreachable, LiveError) as error:
        fail(str(error))


async def _read_live(server: Server, wait_seconds: float) -> LiveUsage:
    async with open_connection(server, "yett audit", wait_seconds) as client:
        return await read_usage(client)


def _write_json(answer: Any) -> None:
    json.dump(answer, sys.stdout, indent=2)
    sys.stdout.write("\n")


def _rule_to_json(answer: RuleAnswer) -> dict[str, Any]:
    return {
        "policy": format_source(answer.policy.source("")),
        "uid": answer.policy.uid,
        "direction": answer.direction.name.lower(),
        "rule": answer.rule.name,
        "says": answer.text,
        "use": str(answer.use),
        "flows": answer.flows,
        "last": answer.last,
        "since": answer.since,
        "notes": list(answer.notes),
    }


def _pod_to_json(answer: PodAnswer) -> dict[str, Any]:
    may = {direction.name.lower(): list(said) for direction, said in answer.may.items()}
    usage = msgspec.to_builtins(answer.usage) if answer.usage is not None else None
    return {"namespace": answer.namespace, "pod": answer.pod, "may": may, "usage": usage}


def _format_time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S") if seconds else ""


def _print_nodes(console: Console, live: LiveUsage) -> None:
    """Since when there is data at all. Times are UTC."""
    if not live.kept.nodes:
        console.print("no node has reported yet: there is no data", highlight=False)
    for name, node in sorted(live.kept.nodes.items()):
        heard = format_age(live.now - node.at)
        console.print(f"{name}: data since {_format_time(node.since)} UTC, heard {heard} ago", highlight=False)


def _print_pod(console: Console, answer: PodAnswer, now: int) -> None:
    console.print(f"[bold]{escape(f'{answer.namespace}/{answer.pod}')}[/]", highlight=False)
    for direction, words in ((Direction.EGRESS, "may reach"), (Direction.INGRESS, "may be reached")):
        for said in answer.may[direction]:
            console.print(f"  {words}: {escape(said)}", highlight=False, soft_wrap=True)
    if answer.usage is None:
        console.print("  no data\n", highlight=False)
        return
    _print_contacts(console, answer.usage.contacts, now)
    console.print(f"  {_describe_data(answer.usage)}\n", highlight=False, soft_wrap=True)


def _print_contacts(console: Console, contacts: Iterable[Contact], now: int) -> None:
    for each in sorted(contacts, key=lambda one: (one.direction, one.kind, one.peer, one.port)):
        words = "reached" if each.direction is Direction.EGRESS else "was reached by"
        port = f" {each.port}" if each.port else ""
        marks = [word for word, holds in (("under audit", each.audited), ("own node", each.own_node)) if holds]
        more = f" ({', '.join(marks)})" if marks else ""
        console.print(
            f"  {words} {each.kind} {escape(each.peer)} on {format_protocol(each.protocol)}{port}: "
            f"{each.flows} flows, last {format_age(now - each.last)} ago{more}",
            highlight=False,
            soft_wrap=True,
        )


def _describe_data(usage: PodUsage) -> str:
    missing = usage.lost_egress + usage.lost_ingress + usage.dropped
    lost = f"; NOT ALL: {missing} flows or contacts found no room" if missing else ""
    return f"data since {_format_time(usage.since)} UTC{lost}"
