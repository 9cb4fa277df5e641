"""A command's connection to NATS: tried for a few seconds, then given up with the reason.

A server that is lost later is waited for, as services do: who follows verdicts wants those after its restart too.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import nats.errors
import typer
from nats.aio.client import Client

from services.access.folder import NAMED, Folder, FolderError
from services.access.kubernetes import OPERATOR_SECRET, READER_SECRET
from services.cli.output import find_nats_url
from services.common.jetstream import API_PREFIX
from services.common.nats import security_options
from services.common.settings import CommonSettings, SettingsError, load_settings
from services.operate.way import NoWay, Way

WAIT_SECONDS = 5.0
CONNECT_SECONDS = 2
ENVIRONMENT_KUBE = "YETT_KUBE"

WaitOption = Annotated[
    float, typer.Option("--wait", min=0.1, metavar="SECONDS", help="How long to try to reach NATS before giving up.")
]
CredsOption = Annotated[
    str,
    typer.Option(
        "--creds", metavar="FILE", help="A credential: FOLDER/readers/NAME.nk of yett keys, or NATS' own credentials."
    ),
]
KubeOption = Annotated[
    bool,
    typer.Option("--kube", envvar=ENVIRONMENT_KUBE, help="By the API server that $KUBECONFIG names."),
]


class Unreachable(Exception):
    """No server was reached; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where the bus is: a URL with settings of its own, or, with a ``secret``, behind a kubeconfig's API server."""

    url: str
    settings: dict[str, str] = field(default_factory=dict)
    secret: str = ""

    @asynccontextmanager
    async def reached(self) -> AsyncIterator[Way]:
        """The way there. Unreachable."""
        if not self.secret:
            yield Way(self.url, self.settings)
            return
        from services.operate.reach import reaching  # a second that other ways do not need

        try:
            async with reaching(secret=self.secret) as way:
                yield way
        except NoWay as error:
            raise Unreachable(str(error)) from error


def find_server(nats: str, creds: str = "", *, kube: bool = False, is_operator: bool = False) -> Server:
    """What the options say; else the environment, else the newest running demo. Fails with words if there is none."""
    if kube and not nats:
        return Server("kube", secret=OPERATOR_SECRET if is_operator else READER_SECRET)
    return Server(find_nats_url(nats), read_credential(Path(creds)) if creds else {})


def read_credential(path: Path) -> dict[str, str]:
    """The settings that go with a credential. One in a folder of ``yett keys`` brings its authority and prefixes along;
    another's are in the environment."""
    kind = path.absolute().parent.name
    if kind in NAMED:
        try:
            return Folder(path.absolute().parent.parent).environment(kind, path.name.removesuffix(".nk"))
        except FolderError:
            pass  # said when the file is used
    is_seed = path.suffix == ".nk"
    return {"YETT_NATS_NKEY" if is_seed else "YETT_NATS_CREDS": str(path)}


@asynccontextmanager
async def open_connection(server: Server, name: str, wait_seconds: float) -> AsyncIterator[Client]:
    """A connection, closed at the end. ``Unreachable`` after ``wait_seconds``, at once if the URL is none."""
    async with server.reached() as way:
        try:
            settings = load_settings(CommonSettings, os.environ | way.settings)
        except SettingsError as error:
            raise Unreachable(str(error)) from error
        client = await _connect(way.url, name, settings, wait_seconds)
        try:
            yield client
        finally:
            await client.close()


async def _connect(url: str, name: str, settings: CommonSettings, wait_seconds: float) -> Client:
    client = Client()
    causes: list[Exception] = []

    async def note(error: Exception) -> None:
        causes[:] = [error]

    try:
        async with asyncio.timeout(wait_seconds):
            await client.connect(
                url,
                name=name,
                **security_options(settings),
                error_cb=note,
                connect_timeout=CONNECT_SECONDS,
                reconnect_time_wait=0.2,
                max_reconnect_attempts=-1,
            )
    except SettingsError as error:
        raise Unreachable(str(error)) from error
    except (TimeoutError, nats.errors.Error, OSError, ValueError) as error:
        # A URL that is none fails before there is anything to close.
        if client.is_connecting or client.is_connected or client.is_reconnecting:
            await client.close()
        cause = causes[0] if causes else error
        waited = f" in {wait_seconds:g} s" if isinstance(error, TimeoutError) else ""
        raise Unreachable(f"no NATS at {url}{waited}: {str(cause) or type(cause).__name__}") from error
    client.options[API_PREFIX] = settings.nats_api_prefix
    return client
