"""A real server under the configuration that ``yett keys`` writes, and connections under its credentials."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from nats.aio.client import Client

from services.access.folder import Folder
from services.access.kubernetes import PERSON
from services.common import nats
from services.common.settings import CommonSettings, load_settings
from tests.nats_server import NatsServer

NODE, VICTIM, READER, OPERATOR = "node-a", "ip-10-0-1-2.ec2.internal", "grafana", "kube"


class SecuredServer(NatsServer):
    """It speaks TLS from the first byte, so it does not answer who only listens."""

    def __init__(self, folder: Path, *, days: float = 1.0, hosts: Sequence[str] = ("127.0.0.1",)) -> None:
        self.keys = Folder(folder / "keys")
        now = datetime.now(UTC)
        names = {"nodes": [NODE, VICTIM], "readers": [READER, PERSON], "operators": [OPERATOR]}
        self.keys.complete(hosts=hosts, now=now, days=days, **names)  # type: ignore[arg-type]
        super().__init__(folder, extra_config='include "keys/server/yett.conf"')

    @property
    def url(self) -> str:
        return f"tls://127.0.0.1:{self.port}"

    def controller_environment(self) -> dict[str, str]:
        return self.environment("controller")

    def environment(self, kind: str, name: str = "") -> dict[str, str]:
        """A process's settings."""
        return self.keys.environment(kind, name) | {"YETT_NATS_URL": self.url}

    def settings(self, kind: str, name: str = "") -> CommonSettings:
        return load_settings(CommonSettings, self.environment(kind, name))

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False


@asynccontextmanager
async def speaking(server: SecuredServer, kind: str, name: str = "") -> AsyncIterator[Client]:
    """A connection as services make it, under one credential."""
    client = await nats.connect(server.settings(kind, name), f"{kind} {name}")
    try:
        yield client
    finally:
        await client.close()
