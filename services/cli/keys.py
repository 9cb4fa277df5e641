"""``yett keys``: accounts, credentials, certificates and signing keys for a NATS server, made and rotated."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
import yaml

from services.access.folder import SERVER_DAYS, Folder, FolderError
from services.access.kubernetes import make_objects
from services.cli.output import fail

app = typer.Typer(help="Accounts, credentials, certificates and signing keys.", no_args_is_help=True)

FolderArgument = Annotated[Path, typer.Argument(help="The folder of keys.", show_default=False)]
MountedOption = Annotated[str, typer.Option("--mounted", help="Path of FOLDER/server as the server sees it.")]
HostOption = Annotated[list[str], typer.Option("--host", help="A name or address that agents connect to.")]
DaysOption = Annotated[float, typer.Option("--days", help="How long the server's certificate is good.")]


@app.command("init")
def init(
    folder: FolderArgument,
    *,
    host: HostOption = [],  # noqa: B006  typer copies it
    node: Annotated[list[str], typer.Option("--node", help="A node.")] = [],  # noqa: B006
    reader: Annotated[list[str], typer.Option("--reader", help="An integration or a person.")] = [],  # noqa: B006
    operator: Annotated[list[str], typer.Option("--operator", help="A person who may make nodes forget names.")] = [],  # noqa: B006
    mounted: MountedOption = "",
    days: DaysOption = SERVER_DAYS,
) -> None:
    """Make what is missing in FOLDER: run it again to add nodes. What is there stays."""
    _complete(Folder(folder, mounted), host, {"node": node, "reader": reader, "operator": operator}, days)
    print(f"include {folder}/server/yett.conf in the server's configuration; yett keys env shows a service's settings")


@app.command("rotate")
def rotate(
    folder: FolderArgument,
    what: Annotated[str, typer.Argument(help="server, signing, controller, node, reader or operator.")],
    name: Annotated[str, typer.Argument(help="Of the node, reader or operator.")] = "",
    *,
    host: HostOption = [],  # noqa: B006
    mounted: MountedOption = "",
    days: DaysOption = SERVER_DAYS,
) -> None:
    """Replace one key. A signing key takes two calls, so that agents believe both in between."""
    keys = Folder(folder, mounted)
    advice = "reload the server, then restart who has the new credential"
    try:
        match what:
            case "signing":
                advice = keys.rotate_signing()
            case "server" if host:
                keys.renew_server()
                advice = "reload the server"
            case "controller":
                keys.renew_credential("controller")
            case "node" | "reader" | "operator":
                keys.renew_credential(f"{what}s", name)
            case _:
                fail(f"{what}: there are server (with --host), signing, controller, node, reader and operator")
    except FolderError as error:
        fail(str(error))
    names = {kind: [name] if what == kind else [] for kind in ("node", "reader", "operator")}
    _complete(keys, host, names, days)
    print(advice)


@app.command("env")
def env(
    folder: FolderArgument,
    what: Annotated[str, typer.Argument(help="controller, node, reader or operator.")],
    name: Annotated[str, typer.Argument(help="Of the node or reader.")] = "",
) -> None:
    """The settings that go with a credential, as NAME=value lines."""
    kinds = {"controller": "controller", "node": "nodes", "reader": "readers", "operator": "operators"}
    if what not in kinds:
        fail(f"{what}: there are {', '.join(kinds)}")
    try:
        values = Folder(folder).environment(kinds[what], name)
    except FolderError as error:
        fail(str(error))
    for variable, value in values.items():
        print(f"{variable}={value}")


@app.command("kubernetes")
def kubernetes(
    folder: FolderArgument,
    *,
    existing_nats: Annotated[bool, typer.Option("--existing-nats", help="The server is not deploy's.")] = False,
) -> None:
    """The Secrets and the ConfigMap that deploy/ expects, for ``kubectl apply -f -``. Secrets: mind where they go."""
    try:
        objects = make_objects(Folder(folder), is_server_ours=not existing_nats)
    except (FolderError, OSError) as error:
        fail(str(error))
    print(yaml.safe_dump_all(objects, sort_keys=False), end="")


def _complete(keys: Folder, hosts: list[str], names: dict[str, list[str]], days: float) -> None:
    try:
        keys.complete(
            hosts=hosts,
            nodes=names["node"],
            readers=names["reader"],
            operators=names["operator"],
            now=datetime.now(UTC),
            days=days,
        )
    except (FolderError, OSError) as error:
        fail(str(error))
