"""What the kernel engine must get right besides the suites: names in time, sets of backends, nodes, cleaning up."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schemas.terms import Direction, NodeName
from schemas.wire import subject_address
from services.controller.policy.model import Finding, Pod
from services.scenario import kernel_engine
from services.scenario.evaluate_engine import EvaluateEngine
from services.scenario.kernel_engine import KernelEngine, KernelUnavailable, open_kernel
from services.scenario.model import Scenario
from services.scenario.replay import ReplayError, follow, publish
from services.scenario.result import ScenarioResult
from services.scenario.route import Crossing
from services.scenario.run import Engine, run_scenario
from services.scenario.world import Cluster, assemble_cluster, build_cluster
from tests import builders as k8s
from tests.scenario.build import DB, address, name, pod, probe, scenario, service
from tests.strategies import AT, Scene, seeded_scene

SEEDS = 25
NAMED = k8s.application_policy(
    "named", {"policyTypes": ["Egress"], "egress": [{"to": [{"domainNames": ["x.com"]}], "ports": [{"port": 443}]}]}
)


def run(made: Scenario, engine: Engine) -> ScenarioResult:
    return run_scenario(made, [("", obj) for obj in made.objects], engine)


def both(made: Scenario, kernel: KernelEngine) -> list[tuple[Finding | None, Finding | None]]:
    """The findings of the kernel, which must be those of the oracle."""
    said = [(each.egress, each.ingress) for each in run(made, kernel).probes]
    assert said == [(each.egress, each.ingress) for each in run(made, EvaluateEngine()).probes]
    return said


def ask_names(*moments: float) -> Scenario:
    told = [{"name": "x.com", "addresses": ["192.0.2.1"], "ttl": 30, "at": 100}]
    asked = [probe(pod("app/web"), name("x.com"), 443, at=at) for at in moments]
    return scenario(NAMED, probes=asked, resolutions=told)


@pytest.mark.kernel
def test_names_live_and_end_to_the_second(kernel: KernelEngine) -> None:
    """Not before they are told, until TTL and grace are over, and not one second more."""
    said = both(ask_names(99, 100, 189, 189.5, 190, 5000), kernel)
    assert [found.verdict.name for found, _ in said if found] == ["DENY", "ALLOW", "ALLOW", "ALLOW", "DENY", "DENY"]


@pytest.mark.kernel
def test_policies_are_asked_whatever_the_switch_says(kernel: KernelEngine) -> None:
    """``enforce: "false"`` is of the running cluster; what a policy says is the same."""
    asked = [probe(pod("app/web"), address("192.0.2.9"), 443)]
    shut = scenario(NAMED, probes=asked, config={"enforce": "false"})
    assert [found.verdict.name for found, _ in both(shut, kernel) if found] == ["DENY"]


@pytest.mark.kernel
def test_of_several_backends_the_rule_judged_first_is_told(kernel: KernelEngine) -> None:
    """Whichever of them the set lists first."""
    pods = [k8s.pod(f"app/b{n}", f"10.0.2.{n}", kind="backend", number=str(n)) for n in (1, 2)]
    front = k8s.service("app/svc", "10.96.0.1", {"port": 80}, selector={"kind": "backend"})
    for order in ("12", "21"):
        rules = [{"to": [{"podSelector": {"matchLabels": {"number": number}}}]} for number in order]
        allow = k8s.network_policy("out", {"policyTypes": ["Egress"], "egress": rules})
        ((egress, _),) = both(scenario(allow, front, *pods, probes=[probe(pod("app/web"), service("app/svc"))]), kernel)
        assert egress is not None and egress.policy is not None and egress.policy.rule == "egress[0]"


@pytest.mark.kernel
def test_every_protocol_and_family_can_be_sent(kernel: KernelEngine) -> None:
    """Pairs without ports, and the same question twice, are new flows every time."""
    six = [k8s.pod("app/six", "fd00::6", app="six")]
    asked = [
        probe(pod("app/web"), target, port, protocol=protocol)
        for target in (pod("data/db"), pod("app/six"), address("192.0.2.1"))
        for protocol, port in (("TCP", 80), ("UDP", 53), ("SCTP", 80), ("ICMP", None), ("ICMPv6", None), (47, None))
    ]
    deny = k8s.network_policy("in", {"policyTypes": ["Ingress"]}, namespace="data")
    said = both(scenario(*six, deny, probes=asked + asked), kernel)
    assert all(egress is not None for egress, _ in said) and said[: len(asked)] == said[len(asked) :]


def cluster_of(scene: Scene) -> tuple[Cluster, list[Crossing]]:
    cluster = assemble_cluster([("", obj) for obj in scene.cluster + scene.policies], answers=scene.answers)
    crossings = []
    for packet in scene.packets:
        for direction, own in ((Direction.EGRESS, packet.source), (Direction.INGRESS, packet.destination)):
            owner = cluster.oracle.owner_of(own)
            if isinstance(owner, Pod):
                crossings.append(Crossing(owner, direction, packet, AT))
    return cluster, crossings


@pytest.mark.kernel
def test_the_kernel_is_the_oracle_on_random_clusters(kernel: KernelEngine) -> None:
    """Policies of every kind, names, Services, two nodes: one cluster after another through the same maps.

    Where an address has two names that one rule admits, or a prefix admits it too, either name is a true story.
    """
    for seed in range(SEEDS):
        cluster, crossings = cluster_of(seeded_scene(seed))
        expected = EvaluateEngine().judge(cluster, crossings)
        for crossing, said, wanted in zip(crossings, kernel.judge(cluster, crossings), expected, strict=True):
            assert replace(said, name="") == replace(wanted, name=""), (seed, crossing)


@pytest.mark.kernel
def test_nothing_stays_pinned(kernel: KernelEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither after Ctrl-C, nor of a run whose process is gone; a run that lives is left alone."""
    own = kernel_engine.BPFFS / f"{kernel_engine.PIN_PREFIX}{os.getpid()}"
    dead = kernel_engine.BPFFS / f"{kernel_engine.PIN_PREFIX}4194304999"
    dead.mkdir()
    assert own.is_dir()
    monkeypatch.setattr(kernel_engine, "PIN_PREFIX", "yett-scenario-again-")
    monkeypatch.setattr(kernel_engine, "KernelEngine", _interrupted)
    with pytest.raises(KeyboardInterrupt), open_kernel():
        raise AssertionError("never entered")
    assert not list(kernel_engine.BPFFS.glob("yett-scenario-again-*"))
    monkeypatch.undo()
    kernel_engine.remove_stale()
    assert own.is_dir() and not dead.exists()


def _interrupted(pins: Path) -> Any:
    (pins / "layout").mkdir(parents=True)
    raise KeyboardInterrupt


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """In words, before anything is made."""
    monkeypatch.setattr(kernel_engine.os, "geteuid", lambda: 1000)
    with pytest.raises(KernelUnavailable, match="needs root"), open_kernel():
        raise AssertionError("never entered")


def test_an_agent_believes_what_is_published() -> None:
    """Rows, digests and revision as on the bus; a row that is lost proves nothing."""
    made = scenario(NAMED)
    cluster = build_cluster(made, [("", obj) for obj in made.objects])
    messages = publish(cluster.state.rows())
    state = follow(messages, NodeName("node-a"))
    assert sorted(state.endpoints) == [("app", "api"), ("app", "web")]
    with pytest.raises(ReplayError, match="node node-a proves no state"):
        follow([each for each in messages if each.subject != subject_address(DB)], NodeName("node-a"))


@pytest.mark.kernel
def test_of_several_names_of_a_rule_some_one_is_told(kernel: KernelEngine) -> None:
    """Names are the story, not the verdict: which of those that share an address is told, is free (D44)."""
    told = [{"name": f"{letter}.x.com", "addresses": ["192.0.2.1"]} for letter in "zbac"]
    to = [{"domainNames": ["z.x.com", "a.x.com"]}, {"domainNames": ["*.x.com"]}]
    names = k8s.application_policy("names", {"policyTypes": ["Egress"], "egress": [{"to": to}]})
    made = scenario(names, resolutions=told, probes=[probe(pod("app/web"), address("192.0.2.1"))])
    (mine,), (theirs,) = run(made, kernel).probes, run(made, EvaluateEngine()).probes
    assert mine.egress is not None and theirs.egress is not None
    assert replace(mine.egress, name="") == replace(theirs.egress, name="")
    assert {mine.egress.name, theirs.egress.name} <= {each["name"] for each in told}
