"""The connection to an API server: credentials, requests, watch lines. Errors of the library are translated here.

kubernetes-asyncio finds the server and its credentials (a kubeconfig with all its ways to log in, or the pod's service
account). What it refuses to do is bent in one place: after a 401 or a failed handshake the configuration is read again,
and so are its files, so a token, a certificate or an authority that was rotated on disk is taken up without a restart.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes_asyncio.client import ApiClient, Configuration
from kubernetes_asyncio.config import ConfigException, load_incluster_config, load_kube_config

from services.common.log import get_logger
from services.common.settings import SettingsError
from services.controller.kube_kinds import decode_failure

REQUEST_SECONDS = 15.0
"""For an answer to begin; also for the whole of an answer that is no watch to go on."""
CONNECT_SECONDS = 5.0
LINE_BYTES_MAX = 16 * 1024 * 1024
"""etcd holds no object larger than 1.5 MiB; a longer line is no watch."""
POOL_MAX = 64
IN_CLUSTER_VARIABLE = "KUBERNETES_SERVICE_HOST"

Query = Mapping[str, str]

_log = get_logger("kube")


class KubeError(Exception):
    """An API server that did not do what it was asked. ``code``: HTTP's, 0 if there was no answer."""

    def __init__(self, message: str, *, code: int = 0, reason: str = "", retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


async def load_configuration(kubeconfig: str) -> Configuration:
    """Server and credentials; SettingsError if there are none. ``kubeconfig`` empty: the pod's service account."""
    configuration = Configuration()
    configuration.connection_pool_maxsize = POOL_MAX
    try:
        if kubeconfig:
            await load_kube_config(config_file=kubeconfig, client_configuration=configuration, persist_config=False)
        elif os.environ.get(IN_CLUSTER_VARIABLE):
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]  # the library's own
        else:
            raise SettingsError("YETT_MANIFESTS", "is not set, nor is YETT_KUBE_CONFIG, and this is no pod")
    except (ConfigException, OSError, ValueError) as error:
        if isinstance(error, SettingsError):
            raise
        raise SettingsError("YETT_KUBE_CONFIG", f"{kubeconfig or 'service account'}: {error}") from error
    return configuration


class Api:
    """One API server. Close it."""

    def __init__(self, kubeconfig: str, configuration: Configuration) -> None:
        self._kubeconfig = kubeconfig
        self._configuration = configuration
        self._transport = _read_transport(configuration)
        self._client = _make_client(configuration)
        self._is_doubtful = False
        self.requests = 0

    @classmethod
    async def open(cls, kubeconfig: str) -> Api:
        """SettingsError if no server is configured. Does not connect yet."""
        return cls(kubeconfig, await load_configuration(kubeconfig))

    async def close(self) -> None:
        await self._client.close()

    async def get(self, path: str, query: Query | None = None) -> bytes:
        """The whole answer; KubeError."""
        return await self.send("GET", path, query=query)

    async def send(
        self, method: str, path: str, *, query: Query | None = None, body: Any = None, content_type: str = ""
    ) -> bytes:
        """A request and its whole answer; KubeError. ``body``: what JSON is made of."""
        response = await self._open(method, path, query or {}, REQUEST_SECONDS, body=body, content_type=content_type)
        async with response:
            try:
                return await response.read()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise KubeError(f"{method} {path}: {_describe(error)}") from error

    @asynccontextmanager
    async def lines(self, path: str, query: Query, *, silence_seconds: float) -> AsyncIterator[AsyncIterator[bytes]]:
        """A watch's lines as they come, until the server ends it; KubeError, also after ``silence_seconds``."""
        response = await self._open("GET", path, query, silence_seconds)
        try:
            yield _split_lines(path, response)
        finally:
            # A watch is not drained: closing the connection is how it ends.
            response.close()

    @asynccontextmanager
    async def websocket(self, path: str, query: Query, protocol: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """A websocket that the server speaks ``protocol`` on; KubeError."""
        await self._renew_if_doubtful()
        headers: dict[str, str] = {"User-Agent": self._client.user_agent}
        await self._client.update_params_for_auth(headers, [], ["BearerToken"])
        session: aiohttp.ClientSession = self._client.rest_client.pool_manager
        url = f"{self._configuration.host}{path}"
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                socket = await session.ws_connect(
                    url, params=dict(query), headers=headers, protocols=(protocol,), max_msg_size=0
                )
        except aiohttp.WSServerHandshakeError as error:
            raise KubeError(f"websocket {path}: {error.status} {error.message}", code=error.status) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise KubeError(f"websocket {path}: {_describe(error)}") from error
        try:
            yield socket
        finally:
            await socket.close()

    async def _open(
        self,
        method: str,
        path: str,
        query: Query,
        silence_seconds: float,
        *,
        body: Any = None,
        content_type: str = "",
    ) -> aiohttp.ClientResponse:
        """An answer that has begun with a status of success."""
        await self._renew_if_doubtful()
        self.requests += 1
        timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_SECONDS, sock_read=silence_seconds)
        # Compression costs the server more time than a cluster's network saves.
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"} | (
            {"Content-Type": content_type} if content_type else {}
        )
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                response: aiohttp.ClientResponse = await self._client.call_api(
                    path,
                    method,
                    query_params=list(query.items()),
                    header_params=headers,
                    body=json.loads(json.dumps(body)) if body is not None else None,
                    auth_settings=["BearerToken"],
                    _preload_content=False,
                    _request_timeout=timeout,
                )
            if response.status < 300:
                return response
            async with response:
                raise self._refusal(method, path, response, await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._is_doubtful |= isinstance(error, ssl.SSLError | aiohttp.ClientSSLError)
            raise KubeError(f"{method} {path}: {_describe(error)}") from error

    def _refusal(self, method: str, path: str, response: aiohttp.ClientResponse, body: bytes) -> KubeError:
        failure = decode_failure(body)
        self._is_doubtful |= response.status == 401
        return KubeError(
            f"{method} {path}: {response.status} {failure.message or failure.reason or response.reason or ''}".strip(),
            code=response.status,
            reason=failure.reason,
            retry_after_seconds=_read_seconds(response.headers.get("Retry-After", "")),
        )

    async def _renew_if_doubtful(self) -> None:
        """Read the configuration again after it was refused; watches that still run keep their connections."""
        if not self._is_doubtful:
            return
        self._is_doubtful = False
        try:
            configuration = await load_configuration(self._kubeconfig)
            transport = _read_transport(configuration)
            client = _make_client(configuration) if transport != self._transport else None
        except (SettingsError, OSError) as error:
            self._is_doubtful = True
            raise KubeError(f"credentials cannot be read: {error}") from error
        if client is None:
            self._client.configuration.api_key = configuration.api_key
            self._client.configuration.refresh_api_key_hook = configuration.refresh_api_key_hook
            return
        _log.info("connecting anew, the server's address or certificates have changed", host=configuration.host)
        old, self._client = self._client, client
        self._configuration, self._transport = configuration, transport
        await old.close()


def _make_client(configuration: Configuration) -> ApiClient:
    client = ApiClient(configuration)
    client.user_agent = "yett-controller"
    return client


def _read_transport(configuration: Configuration) -> tuple[str | bytes, ...]:
    """What connections are made of; OSError. Contents and not names: a kubelet renews ``ca.crt`` under its name."""
    files = (configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file)
    return configuration.host, *(hashlib.sha256(Path(each).read_bytes()).digest() if each else b"" for each in files)


async def _split_lines(path: str, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    rest = b""
    try:
        async for chunk in response.content.iter_any():
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield line
            if len(rest) > LINE_BYTES_MAX:
                raise KubeError(f"watch {path}: a line of more than {LINE_BYTES_MAX} bytes")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise KubeError(f"watch {path}: {_describe(error)}") from error


def _describe(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _read_seconds(text: str) -> float:
    return float(text) if text.isdecimal() else 0.0
