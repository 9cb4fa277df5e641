"""Two roads to one answer: the oracle reads policies, the interpreter reads the rows compiled from them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.terms import Direction, Reason, Tier, Verdict
from services.controller.policy.evaluate import Oracle
from services.controller.policy.model import Finding, Packet, Pod
from services.controller.world import State
from services.scenario.rows import Rows
from tests.controller.interpreter import judge
from tests.strategies import AT, RandomDice, Scene, make_cluster_policy, scenes, seeded_scene

SEEDS = 400
NOTHING: frozenset[Direction] = frozenset()
QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def state_of(objects: list[dict[str, Any]]) -> State:
    state = State()
    for obj in objects:
        problems = [problem for problem in state.upsert(obj) if problem.severity == "error"]
        assert not problems, problems
    return state


def questions(oracle: Oracle, packets: list[Packet]) -> Iterator[tuple[Packet, Direction, Pod]]:
    """Every packet as each of its pods sees it."""
    for packet in packets:
        for direction, own in ((Direction.EGRESS, packet.source), (Direction.INGRESS, packet.destination)):
            pod = oracle.owner_of(own)
            if isinstance(pod, Pod):
                yield packet, direction, pod


def compare(scene: Scene) -> Counter[object]:
    """Ask both; -> what was concluded, counted."""
    state = state_of(scene.cluster + scene.policies)
    tables = Rows.read(state.rows())
    oracle = Oracle(state.policies, state.world, scene.answers)
    seen: Counter[object] = Counter()
    for packet, direction, pod in questions(oracle, scene.packets):
        expected = oracle.evaluate(packet, direction=direction, pod=pod, at=AT)
        found = judge(
            tables,
            packet,
            direction=direction,
            endpoint=tables.endpoints[pod.key],
            answers=scene.answers,
            at=AT,
        )
        assert found == expected, (packet, direction, pod.key)
        seen.update((expected.reason, expected.tier, bool(expected.name)))
    return seen


@settings(QUICK, max_examples=100)
@given(scenes())
def test_rows_say_what_policies_say(scene: Scene) -> None:
    """Compiled rulesets, read by an interpreter of rows, reach the oracle's verdict with its rule, tier and reason."""
    compare(scene)


def test_rows_say_what_policies_say_at_volume() -> None:
    """The same for hundreds of seeded clusters, in which every reason, every tier and names are met."""
    seen: Counter[object] = Counter()
    for seed in range(SEEDS):
        try:
            seen += compare(seeded_scene(seed))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    reasons = {Reason.RULE, Reason.ISOLATED, Reason.DEFAULT, Reason.DNS_IMPLICIT, Reason.OWN_NODE, Reason.HAIRPIN}
    reasons |= {Reason.NAME_EXPIRED, Reason.NO_BACKEND, Reason.MIXED_BACKENDS, Reason.UNKNOWN_POD}
    missed = (reasons | set(Tier) | {True}) - seen.keys()
    assert not missed, f"the generator never met {missed}"


@settings(QUICK, max_examples=100)
@given(scenes(), st.randoms(use_true_random=False))
def test_order_of_policies_never_matters(scene: Scene, order: random.Random) -> None:
    """Neither evaluation nor rows depend on the order in which policies arrive."""
    policies = _distinct(scene.policies)
    shuffled = list(policies)
    order.shuffle(shuffled)
    first, second = state_of(scene.cluster + policies), state_of(scene.cluster + shuffled)
    assert _without_numbers(first.rows()) == _without_numbers(second.rows())
    one, other = (Oracle(state.policies, state.world, scene.answers) for state in (first, second))
    for packet, direction, pod in questions(one, scene.packets):
        assert _ask(one, packet, direction, pod) == _ask(other, packet, direction, pod)


@settings(QUICK, max_examples=100)
@given(scenes(), st.integers(0, 1 << 32))
def test_a_deny_never_admits_more(scene: Scene, seed: int) -> None:
    """Whatever Deny rules are added, no packet that was denied passes."""
    extra = make_cluster_policy(RandomDice(random.Random(seed)), "extra", only_deny=True)
    policies = [each for each in _distinct(scene.policies) if _name(each) != _name(extra)]
    before, after = state_of(scene.cluster + policies), state_of([*scene.cluster, *policies, extra])
    first = Oracle(before.policies, before.world, scene.answers)
    second = Oracle(after.policies, after.world, scene.answers)
    for packet, direction, pod in questions(first, scene.packets):
        if _ask(first, packet, direction, pod).verdict is Verdict.DENY:
            assert _ask(second, packet, direction, pod).verdict is Verdict.DENY


@settings(QUICK, max_examples=100)
@given(scenes())
def test_audit_tells_what_enforcing_would_deny_and_moves_no_packet(scene: Scene) -> None:
    """Denied is what is denied without the policies under audit; audit is what passes and would not if all were in
    force and a default of audit were one of deny."""
    state = state_of(scene.cluster + scene.policies)
    policies, world = state.policies, state.world
    asked = Oracle(policies, world, scene.answers)
    without = [replace(each, egress=(), ingress=(), isolates=NOTHING) if each.is_audited else each for each in policies]
    enforced = Oracle([replace(each, is_audited=False) for each in without], world, scene.answers)
    full = Oracle([replace(each, is_audited=False) for each in policies], world, scene.answers)
    for packet, direction, pod in questions(asked, scene.packets):
        found = _ask(asked, packet, direction, pod).verdict
        passes = _ask(enforced, packet, direction, pod).verdict is not Verdict.DENY
        is_clean = _ask(full, packet, direction, pod).verdict is Verdict.ALLOW
        assert found is ((Verdict.ALLOW if is_clean else Verdict.AUDIT) if passes else Verdict.DENY)


def _ask(oracle: Oracle, packet: Packet, direction: Direction, pod: Pod) -> Finding:
    return oracle.evaluate(packet, direction=direction, pod=pod, at=AT)


def _name(obj: dict[str, Any]) -> tuple[str, str, str, str]:
    metadata = obj["metadata"]
    return obj["apiVersion"], obj["kind"], metadata.get("namespace", ""), metadata["name"]


def _distinct(policies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One version of every object: of two, the order decides which is the present one."""
    return list({_name(each): each for each in policies}.values())


def _without_numbers(rows: dict[str, bytes]) -> dict[str, bytes]:
    """Rows whose content does not hold identity numbers: those depend on the order of allocation."""
    numbered = ("yett.policy.identity.", "yett.policy.address.", "yett.policy.endpoint.", "yett.policy.frontend.")
    return {subject: body for subject, body in rows.items() if not subject.startswith(numbered)}
