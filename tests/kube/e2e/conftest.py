"""One cluster for all its tests: it costs half a minute, so it is shared; whoever breaks it mends it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kube.e2e.cluster import Cluster, cluster


@pytest.fixture(scope="package")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """API server, NATS, two controllers, two nodes with agents and recorders, pods."""
    with cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started
