"""Full tiers by events: whatever came, changed and went before, what fits is decided by the policies that are there."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import wire
from schemas.policy import EndpointRow, Ruleset
from services.controller.policy.parse import identify
from services.controller.world import State
from tests import builders as k8s

Obj = dict[str, Any]
CLUSTER = [k8s.namespace("app"), k8s.node("node-a", "192.168.0.1"), k8s.pod("app/web", "10.0.0.1", app="web")]
DAYS = tuple(f"2026-01-0{day}T00:00:00Z" for day in (1, 2, 3))


def make_tenant(roll: random.Random, name: str) -> Obj:
    """Up to 150 rules, some of them another policy's too."""
    first, count = roll.choice((1, 101, 1000, 2000)), roll.choice((1, 100, 150))
    rules = [{"ports": [{"port": port}]} for port in range(first, first + count)]
    spec = {"policyTypes": ["Egress"], "egress": rules}
    return k8s.network_policy(name, spec, creationTimestamp=roll.choice(DAYS))


def make_admin(roll: random.Random, name: str) -> Obj:
    tier = roll.choice(("Admin", "Baseline"))
    first = roll.choice((1, 13, 100, 200))
    rules = [
        {"action": "Deny", "to": [{"namespaces": {}}], "protocols": [{"tcp": {"destinationPort": {"number": port}}}]}
        for port in range(first, first + roll.choice((1, 24)))
    ]
    subject = {"namespaces": roll.choice(({}, {"matchLabels": {"none": "none"}}))}
    spec = {"tier": tier, "priority": roll.choice((0, 10)), "subject": subject, "egress": rules}
    return k8s.cluster_policy(name, spec, creationTimestamp=roll.choice(DAYS))


def put_under_audit(roll: random.Random, obj: Obj) -> Obj:
    """One in three."""
    if roll.random() < 1 / 3:
        obj["metadata"]["annotations"] = {"yett.dev/mode": "audit"}
    return obj


def story_of(state: State) -> tuple[Ruleset, Ruleset | None, list[str]]:
    """The egress ruleset of the pod, its shadow, and every complaint."""
    rows = {subject: wire.decode(subject, body) for subject, body in state.rows().items()}
    (endpoint,) = [row for row in rows.values() if isinstance(row, EndpointRow)]
    found = [rows[wire.subject_ruleset(each)] for each in (endpoint.egress, endpoint.egress_shadow) if each]
    rulesets = [each for each in found if isinstance(each, Ruleset)]
    complaints = sorted(f"{each.object}: {each.message}" for each in state.problems())
    return rulesets[0], rulesets[1] if len(rulesets) > 1 else None, complaints


def state_of(objects: list[Obj]) -> State:
    state = State()
    for obj in objects:
        assert not [each for each in state.upsert(obj) if each.severity == "error"]
    return state


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 32))
def test_a_full_tier_is_the_same_after_any_history(seed: int) -> None:
    """Policies come, change and go, rows are asked for in between; then a cold start in another order agrees."""
    roll = random.Random(seed)
    state = state_of(CLUSTER)
    present: dict[object, Obj] = {}
    for _ in range(24):
        name = f"p{roll.randrange(14)}"
        obj = put_under_audit(roll, make_tenant(roll, name) if roll.random() < 0.4 else make_admin(roll, name))
        key = identify(obj)
        assert key is not None
        if key in present and roll.random() < 0.4:
            state.delete(*key)
            del present[key]
        else:
            assert not [each for each in state.upsert(obj) if each.severity == "error"]
            present[key] = obj
        if roll.random() < 0.5:
            state.changes()
    shuffled = roll.sample([*CLUSTER, *present.values()], len(CLUSTER) + len(present))
    assert story_of(state) == story_of(state_of(shuffled))


def test_such_histories_fill_the_tiers() -> None:
    """Or the test above would say nothing: policies are left out of one tier and refused in the others."""
    complaints, has_shadow = set(), False
    for seed in range(12):
        roll = random.Random(seed)
        objects = [make_tenant(roll, f"t{n}") for n in range(5)] + [make_admin(roll, f"c{n}") for n in range(30)]
        _, shadow, found = story_of(state_of(CLUSTER + [put_under_audit(roll, each) for each in objects]))
        complaints |= {each.split(" rules of the ")[1].split(":")[0] for each in found}
        has_shadow |= shadow is not None
    assert has_shadow and complaints >= {"NETWORK_POLICY tier", "BASELINE tier"}, complaints
