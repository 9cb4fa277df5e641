"""``yett explain``."""

from __future__ import annotations

import json

import pytest

from tests.cli.golden import compare, yett

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
