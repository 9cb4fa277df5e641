"""A command's connection to NATS: tried for a few seconds, then given up with the reason.

A server that is lost later is waited for, as services do: who follows verdicts wants those after its restart too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import nats.errors
import typer
from nats.aio.client import Client

from services.common.jetstream import API_PREFIX
from services.common.nats import security_options
from services.common.settings import CommonSettings, SettingsError, load_settings

WAIT_SECONDS = 5.0
CONNECT_SECONDS = 2

WaitOption = Annotated[
    float, typer.Option("--wait", min=0.1, metavar="SECONDS", help="How long to try to reach NATS before giving up.")
]


class Unreachable(Exception):
    """No server was reached; the message says where and why."""


@asynccontextmanager
async def open_connection(url: str, name: str, wait_seconds: float) -> AsyncIterator[Client]:
    """A connection, closed at the end. ``Unreachable`` after ``wait_seconds``, at once if the URL is none."""
    try:
        settings = load_settings(CommonSettings)
    except SettingsError as error:
        raise Unreachable(str(error)) from error
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
    try:
        yield client
    finally:
        await client.close()
