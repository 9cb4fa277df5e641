"""Tables that are kept as they were made, in a network namespace of their own."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator, Sequence

import pytest

from services.nodeagent import nft, sourcecheck
from services.nodeagent.nftrules import Command, family_of
from tests.nodeagent.namespaces import Node, ip, make_node

pytestmark = pytest.mark.e2e

ADDRESS, OTHER = "10.96.0.10", "10.96.0.11"
TABLE = sourcecheck.TABLE


@pytest.fixture
def node() -> Iterator[Node]:
    with make_node(f"yn{os.getpid()}") as made:
        yield made


def list_inet() -> str:
    return nft.list_tables(TABLE)[0]


async def call(*arguments: str) -> None:
    await asyncio.to_thread(subprocess.run, ["nft", *arguments], check=True)


def make_kept(*addresses: str) -> nft.Kept:
    return nft.Kept(TABLE, sourcecheck.make_check(addresses), needs=("inet",))


def test_what_is_wanted_is_made_and_what_is_changed_put_back(node: Node) -> None:
    """Made by the first look and not counted; a set's element that somebody takes away, or adds, is put right."""

    async def work() -> None:
        kept = make_kept(ADDRESS)
        await kept.check()
        assert ADDRESS in list_inet() and kept.restored == 0
        await kept.check()
        assert kept.restored == 0
        await call("delete", "element", "inet", TABLE, "resolvers4", f"{{ {ADDRESS} }}")
        await kept.check()
        assert ADDRESS in list_inet() and kept.restored == 1
        await call("add", "element", "inet", TABLE, "resolvers4", f"{{ {OTHER} }}")
        await kept.check()
        assert OTHER not in list_inet() and kept.restored == 2
        assert kept.want(sourcecheck.make_check([OTHER])) and not kept.want(sourcecheck.make_check([OTHER]))
        await kept.check()
        assert OTHER in list_inet() and ADDRESS not in list_inet() and kept.restored == 2
        nft.remove(TABLE)
        assert nft.list_tables(TABLE) == ["", ""]
        nft.remove(TABLE)

    node.run(work)


def test_what_was_counted_stays_so(node: Node) -> None:
    """Whatever happens to the table: other addresses, somebody's flush; only packets from elsewhere count."""
    node.add_pod(90)
    ip("-n", node.name, "addr", "add", "10.66.9.1/32", "dev", "lo")
    pod = f"{node.name}-p90"
    ip("-n", pod, "route", "add", "10.66.9.1", "dev", "eth0", "scope", "link")
    ip("-n", pod, "addr", "add", f"{ADDRESS}/32", "dev", "eth0")

    def ping(namespace: str, source: str) -> bool:
        command = ["ip", "netns", "exec", namespace, "ping", "-c1", "-W0.3", "-I", source, "10.66.9.1"]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    async def work() -> None:
        kept = make_kept(ADDRESS, "10.66.9.1")
        await kept.check()
        assert await asyncio.to_thread(ping, pod, "10.66.0.90")
        assert await asyncio.to_thread(ping, node.name, "10.66.9.1"), "over the loopback"
        await kept.check()
        assert kept.packets == 0
        assert not await asyncio.to_thread(ping, pod, ADDRESS)
        await kept.check()
        assert kept.packets == 1 and kept.restored == 0
        kept.want(sourcecheck.make_check([ADDRESS]))
        await kept.check()
        await call("flush", "ruleset")
        await kept.check()
        assert kept.packets == 1
        assert not await asyncio.to_thread(ping, pod, ADDRESS)
        await kept.check()
        assert kept.packets == 2 and kept.restored == 1

    node.run(work)


def test_a_kernel_without_family_bridge_has_the_other(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that is enough; the gate is made whole or not at all."""
    run = nft.run

    def refuse_bridge(commands: Sequence[Command]) -> None:
        if any(family_of(one) == "bridge" for one in commands):
            raise nft.NftError("no such family")
        run(commands)

    monkeypatch.setattr(nft, "run", refuse_bridge)

    async def work() -> None:
        kept = make_kept(ADDRESS)
        await kept.check()
        assert ADDRESS in list_inet() and nft.list_tables(TABLE)[1] == "" and kept.problem == ""
        await call("flush", "ruleset")
        await kept.check()
        assert ADDRESS in list_inet() and kept.restored == 1
        with pytest.raises(nft.NftError, match="no such family"):
            await nft.Kept(TABLE, sourcecheck.make_check([ADDRESS])).put_up()
        nft.run([{"delete": {"table": {"family": "inet", "name": TABLE}}}])

    node.run(work)


def test_without_nft_it_is_said_and_tried_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A problem and no exception; nothing to remove; all is well once nft is there."""
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", "/nowhere")

    async def work() -> None:
        kept = make_kept(ADDRESS)
        await kept.check()
        assert kept.problem == "nft: No such file or directory" and kept.restored == 0
        nft.remove(TABLE)
        monkeypatch.setenv("PATH", path)
        await kept.check()
        assert kept.problem == "" and ADDRESS in list_inet()

    node.run(work)
