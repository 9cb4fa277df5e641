"""``yett explain``: the verdict on one flow, and the walk that led to it."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from schemas.terms import Protocol
from schemas.verdict import NameRefused
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
from services.cli.flows import NAME_REFUSED, Asked, Wanted, describe_refused, read_denials
from services.cli.output import (
    NatsOption,
    Output,
    OutputOption,
    complain,
    fail,
    print_problems,
)
from services.operate.examine import read_statuses
from services.scenario import explain, files
from services.scenario.live import LiveCluster, LiveError, read_live
from services.scenario.model import PORT_PROTOCOLS, End, Probe
from services.scenario.route import Reachable, RouteError
from services.scenario.rows import Rows
from services.scenario.walk import Facts
from services.scenario.world import assemble_cluster

DEFAULT_PORT = 443
DNS_PORT = 53
REFUSED_SECONDS = 3600.0
"""How far back refused names are looked for."""


def command(
    *,
    source: Annotated[str, typer.Option("--from", help="namespace/pod, or an address.")],
    destination: Annotated[
        str, typer.Option("--to", help="namespace/pod, svc/namespace/name, an address or a name; :port behind it.")
    ],
    protocol: Annotated[str, typer.Option("--protocol", help="TCP, UDP, SCTP, ICMP, ICMPv6 or a number.")] = "TCP",
    manifests: Annotated[
        list[Path] | None, typer.Option("--manifests", help="Files or folders; else the live cluster's state.")
    ] = None,
    default: Annotated[str, typer.Option("--default", help="With manifests: what happens where no rule decides.")] = "",
    nats: NatsOption = "",
    creds: CredsOption = "",
    kube: KubeOption = False,
    wait: WaitOption = WAIT_SECONDS,
    output: OutputOption = Output.TABLE,
) -> None:
    """The verdict on a new flow: tiers, policies, rules that matched, and what the others lacked."""
    refused: list[NameRefused] = []
    try:
        number = _read_protocol(protocol)
        if not manifests:
            refused = asyncio.run(_read_refused(find_server(nats, creds, kube=kube), wait, source, destination))
        if manifests:
            explanation = _explain_manifests(manifests, source, destination, number, default)
        else:
            explanation = _explain_live(find_server(nats, creds, kube=kube), wait, source, destination, number)
    except (files.UnusableInput, explain.EndError, RouteError, LiveError, Unreachable, ValueError) as error:
        fail("\n".join([str(error), *map(describe_refused, refused)]))
    if output is Output.JSON:
        told = explain.explanation_to_json(explanation)
        json.dump(told | {"name_refused": [msgspec.to_builtins(one) for one in refused]}, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    for line in [*explain.format_explanation(explanation), *map(describe_refused, refused)]:
        Console(emoji=False).print(line, markup=False, highlight=False, soft_wrap=True)


def _read_protocol(text: str) -> int:
    if text.isdecimal() and int(text) <= 255:
        return int(text)
    if text.upper() not in Protocol.__members__:
        raise ValueError(f"--protocol {text}: there are {', '.join(Protocol.__members__)}, and numbers")
    return Protocol[text.upper()]


def _explain_manifests(
    paths: list[Path], source: str, destination: str, protocol: int, default: str
) -> explain.Explanation:
    objects = files.read_manifests(paths)
    services = [(key[1], key[2]) for key in files.keys_of(objects) if key[0] == "Service"]
    pods = [(key[1], key[2]) for key in files.keys_of(objects) if key[0] == "Pod"]
    start, _ = explain.parse_end(source)
    end, port = explain.parse_end(destination, [each for each in services if each not in pods])
    config = {"default": default} if default else None
    cluster = assemble_cluster(objects, config=config, asked=[(end.name, 0.0)])
    if cluster.problems:
        print_problems(Console(stderr=True, emoji=False), cluster.problems)
    facts = Facts(Rows.read(cluster.state.rows()), cluster.answers)
    explanation = explain.explain_flow(cluster, facts, _make_probe(cluster, start, end, protocol, port))
    for doubt in explain.doubt_caches(facts, explanation):
        complain(doubt)
    return explanation


def _explain_live(
    server: Server, wait_seconds: float, source: str, destination: str, protocol: int
) -> explain.Explanation:
    is_dns = _is_dns(destination, protocol)
    live = asyncio.run(_read_live(server, wait_seconds, is_dns=is_dns))
    if not live.facts.rows.config.enforce:
        complain("the switch enforce is off: whatever is said here, everything passes now")
    start, _ = explain.parse_end(source)
    services = [key for key in live.world.services if key not in live.world.pods]
    end, port = explain.parse_end(destination, services)
    explanation = explain.explain_flow(live, live.facts, _make_probe(live, start, end, protocol, port))
    if is_dns:
        for doubt in explain.doubt_caches(live.facts, explanation, live.facts.caches):
            complain(doubt)
    return explanation


def _is_dns(destination: str, protocol: int) -> bool:
    """Whether a resolver may be asked: of a node's own cache only its agent tells, which takes its time."""
    end, port = explain.parse_end(destination)
    return bool(end.address) and port == DNS_PORT and protocol in (Protocol.TCP, Protocol.UDP)


async def _read_refused(server: Server, wait_seconds: float, source: str, destination: str) -> list[NameRefused]:
    """What DNS refused this pod of late, under the name that is asked about; the newest of each kind."""
    start, _ = explain.parse_end(source)
    end, _ = explain.parse_end(destination)
    if start.pod is None or not end.name:
        return []
    namespace, pod = start.pod
    wanted = Wanted(namespace, pod, NAME_REFUSED, end.name)
    try:
        newest = {
            event.reason: event
            async for event in read_denials(Asked(server, wait_seconds, wanted), REFUSED_SECONDS)
            if isinstance(event, NameRefused)
        }
    except Unreachable as error:
        complain(f"what DNS refused is not known: {error}")
        return []
    return list(newest.values())


async def _read_live(server: Server, wait_seconds: float, *, is_dns: bool) -> LiveCluster:
    async with open_connection(server, "yett explain", wait_seconds) as client:
        live = await read_live(client)
        return live.with_caches((await read_statuses(client))[1]) if is_dns else live


def _make_probe(cluster: Reachable, source: End, destination: End, protocol: int, port: int) -> Probe:
    """Without a port: the only one that the pod declares, a Service's only one, else 443, and it is said so."""
    if not port and protocol in PORT_PROTOCOLS and destination.service is None:
        pod = cluster.world.pods.get(destination.pod) if destination.pod else None
        declared = {each.number for each in pod.ports if each.protocol == protocol} if pod is not None else set()
        port = declared.pop() if len(declared) == 1 else DEFAULT_PORT
        complain(f"no port was given: {port} is asked about")
    return Probe(id=0, source=source, destination=destination, protocol=protocol, port=port)
