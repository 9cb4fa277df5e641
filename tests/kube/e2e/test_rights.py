"""What the controllers of this cluster asked of its API server, by its audit log, against the role that they had."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from services.demo.state import is_alive
from tests.kube.e2e.cluster import CONTROLLERS, DEFINITIONS, Cluster
from tests.kube.e2e.test_failover import await_standby, find_leader
from tests.kube.test_rbac import CUSTOM, define, fill, granted, path_of, used

pytestmark = [pytest.mark.kube, pytest.mark.e2e, pytest.mark.timeout(180)]

LATER = [kind for kind in CUSTOM if kind.group == "policy.networking.k8s.io"]
"""Kinds that the cluster does not have from the start."""


@pytest.fixture
def every_kind(whole: Cluster) -> Iterator[Cluster]:
    """An object of each kind of policy that there is, and one that is refused."""
    define(whole.kube, LATER)
    fill(whole.kube)
    yield whole
    for kind in CUSTOM:
        for name in ("default", "bad"):
            whole.kube.admin.request("DELETE", f"{path_of(kind)}/{name}")
    for kind in LATER:
        whole.kube.admin.call("DELETE", f"{DEFINITIONS}/{kind.plural}.{kind.group}")
    whole.until(lambda: whole.problems() == (), 60, "no problem is left")


def test_what_is_granted_is_what_the_run_used(every_kind: Cluster) -> None:
    """Both ways: in all that the other tests did nothing was asked for beyond the shipped role, and no right of it is
    unused."""
    whole, kube = every_kind, every_kind.kube
    (standby,) = set(CONTROLLERS) - {find_leader(whole).name}
    process = whole.demo.pipeline.processes[standby]
    # A watch that lasts, as that of the Lease, is in the log when it has ended.
    os.kill(process.pid, signal.SIGTERM)
    whole.until(lambda: not is_alive(process), 20, "the standby ends")
    whole.demo.pipeline.start_controller(standby)
    await_standby(whole, standby)
    whole.until(lambda: used(kube, code=200) >= granted(), 60, "every right is used")
    assert used(kube, code=200) == granted()
    # A server that starts refuses what it has not read its roles for yet; nothing else was ever asked for.
    assert used(kube, code=403) <= granted()
