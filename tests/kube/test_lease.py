"""Several controllers on a real API server and a real NATS: one leads, by a Lease, and only that one is heard."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from schemas import wire
from schemas.policy import Leader, Revision
from services.common.jetstream import JetStream
from services.common.messages import Message
from services.controller import kube_lease
from services.controller.kube_api import Api
from services.controller.kube_lease import LeaseElection
from services.controller.leader import TermEndedError
from tests.bus.controllers import ControllerProcess, ask, controller
from tests.bus.harness import connected, eventually, run, stored
from tests.bus.secured import SecuredServer
from tests.kube.proxy import wire_to
from tests.kube.servers import ADMIN_TOKEN, LEASE, KubeServer
from tests.nats_server import NatsServer

pytestmark = pytest.mark.kube

POLICIES = "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies"
CLOSED = {"metadata": {"name": "closed"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}}
PODS = 20
MERGE = "application/merge-patch+json"
ENDED = "ResponseComplete"
HALFWAY_BYTES = 20_000
"""Of a publication of some sixty thousand."""


def fill(kube: KubeServer, pods: int) -> None:
    """Yett's own namespace, and one with pods and a policy."""
    kube.admin.create_namespace("yett-system")
    kube.admin.create_namespace("shop")
    for number in range(pods):
        kube.admin.create_pod("shop", f"web-{number}", app=f"web-{number % 7}")
    kube.admin.create(POLICIES, CLOSED)


def reading(
    nats: NatsServer, kube: KubeServer, name: str, **more: str
) -> AbstractAsyncContextManager[ControllerProcess]:
    """A controller that reads the cluster."""
    config = str(kube.kubeconfig("admin", ADMIN_TOKEN))
    return controller(nats, Path(), name, **({"YETT_MANIFESTS": "", "YETT_KUBE_CONFIG": config} | more))


@asynccontextmanager
async def two(
    nats: NatsServer, kube: KubeServer
) -> AsyncIterator[tuple[ControllerProcess, ControllerProcess, Client, JetStream]]:
    """A leader that has published, and a standby that has read everything."""
    fill(kube, PODS)
    async with connected(nats) as (client, jetstream), reading(nats, kube, "one") as one:
        await one.until_said("published")
        async with reading(nats, kube, "two") as other:
            assert (await other.until_said("standing by"))["leader"] == "one"
            yield one, other, client, jetstream


def moved(before: dict[str, Message], after: dict[str, Message]) -> set[str]:
    """Subjects that have another last message."""
    return {s for s, message in after.items() if s not in before or before[s].sequence != message.sequence}


async def until_published(client: Client, jetstream: JetStream, subject: str) -> dict[str, Message]:
    """Everything stored, once a subject is there and a revision covers it."""
    async with asyncio.timeout(30):
        while True:
            found = await stored(client, jetstream)
            row, revision = found.get(subject), found.get(wire.SUBJECT_REVISION)
            if row and revision and revision.sequence > row.sequence:
                return found
            await asyncio.sleep(0.05)


def mark(found: dict[str, Message]) -> Leader:
    read = wire.decode(wire.SUBJECT_LEADER, found[wire.SUBJECT_LEADER].body)
    assert isinstance(read, Leader)
    return read


def read_revision(found: dict[str, Message]) -> Revision:
    read = wire.decode(wire.SUBJECT_REVISION, found[wire.SUBJECT_REVISION].body)
    assert isinstance(read, Revision)
    return read


def test_a_standby_takes_over_and_publishes_only_its_mark(nats_server: NatsServer, kube: KubeServer) -> None:
    """The leader is killed: within a few seconds (four of the Lease, and what this machine needs) the other leads, and
    of all rows only the mark is another."""

    async def scenario() -> None:
        async with two(nats_server, kube) as (one, other, client, jetstream):
            before = await stored(client, jetstream)
            killed = time.monotonic()
            one.signal(signal.SIGKILL)
            await other.until_said("leading")
            print(f"failover after {time.monotonic() - killed:.2f} s")
            async with asyncio.timeout(10):
                while (await ask(client)).revision != 1:  # noqa: ASYNC110  the leader's to say
                    await asyncio.sleep(0.02)
            after = await stored(client, jetstream)
            assert moved(before, after) == {wire.SUBJECT_LEADER} and before.keys() == after.keys()
            assert (mark(after).holder, mark(after).term) == ("two", 2)

    run(scenario(), 120)


def test_a_leader_that_ends_gives_its_lease_back(nats_server: NatsServer, kube: KubeServer) -> None:
    """On SIGTERM the Lease has no holder, and the standby takes it without waiting for it to run out."""

    async def scenario() -> None:
        async with two(nats_server, kube) as (one, other, _, _):
            one.signal(signal.SIGTERM)
            await one.process.wait()
            await other.until_said("leading")
            lease: Any = kube.admin.call("GET", LEASE)
            assert lease["spec"]["holderIdentity"] == "two" and lease["spec"]["leaseTransitions"] >= 1
            assert not one.said("the lease was not given back")

    run(scenario(), 120)


@pytest.fixture
def secured_server(tmp_path: Path) -> Iterator[SecuredServer]:
    """As ``yett keys`` has it: TLS, accounts, keys, signed revisions."""
    server = SecuredServer(tmp_path)
    server.start()
    yield server
    server.stop()


def test_a_leader_paused_in_mid_publication_changes_nothing_after(
    secured_server: SecuredServer, kube: KubeServer
) -> None:
    """It is stopped for longer than its Lease with half of its rows on the way; the other leads and finishes what it
    began; when it goes on and the rest arrives, not one message of it enters the stream, and it stands by."""

    async def scenario() -> None:
        fill(kube, 100)
        async with (
            wire_to(secured_server.port) as wire,
            connected(secured_server) as (client, jetstream),
            reading(secured_server, kube, "one", YETT_NATS_URL=f"tls://127.0.0.1:{wire.port}") as one,
        ):
            await one.until_said("published")
            start = await stored(client, jetstream)
            async with reading(secured_server, kube, "two") as other:
                await other.until_said("standing by")
                wire.hush_after(HALFWAY_BYTES)
                # A ruleset, then a hundred endpoints that flip to it.
                spec = {"podSelector": {}, "policyTypes": ["Egress"]}
                kube.admin.create(POLICIES, {"metadata": {"name": "split"}, "spec": spec})
                await eventually(lambda: wire.is_hushed, 20)
                one.signal(signal.SIGSTOP)
                # What has passed the wire is stored when the server comes to it.
                async with asyncio.timeout(30):
                    while len(moved(start, halfway := await stored(client, jetstream))) < 3:  # noqa: ASYNC110  a server
                        await asyncio.sleep(0.05)
                assert read_revision(halfway).number == 1 and len(moved(start, halfway)) < 90
                await other.until_said("leading")
                await other.until_said("published")
                before = await stored(client, jetstream)
                assert mark(before).holder == "two" and read_revision(before).number == 2
                assert len(moved(start, before)) > 100
                wire.mend()
                one.signal(signal.SIGCONT)
                assert (await one.until_said("standing by"))["leader"] == "two" and one.said("term over")
                assert moved(before, await stored(client, jetstream)) == set()

    run(scenario(), 150)


def test_without_the_api_server_the_leader_goes_on(nats_server: NatsServer, kube: KubeServer) -> None:
    """It cannot renew its Lease and nobody can take it: it leads, and says since when its knowledge is stale; when the
    server is back it renews, hears, and no term has ended."""

    async def scenario() -> None:
        async with two(nats_server, kube) as (one, other, client, jetstream):
            kube.apiserver.stop(signal.SIGKILL)
            async with asyncio.timeout(40):
                while not (stale := (await ask(client)).problems):  # noqa: ASYNC110  the leader's to say
                    await asyncio.sleep(0.1)
            assert all("stale since" in problem.message for problem in stale)
            kube.start_apiserver()
            kube.admin.create(POLICIES, {**CLOSED, "metadata": {"name": "later"}})
            found = await until_published(client, jetstream, wire.subject_source("NetworkPolicy", "shop", "later"))
            assert mark(found).term == 1 and not one.said("term over") and not other.said("leading")
            async with asyncio.timeout(20):
                while (await ask(client)).problems:  # noqa: ASYNC110  the leader's to say
                    await asyncio.sleep(0.1)

    run(scenario(), 150)


def test_at_rest_the_lease_is_watched_and_not_read(kube: KubeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Watch follows watch, each from where the last one ended; what happens between two is seen."""
    monkeypatch.setattr(kube_lease, "WATCH_SECONDS", 1)
    monkeypatch.setattr(kube_lease, "LEASE_SECONDS", 60)
    path = "/apis/coordination.k8s.io/v1/namespaces/yett-system/leases"

    def asked(verb: str) -> int:
        entries = [each for each in kube.audit() if each["requestURI"].startswith(path) and each["stage"] == ENDED]
        return sum(each["verb"] == verb and each.get("userAgent") == "yett-controller" for each in entries)

    async def scenario() -> None:
        kube.admin.create_namespace("yett-system")
        kube.admin.create(path, {"metadata": {"name": "yett-controller"}, "spec": {"holderIdentity": "first"}})
        api = await Api.open(str(kube.kubeconfig("admin", ADMIN_TOKEN)))
        leaders: list[str] = []
        election = LeaseElection(api, "yett-system", "other")
        tasks = [asyncio.create_task(election.follow()), asyncio.create_task(election.win(leaders.append))]
        gets, watches = asked("get"), asked("watch")
        try:
            for number in range(3):
                await eventually(lambda number=number: asked("watch") > watches + number, 20)
                spec = {"holderIdentity": f"holder-{number}"}
                kube.admin.call("PATCH", f"{path}/yett-controller", {"spec": spec}, content_type=MERGE)
                await eventually(lambda number=number: leaders[-1:] == [f"holder-{number}"], 20)
            assert asked("get") == gets + 1
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await api.close()

    run(scenario(), 90)


def test_who_holds_the_lease_by_what_was_seen_is_not_pushed_aside(kube: KubeServer) -> None:
    """A leader that slept sees the next one's Lease before it renews its own: it ends its term, and writes nothing."""

    async def scenario() -> None:
        kube.admin.create_namespace("yett-system")
        api = await Api.open(str(kube.kubeconfig("admin", ADMIN_TOKEN)))
        leaders: list[str] = []
        election = LeaseElection(api, "yett-system", "asleep")
        following = asyncio.create_task(election.follow())
        try:
            await election.win(leaders.append)
            taken = {"spec": {"holderIdentity": "awake"}}
            kube.admin.call("PATCH", LEASE, taken, content_type=MERGE)
            seeing = asyncio.create_task(election.win(leaders.append))
            await eventually(lambda: leaders == ["awake"], 20)
            seeing.cancel()
            with pytest.raises(TermEndedError, match="awake has taken the lease"):
                await election.hold()
            await election.resign()
            assert kube.admin.call("GET", LEASE)["spec"]["holderIdentity"] == "awake"
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await api.close()

    run(scenario(), 60)
