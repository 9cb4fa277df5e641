"""Verdicts against expectations, and their forms."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from schemas.policy import RuleSource
from schemas.status import Problem
from schemas.terms import Reason, Tier, Verdict
from services.controller.policy.model import Finding
from services.scenario.evaluate_engine import EvaluateEngine
from services.scenario.model import End, Probe, ScenarioError
from services.scenario.result import (
    ScenarioResult,
    conclude_probe,
    conclude_scenario,
    describe_failures,
    make_junit,
    scenario_to_json,
)
from services.scenario.run import run_scenario
from tests import builders as k8s
from tests.scenario.build import pod, probe, scenario

RULE = RuleSource(kind="NetworkPolicy", namespace="app", name="p", rule="egress[0]")
ALLOW = Finding(Verdict.ALLOW, Tier.NETWORK_POLICY, Reason.RULE, RULE)
DENY = Finding(Verdict.DENY, Tier.DEFAULT, Reason.DEFAULT)
AUDIT = Finding(Verdict.AUDIT, Tier.DEFAULT, Reason.DEFAULT)
PROBE = Probe("p", End(pod=("app", "web")), End(address="192.0.2.1"))
BAD = k8s.network_policy("bad", {"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]}]})


def run(*objects: Any, **fields: Any) -> ScenarioResult:
    made = scenario(*objects, **fields)
    return run_scenario(made, [(f"objects[{n}]", obj) for n, obj in enumerate(made.objects)], EvaluateEngine())


@pytest.mark.parametrize(
    ("egress", "ingress", "verdict"),
    [
        ([ALLOW], [ALLOW], Verdict.ALLOW),
        ([ALLOW], [DENY], Verdict.DENY),
        ([DENY], [ALLOW], Verdict.DENY),
        ([ALLOW, DENY], [], Verdict.DENY),
        ([ALLOW], [ALLOW, AUDIT], Verdict.AUDIT),
        ([], [], Verdict.ALLOW),
    ],
)
def test_a_flow_is_allowed_if_every_crossing_is(egress: Any, ingress: Any, verdict: Verdict) -> None:
    """Where nothing is a pod nobody objects."""
    assert conclude_probe(PROBE, egress, ingress).verdict is verdict


def test_the_crossing_that_matters_is_told() -> None:
    """Of several addresses or backends the one that denies."""
    assert conclude_probe(PROBE, [ALLOW, DENY], []).egress == DENY


@pytest.mark.parametrize(
    ("expect", "finding", "ok"),
    [
        (None, DENY, True),
        (Verdict.ALLOW, ALLOW, True),
        (Verdict.ALLOW, DENY, False),
        (Verdict.ALLOW, AUDIT, True),
        (Verdict.DENY, AUDIT, False),
    ],
)
def test_what_is_as_expected(expect: Verdict | None, finding: Finding, ok: bool) -> None:
    """A flow under audit passes, so it is an allowed one."""
    asked = Probe("p", PROBE.source, PROBE.destination, expect=expect)
    assert conclude_probe(asked, [finding], []).is_ok is ok


@pytest.mark.parametrize(
    ("announced", "ok"),
    [
        ([], False),
        (["spec.egress[0].to[0].ipBlock.cidr"], True),
        (["spec.egress[0]"], True),
        (["spec.egress"], True),
        (["spec.egress[0].t"], False),
        (["spec.egress[1]"], False),
        (["spec.egress[0]", "spec.ingress"], False),
    ],
)
def test_problems_are_announced_by_path(announced: list[str], ok: bool) -> None:
    """A path stands for what is wrong there and below; one nobody announced fails, one that did not come too."""
    assert run(BAD, expect_problems=announced).is_ok is ok


def test_the_rest_of_the_cluster_is_judged_beside_a_refused_object() -> None:
    """And the pods that it selects are isolated until it can be read."""
    result = run(BAD, probes=[probe(pod("app/web"), pod("data/db")), probe(pod("data/db"), pod("data/db"))])
    assert [(each.verdict, each.egress.reason) for each in result.probes if each.egress] == [
        (Verdict.DENY, Reason.ISOLATED),
        (Verdict.ALLOW, Reason.HAIRPIN),
    ]


def test_a_warning_is_no_problem() -> None:
    """Spellings that are normalised are told apart from refusals."""
    warned = k8s.network_policy("w", {"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.1/8"}}]}]})
    result = run(warned)
    assert (result.is_ok, result.problems, len(result.warnings)) == (True, (), 1)


def test_json_tells_everything() -> None:
    """One object a scenario, with what decided on both sides."""
    allow = k8s.network_policy("out", {"policyTypes": ["Egress"], "egress": [{"ports": [{"port": 80}]}]})
    asked = probe(pod("app/web"), pod("data/db"), id="x", expect="deny")
    assert scenario_to_json(run(allow, probes=[asked])) == {
        "name": "test",
        "ok": False,
        "problems": [],
        "probes": [
            {
                "id": "x",
                "verdict": "allow",
                "egress": {
                    "verdict": "allow",
                    "tier": "network_policy",
                    "policy": "NetworkPolicy app/out",
                    "rule": "egress[0]",
                    "reason": "rule",
                },
                "ingress": {"verdict": "allow", "tier": "default", "policy": "", "rule": "", "reason": "default"},
                "expect": "deny",
                "ok": False,
            }
        ],
    }


def test_a_refused_object_is_told_with_object_path_and_message() -> None:
    """As ``problems`` in the JSON."""
    (told,) = scenario_to_json(run(BAD))["problems"]
    assert (told["object"], told["path"]) == ("NetworkPolicy app/bad", "spec.egress[0].to[0].ipBlock.cidr")
    assert "10.0.0.0/33" in told["message"]


def test_an_impossible_probe_is_no_success() -> None:
    """Even without an expectation."""
    result = run(probes=[probe(pod("app/none"), pod("data/db"))])
    assert not result.is_ok and "there is no pod app/none" in describe_failures(result)[0]


def test_junit_has_a_case_a_probe_and_says_why_it_failed() -> None:
    """Counts are those of the cases; unusable scenarios are errors."""
    made = scenario(probes=[probe(pod("app/web"), pod("data/db"), id="x", expect="deny")])
    problem = Problem(object="NetworkPolicy app/bad", path="spec", message="no <good>")
    result = conclude_scenario(made, run_scenario(made, [], EvaluateEngine()).probes, [problem])
    root = ElementTree.fromstring(
        make_junit([result], [ScenarioError("", ["line 1: not YAML"], file="bad.yaml")]).partition("\n")[2]
    )
    first, second = root.findall("testsuite")
    assert (first.get("tests"), first.get("failures"), first.get("errors")) == ("2", "1", "1")
    assert [case.get("name") for case in first] == ["problems", "x: app/web -> data/db"]
    assert first[0][0].get("message") == "problem: NetworkPolicy app/bad: spec: no <good>"
    assert second[0][0].get("message") == "line 1: not YAML"


def test_junit_is_xml_whatever_a_name_holds() -> None:
    """Control characters, which XML cannot carry, are replaced; markup is escaped."""
    probes = [
        {"id": "x\0", "from": {"address": "192.0.2.1"}, "to": {"address": "192.0.2.2"}, "port": 1, "expect": "deny"}
    ]
    result = run(name="a\x01<b>\x1b", probes=probes)
    unusable = ScenarioError("c\x02", ["because\x03"])
    root = ElementTree.fromstring(make_junit([result], [unusable]))
    names = [suite.get("name") for suite in root]
    assert names == ["a\ufffd<b>\ufffd", "c\ufffd"]
    assert [case.get("name", "")[:2] for case in root.iter("testcase")] == ["pr", "x\ufffd", "us"]
