"""An API server that is away, knows other tokens, or hangs: the last good state stays in force, and is called old."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.kube.e2e.cluster import Cluster, applied, open_to
from tests.kube.servers import CONTROLLER_TOKEN

pytestmark = [pytest.mark.kube, pytest.mark.e2e, pytest.mark.timeout(180)]

OPEN, SHUT = "203.0.113.10", "203.0.113.20"
CLIENT = "switch/switch-client"


@pytest.fixture
def policed(whole: Cluster) -> Iterator[Cluster]:
    """One address is open to the clients."""
    with applied(whole, "input.yaml", open_to(OPEN)):
        yield whole


def is_stale(whole: Cluster) -> bool:
    """The leader says since when."""
    return any("stale since 20" in problem.message for problem in whole.problems())


def check_in_force(whole: Cluster, *, open_to: str = OPEN, shut_to: str = SHUT) -> None:
    assert whole.reaches(CLIENT, open_to) and not whole.reaches(CLIENT, shut_to)


def edit(whole: Cluster, address: str) -> None:
    """The clients' one address is another from now on, and it is enforced."""
    whole.objects.write("input.yaml", open_to(address))
    whole.until(lambda: whole.reaches(CLIENT, address), 60, "the edit is enforced")


def test_a_server_that_is_away_with_a_new_token_when_it_is_back(policed: Cluster) -> None:
    """Killed: packets pass as before, the status says since when it is stale. Back, it knows only another token: still
    stale, refused with 401. The new token in its file: heard again, and what was edited meanwhile is enforced."""
    kube = policed.kube
    kube.apiserver.stop(signal.SIGKILL)
    policed.until(lambda: is_stale(policed), 40, "it is called stale")
    check_in_force(policed)
    kube.tokens["renewed"] = kube.tokens.pop(CONTROLLER_TOKEN)
    try:
        kube.start_apiserver()
        policed.until(lambda: any("401" in each.message for each in policed.problems()), 40, "401 is in the status")
        policed.objects.write("input.yaml", open_to(SHUT))
        check_in_force(policed)
    finally:
        kube.kubeconfig("controller", "renewed")
    policed.until(lambda: policed.reaches(CLIENT, SHUT), 60, "the edit is enforced")
    policed.until(lambda: not policed.problems(), 60, "nothing is stale any more")


def test_a_server_that_hangs(policed: Cluster) -> None:
    """It is paused: connections stand, nothing comes. Its watches are given up, the status says so, packets pass as
    before; when it goes on, an edit is enforced, by whichever of the two is then the faster at the Lease."""
    policed.kube.apiserver.send(signal.SIGSTOP)
    try:
        policed.until(lambda: is_stale(policed), 60, "it is called stale")
        check_in_force(policed)
    finally:
        policed.kube.apiserver.send(signal.SIGCONT)
    edit(policed, SHUT)
    policed.until(lambda: not policed.problems(), 60, "nothing is stale any more")
