"""``yett doctor`` finds what is wrong, in order, and names the next command; every check can fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from schemas.policy import Config, Resolver
from schemas.status import (
    FOREIGN_ENFORCER,
    FORGED_PACKETS,
    STALE_SINCE,
    AgentStatus,
    ControllerStatus,
    EndpointStatus,
    Problem,
)
from schemas.terms import NodeName, RevisionNumber
from services.cli.__main__ import app
from services.operate.doctor import CHECKS, Facts, Finding, Here, Kube, State, diagnose, find_next
from services.operate.examine import look_here
from tests.bus.controllers import SHOP, controller
from tests.bus.harness import run
from tests.nats_server import NatsServer, nats_server

__all__ = ["nats_server"]

HERE = Here(bpf="", pin_root="/sys/fs/bpf/yett", is_bpffs=True, is_pinned=True)
KUBE = Kube("", ("a", "b"), {"ClusterNetworkPolicy": "Yett's", "ApplicationNetworkPolicy": "the cluster's own"})
LEADER = ControllerStatus(
    holder="x", revision=RevisionNumber(7), nodes={"a": RevisionNumber(7), "b": RevisionNumber(6)}
)
CONFIG = Config(resolvers=(Resolver(address="10.96.0.10"),))


def agent(node: str, **changes: object) -> AgentStatus:
    sound = AgentStatus(node=NodeName(node), revision=RevisionNumber(7), signatures="required", build="1234")
    return msgspec.structs.replace(sound, **changes)


def agents(**changes: object) -> dict[str, AgentStatus]:
    """Two, of which the second is so."""
    return {"a": agent("a"), "b": agent("b", **changes)}


SOUND = Facts(here=HERE, version="2.11.0", kube=KUBE, controller=LEADER, config=CONFIG, patterns=1, agents=agents())
FOREIGN = EndpointStatus(pod="", interface="eni1", ifindex=3, state="foreign", foreign="bpf x at tc ingress")
FAULT = Problem(object="NetworkPolicy a/b", path="spec", message="unknown field")
DISTRUST = Problem(object="Config", path="resolvers", message="10.96.0.10 is claimed", severity="warning")


def stale(kind: str, since: str) -> Problem:
    message = f"{STALE_SINCE} {since}, the last good state stays: connection refused"
    return Problem(object=f"Kubernetes API {kind}", path="", message=message, severity="warning")


STALE = msgspec.structs.replace(
    LEADER, problems=(stale("pods", "2026-11-30T09:00:09Z"), stale("nodes", "2026-11-30T09:00:07Z"))
)

ELSEWHERE = {"YETT_PIN_ROOT": "/sys/fs/bpf/yett-none"}
"""Whatever agents this machine has."""

FAULTS = {
    "bpf": [
        {"here": replace(HERE, bpf="refused")},
        {"here": replace(HERE, is_bpffs=False)},
        {"here": replace(HERE, is_pinned=False)},
    ],
    "nats": [{"bus": "no NATS"}],
    "jetstream": [{"jetstream": "not enabled"}],
    "api-server": [{"kube": Kube("403")}],
    "definitions": [{"kube": replace(KUBE, definitions={"ClusterNetworkPolicy": ""})}],
    "controller": [{"controller": None}, {"controller": msgspec.structs.replace(LEADER, problems=(FAULT,))}],
    "source": [{"controller": STALE}, {"controller": STALE, "kube": None}],
    "switch": [{"config": msgspec.structs.replace(CONFIG, enforce=False)}, {"agents": agents(enforcing=False)}],
    "dns": [
        {"config": Config()},
        {"config": msgspec.structs.replace(CONFIG, dns_implicit=False)},
        {"agents": agents(problems=(DISTRUST,))},
        {"config": Config(), "agents": agents(resolvers=("169.254.20.10",))},
        {"config": Config(), "agents": {}},
    ],
    "agents": [
        {"agents": {"a": agent("a")}},
        {"kube": replace(KUBE, nodes=("a", "b", "c"))},
        {"agents": agents(torn=True)},
        {"agents": agents(revision=RevisionNumber(0))},
        {"agents": agents(problems=(FAULT,))},
        {"controller": msgspec.structs.replace(LEADER, nodes={}), "kube": None, "agents": {}},
    ],
    "builds": [{"agents": agents(build="99")}, {"agents": agents(mode="strict")}],
    FOREIGN_ENFORCER: [{"agents": agents(endpoints=(FOREIGN,))}],
    "convergence": [
        {"agents": agents(revision=RevisionNumber(6))},
        {"controller": msgspec.structs.replace(LEADER, revision=RevisionNumber(0))},
    ],
    "signatures": [{"agents": agents(signatures="off")}],
}
"""Check -> what makes it the first that fails."""


def test_all_is_fine_where_all_is_fine() -> None:
    """Every check, and no command."""
    findings = diagnose(SOUND)
    assert {one.state for one in findings} == {State.FINE} and len(findings) == len(CHECKS)
    assert find_next(findings) is None


@pytest.mark.parametrize(("check", "fault"), [(check, fault) for check, faults in FAULTS.items() for fault in faults])
def test_each_fault_is_found_by_its_check_first(check: str, fault: dict[str, object]) -> None:
    """With what is wrong and the command that goes on from there."""
    found = find_next(diagnose(replace(SOUND, **fault)))  # type: ignore[arg-type]
    assert found is not None and found.check == check
    assert found.message and found.command


def test_a_stale_source_is_told_with_since_when_and_where_to_look() -> None:
    """Since the earliest instant; at the API server, or at the controller where somebody had an answer from the other.
    A warning of any other kind is no trouble of the source."""

    def find(controller: ControllerStatus, kube: Kube | None) -> Finding:
        found = diagnose(replace(SOUND, controller=controller, kube=kube))
        return next(one for one in found if one.check == "source")

    found = find(STALE, None)
    told = "stale since 2026-11-30T09:00:07Z, the last good state stays: connection refused"
    assert found.message == f"{told} (Kubernetes API pods, Kubernetes API nodes)"
    assert found.command == "kubectl get --raw '/readyz?verbose'" == find(STALE, Kube("refused")).command
    assert find(STALE, KUBE).command == "kubectl logs -n yett-system deployment/yett-controller"
    assert find(msgspec.structs.replace(LEADER, problems=(DISTRUST,)), KUBE).state is State.FINE


def test_a_cache_on_every_node_is_a_resolver_and_is_told_of() -> None:
    """Where the settings name none, it has to be on each; beside theirs it is told on how many it is."""

    def told(**changes: object) -> str:
        (found,) = (one for one in diagnose(replace(SOUND, **changes)) if one.check == "dns")  # type: ignore[arg-type]
        return f"{found.state}: {found.message}"

    cached = {name: agent(name, resolvers=("169.254.20.10",)) for name in ("a", "b")}
    own = "the node's own cache (169.254.20.10) on"
    assert told(config=Config(), agents=cached) == f"fine: trusted: {own} 2 of 2 nodes"
    assert told(agents=cached | {"b": agent("b")}) == f"fine: trusted: 10.96.0.10:53, {own} 1 of 2 nodes"
    forged = {"a": agent("a"), "b": agent("b", counters={FORGED_PACKETS: 3})}
    dropped = "dropped on b: packets from elsewhere that bear such an address"
    assert told(agents=forged) == f"fine: trusted: 10.96.0.10:53; {dropped}"
    lacking = "wrong: no trusted resolver is known on b: no name is ever learned"
    assert told(config=Config(), agents=cached | {"b": agent("b")}) == lacking


def test_every_check_can_fail() -> None:
    """As the tests above have shown."""
    assert {one.check for one in diagnose(SOUND)} == FAULTS.keys()


def test_what_was_not_looked_at_is_neither_fine_nor_wrong() -> None:
    """Nothing is known without a bus but that there is none."""
    findings = diagnose(Facts(bus="no NATS"))
    assert [one.check for one in findings if one.state is State.WRONG] == ["nats"]
    assert not [one for one in findings if one.state is State.FINE]


# ---------------------------------------------------------------------------------------------------------------------
# Real servers


def ask(*arguments: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """Exit code; check -> its state and message."""
    done = CliRunner().invoke(app, ["doctor", "--output", "json", "--wait", "2", *arguments], env=ELSEWHERE)
    told = json.loads(done.stdout)
    return done.exit_code, {one["check"]: (one["state"], one["message"]) for one in told["findings"]}


@pytest.mark.nats
def test_without_a_server_the_bus_is_what_fails() -> None:
    """And the command says which pods to look at."""
    code, found = ask("--nats", "nats://127.0.0.1:1")
    assert code == 1 and found["nats"][0] == "wrong" and found["jetstream"][0] == "unknown"
    shown = CliRunner().invoke(app, ["doctor", "--nats", "nats://127.0.0.1:1", "--wait", "0.3"], env=ELSEWHERE)
    assert shown.stdout.splitlines()[-1].startswith("next: kubectl get pods -n yett-system")


@pytest.fixture
def bare_server(tmp_path: Path) -> Iterator[NatsServer]:
    """Without JetStream."""
    server = NatsServer(tmp_path)
    server._config.write_text(f'listen: "127.0.0.1:{server.port}"\n')
    server.start()
    yield server
    server.stop()


@pytest.mark.nats
def test_a_server_without_jetstream_is_told(bare_server: NatsServer) -> None:
    """It answers, and holds no streams."""
    code, found = ask("--nats", bare_server.url)
    assert code == 1 and found["nats"][0] == "fine" and found["jetstream"][0] == "wrong"


@pytest.mark.nats
def test_with_a_controller_the_agents_are_what_is_missing(nats_server: NatsServer, tmp_path: Path) -> None:
    """The leader and its settings are seen; the node of its pods has no agent."""
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "shop.yaml").write_text(SHOP)

    async def scenario() -> None:
        async with controller(nats_server, tmp_path / "manifests", "one") as leader:
            await leader.until_said("published")
            code, found = await asyncio.to_thread(ask, "--nats", nats_server.url)
            states = {check: state for check, (state, _) in found.items()}
            assert code == 1 and states["controller"] == "fine" and states["switch"] == "fine"
            assert states["agents"] == "wrong" and "no agent is heard on" in found["agents"][1]

    run(scenario())


@pytest.mark.kernel
def test_this_machine_is_looked_at(tmp_path: Path) -> None:
    """Root may load programs; a folder on no bpf file system is told from one that is, and one without pins too."""
    assert look_here(str(tmp_path)) == Here("", str(tmp_path), is_bpffs=False, is_pinned=False)
    absent = "/sys/fs/bpf/yett-doctor-absent/x"
    assert look_here(absent) == Here("", absent, is_bpffs=True, is_pinned=False)
