"""``yett uninstall``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from services.access.kubernetes import NAMESPACE
from services.cli.output import fail
from services.installation import uninstall
from services.installation.kubectl import Kubectl, KubectlError

STEP_SECONDS = 300.0


def command(
    *,
    purge: Annotated[
        bool, typer.Option("--purge", help="The policy kinds too that deploy/crds defined, with all their policies.")
    ] = False,
    leave_nodes: Annotated[
        bool, typer.Option("--leave-nodes", help="Go on where a node cannot be reached; it keeps its programs.")
    ] = False,
    namespace: Annotated[str, typer.Option("--namespace", help="Where Yett is installed.")] = NAMESPACE,
    context: Annotated[str, typer.Option("--context", help="Of the kubeconfig; else the current one.")] = "",
    wait: Annotated[float, typer.Option("--wait", help="Seconds for each step.")] = STEP_SECONDS,
) -> None:
    """Take Yett off a cluster: agents, what they left on the nodes, then everything that bears our label.

    Uses kubectl and its configuration. May be stopped and called again.
    """
    said = Console(stderr=True, emoji=False, highlight=False)
    try:
        cluster = Kubectl(namespace, context)
        uninstall.uninstall(
            cluster,
            lambda step: said.print(f"uninstall: {step}", markup=False, soft_wrap=True),
            purge=purge,
            seconds=wait,
            leave_nodes=leave_nodes,
        )
    except KubectlError as error:
        fail(str(error))
