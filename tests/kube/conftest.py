"""Fixtures of the ring `kube`: one API server for all its tests, each in namespaces of its own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from tests.kube import test_minutes
from tests.kube.beside import beside
from tests.kube.servers import KubeServer, kube_server
from tests.nats_server import nats_server

__all__ = ["kube", "nats_server", "shared_kube", "stayed_away"]


def _waits_for_minutes(item: pytest.Item) -> bool:
    return item.path.name == f"{test_minutes.__name__.rpartition('.')[2]}.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What has run beside the others is asked last."""
    items.sort(key=_waits_for_minutes)


@pytest.fixture(scope="session", autouse=True)
def stayed_away(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Future[float] | None]:
    """Begins with the ring's first test, where its own is to be run: it takes minutes and hardly any processor."""
    if not any(map(_waits_for_minutes, request.session.items)):
        yield None
        return
    with beside(test_minutes.stay_away(tmp_path_factory.mktemp("away"))) as outcome:
        yield outcome


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
