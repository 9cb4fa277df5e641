"""``yett explain``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from nats.aio.client import Client
from typer.testing import CliRunner, Result

from schemas import wire
from schemas.status import AgentStatus
from schemas.terms import NodeName
from services.cli.__main__ import app
from services.scenario.walk import NODE_CACHE as CACHE
from tests.bus.harness import connected, run
from tests.cli.golden import compare, yett
from tests.nats_server import NatsServer, nats_server
from tests.scenario.test_live import fill

__all__ = ["nats_server"]

OLD = ("--manifests", "cluster.yaml", "--manifests", "old")
NEW = ("--manifests", "cluster.yaml", "--manifests", "new")
CASES = {
    "explain-service": ("--from", "shop/web-1", "--to", "data/db:5432", *NEW),
    "explain-name-but-for-the-port": ("--from", "shop/web-1", "--to", "api.example.com:80", *OLD),
    "explain-admin-deny": ("--from", "shop/web-1", "--to", "169.254.169.254:80", *OLD),
    "explain-own-node": ("--from", "192.168.0.1", "--to", "data/db-0:5432", *OLD),
    "explain-default": ("--from", "data/db-0", "--to", "shop/web-1", "--default", "deny", *OLD),
    "explain-audit": ("--from", "shop/web-1", "--to", "data/db-0:5432", *OLD, "--manifests", "audit.yaml"),
    "explain-no-pod": ("--from", "203.0.113.1", "--to", "198.51.100.1:443", *OLD),
}


@pytest.mark.parametrize("name", CASES)
def test_golden_walks(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The verdict and the whole walk: what decided, what passed, what the other rules lacked."""
    result = yett(monkeypatch, "explain", *CASES[name])
    assert result.exit_code == 0, result.output
    compare(name, result.stdout)


def test_json_has_every_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that have nothing to do with it included."""
    told = json.loads(yett(monkeypatch, "explain", *CASES["explain-admin-deny"], "-o", "json").stdout)
    assert (told["verdict"], told["crossings"][0]["finding"]["rule"]) == ("deny", "no-metadata")
    outcomes = [rule["outcome"] for tier in told["crossings"][0]["walks"][0]["tiers"] for rule in tier["rules"]]
    assert outcomes == ["decides", "peer", "neither", "neither", "peer"]


def test_json_has_both_walks_of_a_flow_under_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The finding is that of full, told as audit; what enforced says stands beside it."""
    told = json.loads(yett(monkeypatch, "explain", *CASES["explain-audit"], "-o", "json").stdout)
    out, into = told["crossings"]
    assert (told["verdict"], out["finding"]["verdict"], out["finding"]["rule"]) == ("audit", "audit", "not-to-data")
    assert (out["enforced"]["verdict"], out["full"]["finding"]["verdict"]) == ("allow", "deny")
    assert out["full"]["walks"] != out["walks"] and "full" not in into


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--from", "shop/none", "--to", "data/db-0:1"), "there is no pod shop/none"),
        (("--from", "shop/web-1", "--to", "data/db-0:http"), "'http' is not a port"),
        (("--from", "shop/web-1", "--to", "a/b/c:80"), "'a/b/c:80' is not namespace/name"),
        (("--from", "shop/web-1", "--to", "data/db-0:1", "--protocol", "QUIC"), "--protocol QUIC"),
        (("--from", "shop/web-1", "--to", "svc/data/none:1"), "there is no Service data/none"),
    ],
)
def test_what_cannot_be_explained(monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str) -> None:
    """Exit 2, and why."""
    result = yett(monkeypatch, "explain", *arguments, *OLD)
    assert result.exit_code == 2 and said in result.stderr


def test_a_port_that_was_not_given_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that the pod declares, else 443."""
    assert "8080 is asked about" in yett(monkeypatch, "explain", *CASES["explain-default"]).stderr
    asked = ("explain", "--from", "shop/web-1", "--to", "example.org", *OLD)
    assert "443 is asked about" in yett(monkeypatch, *asked).stderr


DNS = ("--from", "shop/web-1", "--protocol", "UDP")
CACHE_SAID = "NodeLocal DNSCache listens at 169.254.20.10, and no manifest says on which nodes"


def test_manifests_cannot_tell_where_a_node_has_a_cache_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an agent would do that finds it is said, where the verdict hangs on it: for that address and DNS alone."""
    asked = yett(monkeypatch, "explain", *DNS, "--to", "169.254.20.10:53", *OLD)
    assert asked.stdout.splitlines()[0].endswith(": DENY")
    assert CACHE_SAID in asked.stderr and "allow for DNS_IMPLICIT" in asked.stderr
    for other in ("169.254.20.10:80", "10.96.0.10:53", "192.0.2.1:53"):
        assert "NodeLocal" not in yett(monkeypatch, "explain", *DNS, "--to", other, *OLD).stderr


# ---------------------------------------------------------------------------------------------------------------------
# A live cluster


def explain(server: NatsServer, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["explain", "--nats", server.url, "--wait", "5", *arguments])


@asynccontextmanager
async def agent(client: Client, node: str, *resolvers: str) -> AsyncIterator[None]:
    """Speaks as an agent whose node has a DNS cache at these addresses."""
    status = AgentStatus(node=NodeName(node), resolvers=resolvers)

    async def speak() -> None:
        while True:
            await client.publish(wire.subject_status(status.node), wire.encode(status))
            await asyncio.sleep(0.05)

    speaking = asyncio.create_task(speak())
    try:
        yield
    finally:
        speaking.cancel()


@pytest.mark.nats
def test_a_nodes_agent_tells_whether_it_has_a_cache_of_its_own(nats_server: NatsServer) -> None:
    """The verdict follows its status; of a node whose agent is silent it is not known, and said so."""
    asked = ("--from", "app/web", "--protocol", "UDP", "--to")

    async def scenario() -> None:
        async with connected(nats_server, with_streams=False) as (client, jetstream):
            await fill(jetstream, client)
            async with agent(client, "node-a", CACHE):
                found = await asyncio.to_thread(explain, nats_server, *asked, f"{CACHE}:53")
                assert found.stdout.splitlines()[0].endswith(": ALLOW") and not found.stderr
                assert "the other side: the DNS cache of its node" in found.stdout
            async with agent(client, "node-a"):
                found = await asyncio.to_thread(explain, nats_server, *asked, f"{CACHE}:53")
                assert found.stdout.splitlines()[0].endswith(": DENY") and not found.stderr
            async with agent(client, "node-b", CACHE):
                found = await asyncio.to_thread(explain, nats_server, *asked, f"{CACHE}:53")
                assert found.stdout.splitlines()[0].endswith(": DENY")
                said = f"no agent is heard on node-a: if {CACHE} is its own DNS cache, this is allow for DNS_IMPLICIT"
                assert said in found.stderr.replace("\n", " ")

    run(scenario())
