"""One of two controllers dies, or sleeps longer than its Lease: changes go on, and nothing else changes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from schemas import wire
from schemas.policy import Leader
from services.common import nats
from services.common.jetstream import JetStream
from services.common.messages import Message
from services.common.settings import CommonSettings, load_settings
from services.demo import topology
from services.demo.figures import SWITCH_PROBE_SECONDS, Sink, open_sender
from services.demo.servers import read_log_end
from services.demo.state import Process
from tests.bus.harness import stored
from tests.kube.e2e.cluster import CONTROLLERS, Cluster, ClusterPipeline, applied, open_to
from tests.kube.servers import LEASE

pytestmark = [pytest.mark.kube, pytest.mark.e2e, pytest.mark.timeout(180)]

FIRST, SECOND, THIRD = "203.0.113.10", "203.0.113.20", "203.0.113.30"
CLIENTS = ("switch/switch-client", "switch/switch-client-b")
FAILOVER_SECONDS = 5.0


@pytest.fixture
def policed(whole: Cluster) -> Iterator[Cluster]:
    """Under a policy that the test edits."""
    with applied(whole, "failover.yaml", open_to(FIRST)):
        yield whole


def find_leader(whole: Cluster) -> Process:
    """The controller that leads, by what it says of itself."""
    status = whole.run(whole.demo.bus.ask_controller())
    assert status is not None
    return whole.demo.pipeline.processes[status.holder]


def read_stream(whole: Cluster) -> dict[str, Message]:
    """Everything that stands in the policy stream, read with the reader's credential."""
    pipeline = whole.demo.pipeline
    assert isinstance(pipeline, ClusterPipeline)

    async def read() -> dict[str, Message]:
        client = await nats.connect(load_settings(CommonSettings, pipeline.reader()), "test")
        try:
            return await stored(client, JetStream(client))
        finally:
            await client.close()

    return whole.run(read())


def mark(found: dict[str, Message]) -> Leader:
    read = wire.decode(wire.SUBJECT_LEADER, found[wire.SUBJECT_LEADER].body)
    assert isinstance(read, Leader)
    return read


def moved(before: dict[str, Message], after: dict[str, Message]) -> set[str]:
    """Subjects that have another last message, or none any more."""
    return {each for each in before.keys() | after.keys() if sequence(before, each) != sequence(after, each)}


def sequence(found: dict[str, Message], subject: str) -> int:
    return found[subject].sequence if subject in found else 0


@contextmanager
def datagrams(whole: Cluster, address: str) -> Iterator[Callable[[], float]]:
    """Waits, when called, until both clients' datagrams reach the address: the instant."""
    lab = whole.demo.lab
    with (
        Sink(lab, probe_seconds=SWITCH_PROBE_SECONDS) as sink,
        open_sender(lab, topology.find_pod(CLIENTS[0])) as one,
        open_sender(lab, topology.find_pod(CLIENTS[1])) as other,
    ):
        yield lambda: sink.await_arrivals([one, other], address)


def test_a_killed_leader_is_followed_by_one_that_publishes_its_mark_alone(policed: Cluster) -> None:
    """Nothing changed: of all rows in the stream only the mark is another, and its term is the next."""
    before, killed = read_stream(policed), find_leader(policed)
    os.kill(killed.pid, signal.SIGKILL)
    died = time.monotonic()
    policed.until(lambda: leads(policed, other_than=killed.name), 20, "the other leads")
    print(f"the other led after {time.monotonic() - died:.2f} s")
    after = read_stream(policed)
    assert moved(before, after) == {wire.SUBJECT_LEADER}
    assert mark(after).term == mark(before).term + 1
    policed.demo.pipeline.start_controller(killed.name)
    await_standby(policed, killed.name)


def leads(whole: Cluster, *, other_than: str) -> bool:
    status = whole.run(whole.demo.bus.ask_controller())
    return status is not None and status.holder != other_than


def await_standby(whole: Cluster, name: str) -> None:
    """Its newest process has read the cluster and stands by."""

    def stands_by() -> bool:
        said = read_log_end(whole.demo.run, name)
        return said.rfind('"standing by"') > said.rfind('"leading"')

    whole.until(stands_by, 30, lambda: f"{name} stands by:\n{read_log_end(whole.demo.run, name)}")


def test_a_change_after_the_leaders_death_is_in_force_within_seconds(policed: Cluster) -> None:
    """kill -9, then an edit with kubectl: both nodes enforce it at most five seconds after the death."""
    killed = find_leader(policed)
    with datagrams(policed, SECOND) as await_datagrams:
        os.kill(killed.pid, signal.SIGKILL)
        died = time.monotonic()
        policed.objects.write("failover.yaml", open_to(SECOND))
        seconds = await_datagrams() - died
    print(f"in force {seconds:.2f} s after the leader's death")
    policed.demo.pipeline.start_controller(killed.name)
    await_standby(policed, killed.name)
    assert seconds <= FAILOVER_SECONDS


def test_a_leader_that_slept_longer_than_its_lease_changes_nothing(policed: Cluster) -> None:
    """It is stopped; the other takes the Lease and enforces an edit; when it goes on, with an older world in mind, no
    row in the stream is touched, it stands by, and packets pass as the edit says.

    In the middle of a publication: test_lease has that, byte by byte.
    """
    asleep = find_leader(policed)
    (awake,) = set(CONTROLLERS) - {asleep.name}
    os.kill(asleep.pid, signal.SIGSTOP)
    try:
        policed.until(lambda: leads(policed, other_than=asleep.name), 20, "the other leads")
        policed.apply("failover.yaml", open_to(THIRD))
        before = read_stream(policed)
    finally:
        os.kill(asleep.pid, signal.SIGCONT)
    await_standby(policed, asleep.name)
    assert moved(before, read_stream(policed)) == set()
    assert mark(before).holder == policed.kube.admin.call("GET", LEASE)["spec"]["holderIdentity"] == awake
    with datagrams(policed, THIRD) as await_datagrams:
        await_datagrams()
