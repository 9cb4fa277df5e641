"""``yett status``: who leads, at which revision, what each node enforces, which objects are refused."""

from __future__ import annotations

import asyncio
import json
import sys

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from schemas.status import FOREIGN_ENFORCER, AgentStatus, ControllerStatus, Problem
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
from services.cli.output import (
    EXIT_DIFFERENT,
    EXIT_PROBLEMS,
    NatsOption,
    Output,
    OutputOption,
    are_refusals,
    fail,
    print_problems,
)
from services.demo.report import make_console, make_table
from services.operate.examine import read_statuses


def command(
    *,
    nats: NatsOption = "",
    creds: CredsOption = "",
    kube: KubeOption = False,
    wait: WaitOption = WAIT_SECONDS,
    output: OutputOption = Output.TABLE,
) -> None:
    """Who leads, what is enforced where, what is refused. Exit 1: no controller answers; 2: no NATS; 3: an object is
    refused."""
    try:
        controller, agents = asyncio.run(read_status(find_server(nats, creds, kube=kube), wait))
    except Unreachable as error:
        fail(str(error))
    problems = collect_problems(controller, agents)
    if output is Output.JSON:
        json.dump(to_json(controller, agents, problems), sys.stdout)
        sys.stdout.write("\n")
    else:
        show(make_console(), controller, agents, problems)
    if are_refusals(problems):
        raise typer.Exit(EXIT_PROBLEMS)
    if controller is None:
        fail("no controller answers", EXIT_DIFFERENT)


async def read_status(server: Server, wait_seconds: float) -> tuple[ControllerStatus | None, dict[str, AgentStatus]]:
    """The leader's status and each node's newest."""
    async with open_connection(server, "yett status", wait_seconds) as client:
        return await read_statuses(client)


def collect_problems(controller: ControllerStatus | None, agents: dict[str, AgentStatus]) -> tuple[Problem, ...]:
    """The controller's, then each node's."""
    own = controller.problems if controller else ()
    return (*own, *(problem for name in sorted(agents) for problem in agents[name].problems))


def to_json(
    controller: ControllerStatus | None, agents: dict[str, AgentStatus], problems: tuple[Problem, ...]
) -> dict[str, object]:
    """What ``--output json`` prints."""
    reached, known = count_converged(controller, agents)
    return {
        "leader": controller.holder if controller else "",
        "revision": controller.revision if controller else 0,
        "converged": {"nodes": reached, "of": known},
        "foreign_enforcers": find_foreign(agents),
        "nodes": {name: msgspec.to_builtins(one) | {"default": name_default(one)} for name, one in agents.items()},
        "problems": msgspec.to_builtins(problems),
    }


def count_converged(controller: ControllerStatus | None, agents: dict[str, AgentStatus]) -> tuple[int, int]:
    """On how many nodes the newest revision is enforced, and how many there are."""
    revision = controller.revision if controller else 0
    reached = dict(controller.nodes) if controller else {}
    for name, status in agents.items():
        reached[name] = max(reached.get(name, status.revision), status.revision)
    return sum(number >= revision > 0 for number in reached.values()), len(reached)


def name_default(agent: AgentStatus) -> str:
    """What happens on the node where no rule decides and no namespace says otherwise, in the settings' word."""
    return agent.default.name.lower()


def find_foreign(agents: dict[str, AgentStatus]) -> dict[str, dict[str, str]]:
    """The condition ForeignEnforcer: node -> interface -> what of others runs before ours there."""
    found = {name: {one.interface: one.foreign for one in agents[name].endpoints if one.foreign} for name in agents}
    return {name: interfaces for name, interfaces in sorted(found.items()) if interfaces}


def show(
    console: Console,
    controller: ControllerStatus | None,
    agents: dict[str, AgentStatus],
    problems: tuple[Problem, ...],
) -> None:
    """For a person."""
    reached, known = count_converged(controller, agents)
    if controller is not None:
        console.print(
            f"leader {controller.holder}, revision {controller.revision} enforced on {reached} of {known} nodes",
            highlight=False,
        )
    if off := [name for name in sorted(agents) if not agents[name].enforcing]:
        console.print(f"[bold white on red] NOTHING IS ENFORCED [/] on {', '.join(off)}: the switch enforce is off")
    for name in sorted(agents):
        status = agents[name]
        lag = max(0, controller.revision - status.revision) if controller else 0
        behind = f" ({lag} behind)" if lag else ""
        how = f"{status.mode} mode, default {name_default(status)}"
        title = f"{name}: revision {status.revision}{behind}, {how}, {status.names} names"
        table = make_table(title, ("pod", "interface", "state", "open for", "addresses"))
        for endpoint in status.endpoints:
            window = f"{endpoint.window_millis:.0f} ms" if endpoint.window_millis >= 0 else ""
            table.add_row(endpoint.pod, endpoint.interface, endpoint.state, window, ", ".join(endpoint.addresses))
        console.print(table)
        if foreign := sorted({endpoint.foreign for endpoint in status.endpoints} - {""}):
            console.print(f"[red]{FOREIGN_ENFORCER}[/] on {name}: {escape('; '.join(foreign))}", highlight=False)
        for is_own, whose in ((True, "its own pods"), (False, "other nodes")):
            names = make_table(f"{name}: names that {whose} resolved", ("name", "address", "seconds left"))
            for learned in status.learned:
                if learned.is_own is is_own:
                    names.add_row(learned.name, learned.address, str(learned.seconds))
            if names.row_count:
                console.print(names)
    if unsigned := [name for name in sorted(agents) if agents[name].signatures != "required"]:
        console.print(f"[yellow]signatures off[/] on {', '.join(unsigned)}: any policy in the stream is believed there")
    print_problems(console, problems)
