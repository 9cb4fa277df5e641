"""``yett check``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from services.scenario.lint import LINTS
from tests import builders as k8s
from tests.cli.golden import FOLDER, compare, yett


def test_golden_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with its file and the path of the rule."""
    result = yett(monkeypatch, "check", "cluster.yaml", "lint")
    assert result.exit_code == 1
    compare("check", result.stdout)


def test_every_lint_is_in_the_golden_text() -> None:
    """Or nobody would see it break."""
    said = {line.split()[0] for line in (FOLDER / "check.txt").read_text().splitlines()}
    assert said >= LINTS.keys()


def test_json_has_findings_and_problems_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A refusal is told with its severity."""
    bad = tmp_path / "bad.yaml"
    bad.write_text("{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: x}, spec: {pods: {}}}")
    told = json.loads(yett(monkeypatch, "check", "cluster.yaml", "lint", str(bad), "-o", "json").stdout)
    assert [(each["severity"], each["path"]) for each in told["problems"]] == [
        ("error", "spec.pods"),
        ("warning", "spec"),
    ]
    assert {each["lint"] for each in told["findings"]} == LINTS.keys()


def test_what_is_under_audit_stands_before_nothing_that_is_enforced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It shadows no rule of an enforced policy and wins over none, and is shadowed like any other."""

    def lints(*audited: str) -> list[tuple[str, str]]:
        rule = {"action": "Deny", "from": [{"namespaces": {}}]}
        objects = []
        for place, (name, action) in enumerate(
            (("one", "Deny"), ("two", "Deny"), ("open", "Accept"), ("last", "Deny"))
        ):
            spec = {"tier": "Admin", "priority": place + 1, "subject": {"namespaces": {}}}
            direction = "ingress" if name in ("one", "two") else "egress"
            end = {"action": action, "to": rule["from"]} if direction == "egress" else {**rule, "action": action}
            metadata = {"name": name, "annotations": {"yett.dev/mode": "audit"} if name in audited else {}}
            kind = {"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy"}
            objects.append({**kind, "metadata": metadata, "spec": {**spec, direction: [end]}})
        (tmp_path / "p.yaml").write_text(yaml.safe_dump_all(objects))
        found = json.loads(yett(monkeypatch, "check", str(tmp_path), "-o", "json").stdout)["findings"]
        order = ("shadowed", "deny-first")
        return [(each["lint"], each["object"].split()[-1]) for each in found if each["lint"] in order]

    shut, won = ("shadowed", "two"), ("deny-first", "open")
    assert set(lints()) == {shut, won, ("shadowed", "last")}
    assert set(lints("one", "open")) == set()
    assert set(lints("one", "two", "open", "last")) == {shut, won, ("shadowed", "last")}
    assert set(lints("two", "last")) == {shut, won, ("shadowed", "last")}


def test_what_is_fine_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 0 without a finding."""
    result = yett(monkeypatch, "check", "cluster.yaml")
    assert (result.exit_code, result.stdout) == (0, "nothing to look at\n")


def test_a_missing_folder_is_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 2."""
    assert yett(monkeypatch, "check", "none").exit_code == 2


@pytest.mark.parametrize(
    ("asked", "is_strange"), [("10.96.0.10", False), ("10.0.0.9", False), ("169.254.20.10", False), ("8.8.8.8", True)]
)
def test_cluster_dns_is_no_strange_resolver_beside_those_that_are_listed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: str, is_strange: bool
) -> None:
    """A pod may be told to ask the DNS Service, a pod behind it, or what is listed; anybody else teaches nothing."""
    port = {"port": 53, "protocol": "UDP", "targetPort": 5353}
    pod = k8s.pod("app/web", "10.0.0.5")
    pod["spec"] |= {"dnsPolicy": "None", "dnsConfig": {"nameservers": [asked]}}
    objects = [
        k8s.settings(resolvers="169.254.20.10"),
        k8s.service("kube-system/kube-dns", "10.96.0.10", port, selector={"app": "dns"}),
        k8s.pod("kube-system/coredns", "10.0.0.9", app="dns"),
        pod,
        k8s.application_policy("fqdn", {"policyTypes": ["Egress"], "egress": [{"to": [{"domainNames": ["x.com"]}]}]}),
    ]
    (tmp_path / "p.yaml").write_text(yaml.safe_dump_all(objects))
    found = json.loads(yett(monkeypatch, "check", str(tmp_path), "-o", "json").stdout)["findings"]
    assert ("own-resolver" in {each["lint"] for each in found}) == is_strange
