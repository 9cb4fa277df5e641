"""Fixtures of the ring `kube`: one API server for all its tests, each in namespaces of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kube.servers import KubeServer, kube_server
from tests.nats_server import nats_server

__all__ = ["kube", "nats_server", "shared_kube"]


@pytest.fixture(scope="session")
def shared_kube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeServer]:
    """A running API server with a controller manager; starting it takes seconds, so it is shared."""
    with kube_server(tmp_path_factory.mktemp("kube")) as server:
        server.start_manager()
        yield server


@pytest.fixture
def kube(shared_kube: KubeServer) -> Iterator[KubeServer]:
    """The shared server; the namespaces and cluster-wide policies that a test made are gone before the next."""
    before = {each["metadata"]["name"] for each in shared_kube.admin.call("GET", "/api/v1/namespaces")["items"]}
    yield shared_kube
    if not shared_kube.apiserver.is_running:
        shared_kube.start_apiserver()
    shared_kube.forget_all_but(before)
