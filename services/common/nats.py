"""The connection to NATS: waited for, said so, never given up.

A service started before its server waits and says so, at once and then ever less often. A server that is too old is
refused: it would ignore a message's TTL or a consumer's filters without an error.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nats.errors
import nkeys
import tenacity
from nats.aio.client import Client

from schemas import wire
from services.common.jetstream import API_PREFIX
from services.common.log import get_logger
from services.common.settings import CommonSettings, NodeagentSettings, RecorderSettings, SettingsError

NODE_PLACEHOLDER = "{node}"
SERVER_LEAST = (2, 11)
"""Per-message TTL (``Nats-TTL``) came with 2.11."""
CONNECT_SECONDS = 2
ATTEMPT_SECONDS = 3 * CONNECT_SECONDS
"""One attempt, TLS included."""
PING_SECONDS = 5
"""A dead connection is noticed after two unanswered pings."""
PENDING_BYTES = 8 * 1024 * 1024
"""What may wait to be sent while the server is away; beyond that a publish fails."""
WAIT_MAX_SECONDS = 5.0

_log = get_logger("nats")


class ServerTooOldError(Exception):
    """The server lacks what Yett stands on."""


async def connect(settings: CommonSettings, name: str) -> Client:
    """A connection that reconnects for ever. Waits until there is a server; ServerTooOldError if it is too old."""
    _check_address(settings.nats_url)
    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type((nats.errors.Error, OSError, asyncio.TimeoutError)),
        wait=tenacity.wait_exponential_jitter(multiplier=0.05, max=WAIT_MAX_SECONDS, jitter=0.1),
        before_sleep=_Narrator(settings.nats_url),
    )
    client: Client = await retrying(_connect_once, settings, name)
    check_version(client)
    _log.info("connected", url=_address(client), server=str(client.connected_server_version))
    return client


def security_options(settings: CommonSettings) -> dict[str, Any]:
    """What a connection is told of credentials and TLS; SettingsError where a file cannot be used.

    With an authority the first byte is TLS: a server that speaks first in the clear is not asked whether it wants TLS,
    because somebody in between could say that it does not.
    """
    options: dict[str, Any] = {"inbox_prefix": _inbox_prefix(settings)}
    if settings.nats_creds:
        options["user_credentials"] = settings.nats_creds
    if settings.nats_nkey:
        options["nkeys_seed_str"] = _read_seed(settings.nats_nkey)
    if settings.nats_ca:
        try:
            context = ssl.create_default_context(cafile=settings.nats_ca)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError("YETT_NATS_CA", f"{settings.nats_ca}: {error}") from error
        options |= {"tls": context, "tls_handshake_first": True}
        if settings.nats_tls_name:
            options["tls_hostname"] = settings.nats_tls_name
    return options


def _check_address(address: str) -> None:
    """SettingsError for what no waiting mends. A kubelet leaves ``$(NAME)`` as it is where it knows no such Service
    yet; it tries again with the next start of the container.
    """
    for url in address.split(","):
        try:
            parts = urlsplit(url.strip())
            is_good = bool(parts.hostname) and "$(" not in url and parts.port != 0
        except ValueError:
            is_good = False
        if not is_good:
            raise SettingsError("YETT_NATS_URL", f"{url.strip()!r}: not the URL of a server")


def _inbox_prefix(settings: CommonSettings) -> str:
    """With the node's own name in it where the settings ask for that: one text then serves every node."""
    prefix = settings.nats_inbox_prefix
    if NODE_PLACEHOLDER not in prefix:
        return prefix
    if not isinstance(settings, NodeagentSettings | RecorderSettings):
        raise SettingsError("YETT_NATS_INBOX_PREFIX", f"{prefix}: this service has no node")
    return prefix.replace(NODE_PLACEHOLDER, wire.encode_name(settings.node))


def _read_seed(path: str) -> str:
    """The seed in a file; SettingsError that names the file and not its content."""
    try:
        seed = Path(path).read_text(encoding="ascii").strip()
        nkeys.from_seed(bytearray(seed.encode())).wipe()
    except (OSError, ValueError, nkeys.NkeysError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not the seed of a NATS user"
        raise SettingsError("YETT_NATS_NKEY", f"{path}: {reason}") from error
    return seed


async def flush(client: Client) -> None:
    """Return when the server has everything that was said before; nats.errors.Error if it does not answer.

    The client's own (nats-py 2.16) writes its PING past what waits for its flusher task, so that the PONG proves
    nothing of a subscription made just before. By the time it comes the flusher has run: a second PING goes behind.
    """
    await client.flush()
    await client.flush()


async def close(client: Client, *, seconds: float = 2.0) -> None:
    """Send what is pending and close; a server that is away does not hold it up."""
    try:
        if client.is_connected:
            async with asyncio.timeout(seconds):
                await flush(client)
    except (TimeoutError, nats.errors.Error, OSError) as error:
        _log.warning("closed with messages unsent", problem=_describe(error))
    finally:
        await _hang_up(client)


async def _hang_up(client: Client) -> None:
    """Close, whatever state the connection is in.

    The client writes what is pending even where the server has gone, and uvloop's transports refuse that, once closed,
    with a RuntimeError, where asyncio's drop it: https://github.com/MagicStack/uvloop/issues/506.
    """
    try:
        await client.close()
    except (RuntimeError, OSError) as error:
        _log.warning("closed with messages unsent", problem=_describe(error))


async def _connect_once(settings: CommonSettings, name: str) -> Client:
    client = Client()
    causes: list[Exception] = []

    async def on_error(error: Exception) -> None:
        causes[:] = [error]
        if client.is_connected:
            _log.warning("connection problem", problem=_describe(error))

    async def on_disconnected() -> None:
        if not client.is_closed:
            _log.warning("disconnected, trying again until the server is back", url=settings.nats_url)

    async def on_reconnected() -> None:
        _log.info("reconnected", url=_address(client), server=str(client.connected_server_version))

    connecting = client.connect(
        servers=[url.strip() for url in settings.nats_url.split(",")],
        name=name,
        **security_options(settings),
        error_cb=on_error,
        disconnected_cb=on_disconnected,
        reconnected_cb=on_reconnected,
        connect_timeout=CONNECT_SECONDS,
        ping_interval=PING_SECONDS,
        max_outstanding_pings=2,
        pending_size=PENDING_BYTES,
        # Spread, so that a cluster's agents do not return in one instant.
        reconnect_time_wait=0.2 + random.random() * 0.3,
        max_reconnect_attempts=1,
    )
    try:
        # With TLS from the first byte the client (2.16) does not end by itself after a handshake that failed.
        async with asyncio.timeout(ATTEMPT_SECONDS):
            await connecting
    except (nats.errors.NoServersError, TimeoutError) as error:
        await client.close()
        raise ConnectionError(_describe(causes[0] if causes else error)) from error
    client.options[API_PREFIX] = settings.nats_api_prefix
    # The first connection must fail, so that we may say so; those after it never give up.
    client.options["max_reconnect_attempts"] = -1
    return client


def check_version(client: Client) -> None:
    version = client.connected_server_version
    if (version.major, version.minor) < SERVER_LEAST:
        least = ".".join(map(str, SERVER_LEAST))
        raise ServerTooOldError(f"NATS server {version} at {_address(client)} is too old: {least} or newer is needed")


class _Narrator:
    """Says that we wait, at once, then each time the wait has doubled: 1 s, 2 s, 4 s ... a minute."""

    LONGEST_SECONDS = 60.0

    def __init__(self, url: str) -> None:
        self._url = url
        self._started = time.monotonic()
        self._next_seconds = 0.0
        self._interval_seconds = 1.0

    def __call__(self, state: tenacity.RetryCallState) -> None:
        waited = time.monotonic() - self._started
        if waited < self._next_seconds:
            return
        problem = state.outcome.exception() if state.outcome else None
        _log.warning(
            "waiting for NATS",
            url=self._url,
            waited_seconds=round(waited, 1),
            problem=_describe(problem) if problem else "",
        )
        self._next_seconds = waited + self._interval_seconds
        self._interval_seconds = min(self._interval_seconds * 2, self.LONGEST_SECONDS)


def _describe(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _address(client: Client) -> str:
    url = client.connected_url
    return f"{url.hostname}:{url.port}" if url else "?"
