"""Three real nats-servers that are one cluster: what is stored is on all of them, and one may die."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from nats.aio.client import Client

from services.common import nats, streams
from services.common.jetstream import JetStream, JetStreamError
from services.common.settings import CommonSettings
from tests.nats_server import NatsServer, find_free_port

SIZE = 3


class NatsCluster:
    """``servers``: by name. ``url``: all of them, for a client that goes on with another when one dies."""

    def __init__(self, folder: Path) -> None:
        routes = {f"nats-{number}": find_free_port() for number in range(SIZE)}
        listed = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes.values())
        self.servers: dict[str, NatsServer] = {}
        for name, port in routes.items():
            (folder / name).mkdir()
            peers = f'cluster {{ name: yett, listen: "127.0.0.1:{port}", routes: [{listed}] }}'
            self.servers[name] = NatsServer(folder / name, extra_config=f"server_name: {name}\n{peers}")

    @property
    def url(self) -> str:
        return ",".join(server.url for server in self.servers.values())

    @property
    def settings(self) -> CommonSettings:
        return CommonSettings(nats_url=self.url)

    def start(self) -> None:
        for server in self.servers.values():
            server.start()

    def stop(self) -> None:
        for server in self.servers.values():
            server.stop()


@contextmanager
def nats_cluster(folder: Path) -> Iterator[NatsCluster]:
    """A running cluster, gone afterwards. It may not have elected anybody yet."""
    cluster = NatsCluster(folder)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()


@asynccontextmanager
async def joined(cluster: NatsCluster) -> AsyncIterator[tuple[Client, JetStream]]:
    """A client of whichever servers live, once they have elected each other and the policy stream is on all."""
    client = await nats.connect(cluster.settings, "test")
    jetstream = JetStream(client)
    try:
        async with asyncio.timeout(60):
            while True:
                try:
                    await streams.ensure_stream(jetstream, streams.policy_stream(replicas=SIZE))
                    break
                except (JetStreamError, streams.StreamError):  # nobody is elected yet
                    await asyncio.sleep(0.1)
        yield client, jetstream
    finally:
        await client.close()
