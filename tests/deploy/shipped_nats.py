"""The three servers of the overlay ``ha``, from what kustomize renders and ``yett keys kubernetes`` prints, unchanged.

Each is alone in a network namespace, behind one bridge, with a root of its own: its configuration and its Secret lie
where the manifest mounts them, and ``/etc/hosts`` stands for cluster DNS.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from services.access.folder import Folder
from services.access.kubernetes import MOUNTED, SERVICE_HOST, make_objects
from services.common.settings import CommonSettings, load_settings
from tests.deploy.readme import ROOT, make_keys
from tests.deploy.test_overlays import Object, containers, find, render
from tests.nats_cluster import SIZE, NatsCluster
from tests.nats_server import SERVER, NatsServer
from tests.nodeagent.namespaces import ip

BRIDGE, NETWORK = "yettha", "10.77.222"
PEERS = "yett-nats-peers.yett-system.svc"


class ShippedServer(NatsServer):
    """The container of one pod of the StatefulSet."""

    port = 4222

    def __init__(self, folder: Path, number: int, objects: list[Object], keys: Folder) -> None:
        self.name, self.address, self.folder = f"yett-nats-{number}", f"{NETWORK}.{number + 1}", folder
        self.namespace = f"{BRIDGE}{number}"
        self._keys = keys
        self._process = None
        self._arguments = containers(objects)["nats"]["args"]
        self._fill(folder / "root", objects, make_objects(keys))

    @property
    def url(self) -> str:
        return f"tls://{self.address}:{self.port}"

    def controller_environment(self) -> dict[str, str]:
        return self._keys.environment("controller") | {"YETT_NATS_URL": self.url, "YETT_NATS_TLS_NAME": SERVICE_HOST}

    def monitor(self, page: str) -> Any:
        """What the server says of itself to who asks from its own network."""
        asked = ["ip", "netns", "exec", self.namespace, "curl", "-sf", f"http://127.0.0.1:8222/{page}"]
        return json.loads(subprocess.run(asked, check=True, capture_output=True, timeout=10).stdout)

    def plug_in(self) -> None:
        """A namespace with an address on the bridge."""
        ip("netns", "add", self.namespace)
        ip("link", "add", self.namespace, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        ip("link", "set", self.namespace, "master", BRIDGE, "up")
        for link in (("lo",), ("eth0",)):
            ip("-n", self.namespace, "link", "set", *link, "up")
        ip("-n", self.namespace, "addr", "add", f"{self.address}/24", "dev", "eth0")

    def said(self, words: str) -> bool:
        """Whether its log has these words."""
        return words in (self.folder / "nats.log").read_text()

    def _launch(self) -> subprocess.Popen[bytes]:
        command = ["ip", "netns", "exec", self.namespace, "chroot", str(self.folder / "root"), "/nats-server"]
        with (self.folder / "nats.log").open("ab") as log:
            return subprocess.Popen(
                [*command, *self._arguments], stdout=log, stderr=log, env=os.environ | {"POD_NAME": self.name}
            )

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection((self.address, self.port), timeout=1):
            return True
        return False

    def _fill(self, root: Path, objects: list[Object], printed: list[dict[str, Any]]) -> None:
        keys = root / MOUNTED.removeprefix("/")
        for folder in (keys, root / "data"):
            folder.mkdir(parents=True)
        shutil.copy(SERVER, root / "nats-server")
        for name, encoded in find(printed, "Secret", "yett-nats")["data"].items():
            (keys / name).write_bytes(base64.b64decode(encoded))
        (keys.parent / "nats.conf").write_text(find(objects, "ConfigMap", "yett-nats")["data"]["nats.conf"])
        names = [f"{NETWORK}.{number + 1} yett-nats-{number}.{PEERS}" for number in range(SIZE)]
        (root / "etc" / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names]) + "\n")


class ShippedCluster(NatsCluster):
    """``keys``: as the README makes them, unless others are given."""

    def __init__(self, folder: Path, keys: Folder | None = None) -> None:
        self._keys = keys or make_keys(folder, "node-a")
        objects = render(ROOT / "deploy" / "overlays" / "ha")
        assert find(objects, "StatefulSet", "yett-nats")["spec"]["replicas"] == SIZE
        self.servers: dict[str, NatsServer] = {}
        for number in range(SIZE):
            (folder / str(number)).mkdir()
            server = ShippedServer(folder / str(number), number, objects, self._keys)
            self.servers[server.name] = server

    @property
    def shipped(self) -> list[ShippedServer]:
        return [server for server in self.servers.values() if isinstance(server, ShippedServer)]

    @property
    def settings(self) -> CommonSettings:
        any_server = next(iter(self.servers.values()))
        return load_settings(CommonSettings, any_server.controller_environment() | {"YETT_NATS_URL": self.url})


@contextmanager
def shipped_cluster(folder: Path, keys: Folder | None = None) -> Iterator[ShippedCluster]:
    """Running servers, gone afterwards with their network. They may not have elected anybody yet."""
    cluster = ShippedCluster(folder, keys)
    ip("link", "add", BRIDGE, "type", "bridge")
    try:
        ip("addr", "add", f"{NETWORK}.254/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for server in cluster.shipped:
            server.plug_in()
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        for server in cluster.shipped:
            subprocess.run(["ip", "netns", "delete", server.namespace], check=False, capture_output=True)
        ip("link", "delete", BRIDGE)
