"""The credentials of an installation: a ServiceAccount's token that ends, and an authority that is replaced."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from nats.aio.client import Client

from schemas import wire
from tests.bus.controllers import ask
from tests.bus.harness import connected, run, stored
from tests.kube.inpod import NAME, NAMESPACE, Projected, in_pod, request_brief_token, request_token
from tests.kube.proxy import wire_to
from tests.kube.servers import CONTROLLER_USER, KubeServer, make_certificates
from tests.kube.test_lease import CLOSED, POLICIES, moved, until_published
from tests.kube.test_rbac import ROLE_FILE
from tests.nats_server import NatsServer

pytestmark = pytest.mark.kube

LIFE_SECONDS = 20.0
"""Of the first token: the controller has published by then."""
RENEWED_SECONDS = 15.0
"""A source that is refused asks every five seconds; the library alone would look at the file once a minute."""
WATCH_SECONDS = "2"
"""A watch that stands is not ended with its token; 60 is shipped."""
SPLIT = {"metadata": {"name": "split"}, "spec": {"podSelector": {}, "policyTypes": ["Egress"]}}
SPLIT_SUBJECT = wire.subject_source("NetworkPolicy", "shop", "split")


def install(kube: KubeServer) -> str:
    """The shipped ServiceAccount with its role, and a policy to read; the account's uid."""
    kube.kubectl("apply", "-f", str(ROLE_FILE.parent / "namespace.yaml"), "-f", str(ROLE_FILE))
    kube.admin.create_namespace("shop")
    kube.admin.create_pod("shop", "web", address="10.0.0.1", app="web")
    kube.admin.create(POLICIES, CLOSED)
    account = kube.admin.call("GET", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{NAME}")
    return str(account["metadata"]["uid"])


async def until_troubles(client: Client, is_true: Callable[[list[str]], bool]) -> None:
    """Until what the leader complains of is so."""
    async with asyncio.timeout(60):
        while not is_true([each.message for each in (await ask(client)).problems]):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def test_a_token_that_ends_is_followed_by_the_one_that_the_kubelet_writes(
    nats_server: NatsServer, kube: KubeServer, tmp_path: Path
) -> None:
    """While the mounted token is refused with 401 the status says since when it is stale, and what was published stays;
    the renewed one is taken up within seconds by the same process, which leads on, and what was edited is published."""

    async def scenario() -> None:
        uid = install(kube)
        since = len(kube.audit())
        authority = (kube.folder / "ca.crt").read_text()
        began = time.monotonic()
        projected = Projected(tmp_path / "serviceaccount", request_brief_token(kube, LIFE_SECONDS), authority)
        settings = {"YETT_KUBE_WATCH_SECONDS": WATCH_SECONDS}
        async with (
            connected(nats_server) as (client, jetstream),
            in_pod(nats_server, projected, kube.port, "one", **settings) as one,
        ):
            await one.until_said("published")
            print(f"published {time.monotonic() - began:.2f} s after the token was made")
            before = await stored(client, jetstream)
            await until_troubles(
                client, lambda told: len(told) >= 7 and all("stale since 20" in each and "401" in each for each in told)
            )
            kube.admin.create(POLICIES, SPLIT)
            assert moved(before, await stored(client, jetstream)) == set()
            projected.renew(token=request_token(kube))
            renewed = time.monotonic()
            after = await until_published(client, jetstream, SPLIT_SUBJECT)
            seconds = time.monotonic() - renewed
            await until_troubles(client, lambda told: not told)
            print(f"published {seconds:.2f} s after the token was renewed")
            assert seconds < RENEWED_SECONDS and before.keys() <= after.keys()
            assert one.process.returncode is None and len(one.said("leading")) == 1
        asked = [entry for entry in kube.audit()[since:] if entry.get("userAgent") == "yett-controller"]
        users = {(entry["user"].get("username"), entry["user"].get("uid")) for entry in asked if entry["user"]}
        assert users == {(CONTROLLER_USER, uid)}

    run(scenario(), 150)


def test_an_authority_that_is_replaced_is_taken_up(nats_server: NatsServer, kube: KubeServer, tmp_path: Path) -> None:
    """The server's certificate is another authority's from now on: stale, until the mounted ``ca.crt`` is that one's
    too; then the same process hears, and publishes what was edited meanwhile."""

    async def scenario() -> None:
        install(kube)
        folders = [tmp_path / name for name in ("old", "new")]
        for folder in folders:
            folder.mkdir()
            make_certificates(folder)
        old, new = folders
        served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        served.load_cert_chain(old / "server.crt", old / "server.key")
        trusted = ssl.create_default_context(cafile=str(kube.folder / "ca.crt"))
        projected = Projected(tmp_path / "serviceaccount", request_token(kube), (old / "ca.crt").read_text())
        async with (
            wire_to(kube.port, served=served, trusted=trusted) as wire_,
            connected(nats_server) as (client, jetstream),
            in_pod(nats_server, projected, wire_.port, "one") as one,
        ):
            await one.until_said("published")
            served.load_cert_chain(new / "server.crt", new / "server.key")
            wire_.cut()
            wire_.mend()
            await until_troubles(client, lambda told: any("CERTIFICATE_VERIFY_FAILED" in each for each in told))
            kube.admin.create(POLICIES, SPLIT)
            projected.renew(ca=(new / "ca.crt").read_text())
            await until_published(client, jetstream, SPLIT_SUBJECT)
            await until_troubles(client, lambda told: not told)
            assert one.process.returncode is None and len(one.said("leading")) == 1

    run(scenario(), 120)
