"""Each row of what users have today that is about the meaning of policies is a scenario of its own, by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

TESTS = Path(__file__).parents[1]
SCENARIOS = {
    "domain rules on any node, not only managed ones": "anchor: a policy of domains only",
    "a pod reaches a domain because a neighbour resolved it": "anchor: a neighbour resolved it",
    "24 port entries per CIDR": "anchor: no cap on ports per CIDR",
    "one policy set per pod-name stem": "anchor: policies do not bleed between pods of one stem",
    "except overrides wider allows of other policies": "anchor: except does not override another policy",
    "an egress-only NetworkPolicy switches off a Baseline ingress Deny": "anchor: Baseline direction by direction",
    "all ports and TCP/80 on one CIDR merge": "anchor: two rules on one CIDR",
    "IPv4 or IPv6, never both": "anchor: both families at once",
    "ICMP dropped": "anchor: ICMP follows the rules",
    "default-allow after pod start": "anchor: a policy that is older than its pod",
}
"""Row -> scenario of ``anchors.yaml``."""
TESTED = {
    "live flows survive a removed allow": ("bpf/test_flows.py", "test_a_policy_change_cuts_live_flows"),
    "endpoints arrive in shards, one by one": (
        "nodeagent/test_plan.py",
        "test_every_prefix_of_a_policy_edit_is_old_or_new",
    ),
    "a replay is applied before it is whole": (
        "bus/test_replays.py",
        "test_no_replay_applies_a_state_that_never_existed",
    ),
    "pods are open for 1-2 s after their start": (
        "e2e/test_strict.py",
        "test_200_pods_that_send_from_before_their_link_is_up_leak_nothing",
    ),
    "related ICMP errors are dropped": ("bpf/test_flows.py", "test_an_error_about_a_live_flow_passes"),
}
"""Row -> (file, test) that shows what no single new flow can."""
CYCLONUS = ("conflict", "port", "peers", "targets", "rules")
"""Kinds of its 112 cases, of which the managed service tolerates 14 failures."""


def names_of(suite: str) -> list[str]:
    text = (TESTS / "scenarios" / suite).read_text()
    return [document["name"] for document in yaml.safe_load_all(text)]


def test_every_semantic_row_is_a_scenario_by_name() -> None:
    """None is missing, and none stands there that no row asked for."""
    assert sorted(names_of("anchors.yaml")) == sorted(SCENARIOS.values())


@pytest.mark.parametrize(("file", "test"), TESTED.values(), ids=TESTED)
def test_what_is_about_time_is_tested_where_time_passes(file: str, test: str) -> None:
    """A scenario asks for one new flow; changes, replays and starts have tests of their own, by these names."""
    assert f"def {test}(" in (TESTS / file).read_text()


@pytest.mark.parametrize("kind", CYCLONUS)
def test_every_kind_of_cyclonus_case_is_there(kind: str) -> None:
    """By name; none is tolerated to fail."""
    assert any(kind in name for name in names_of("cyclonus.yaml"))
