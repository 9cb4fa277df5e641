"""The definitions that are shipped, held against our reader: what the one takes the other takes too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.controller.policy.parse import parse_object
from tests.controller.test_parse import ACCEPTED, REFUSED
from tests.kube.definitions import broken_rules, definition, schema_of
from tests.kube.servers import KubeServer

pytestmark = pytest.mark.kube

Obj = dict[str, Any]
TESTS = Path(__file__).parents[1]
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
KINDS = ("ClusterNetworkPolicy", "ApplicationNetworkPolicy")


def path_of(obj: Obj) -> str:
    place = "" if obj["kind"] == "ClusterNetworkPolicy" else "namespaces/default/"
    plural = "clusternetworkpolicies" if obj["kind"] == "ClusterNetworkPolicy" else "applicationnetworkpolicies"
    return f"/apis/networking.k8s.aws/v1alpha1/{place}{plural}"


def is_of_the_group(obj: Any) -> bool:
    return isinstance(obj, dict) and obj.get("apiVersion") == "networking.k8s.aws/v1alpha1" and obj["kind"] in KINDS


def cases_of_scenarios() -> list[tuple[str, Obj]]:
    text = (TESTS / "scenarios" / "refused_schema_aws.yaml").read_text()
    named = [(scenario["name"], obj) for scenario in yaml.safe_load_all(text) for obj in scenario["objects"]]
    return [(name, obj) for name, obj in named if is_of_the_group(obj)]


SEEDS = [(path.stem, yaml.safe_load(path.read_text())) for path in sorted((TESTS / "seeds").glob("*.yaml"))]
GOOD = [(name, obj) for name, obj in [*SEEDS, *ACCEPTED] if is_of_the_group(obj)]
BAD = cases_of_scenarios() + [(name, obj) for name, obj, _ in REFUSED if is_of_the_group(obj)]


@pytest.fixture(scope="module")
def admitting(shared_kube: KubeServer) -> Iterator[KubeServer]:
    """A server with both definitions."""
    for kind in KINDS:
        shared_kube.admin.create(DEFINITIONS, definition(kind))
    for kind in KINDS:
        shared_kube.until(lambda kind=kind: shared_kube.admin.request("GET", path_of({"kind": kind}))[0] == 200, 20)
    yield shared_kube
    shared_kube.forget_all_but({"default"})


def admit(kube: KubeServer, obj: Obj) -> tuple[int, str]:
    """What the server says, short of storing it; names are lower-cased, as it wants them."""
    name = obj["metadata"]["name"].lower()
    sent = {**obj, "metadata": {"name": name}}
    status, answer = kube.admin.request("POST", f"{path_of(obj)}?dryRun=All", sent)
    return status, str(answer)


@pytest.mark.parametrize("obj", [obj for _, obj in GOOD], ids=[name for name, _ in GOOD])
def test_what_we_read_is_admitted(admitting: KubeServer, obj: Obj) -> None:
    """Every seed of these kinds and every form that the reader accepts, by schema and by expressions."""
    assert not [problem for problem in parse_object(obj)[1] if problem.severity == "error"]
    status, answer = admit(admitting, obj)
    assert status == 201, answer
    assert broken_rules(schema_of(obj["kind"]), obj) == []


OURS_ALONE = ("unknown field", "is given twice")
"""What these schemas do not say: fields that they do not know (kept, so that we can refuse them), and a member given
twice in a list whose items have two forms."""


@pytest.mark.parametrize("obj", [obj for _, obj in BAD], ids=[name for name, _ in BAD])
def test_what_we_refuse_is_not_admitted(admitting: KubeServer, obj: Obj) -> None:
    """Each refused object is refused by the schema or by an expression, but where only the reader can tell."""
    errors = [problem.message for problem in parse_object(obj)[1] if problem.severity == "error"]
    assert errors
    status, answer = admit(admitting, obj)
    assert status in (201, 422), answer
    is_refused = status == 422 or bool(broken_rules(schema_of(obj["kind"]), obj))
    assert is_refused or all(any(words in error for words in OURS_ALONE) for error in errors), errors


def test_nothing_is_pruned(admitting: KubeServer) -> None:
    """A misspelt field and the wrapped selector of a seed are stored as written: what a person meant reaches us."""
    spec = {
        "tier": "Admin",
        "priority": 1,
        "subject": {"namespaces": {"namespaceSelector": {"matchLabels": {"a": "b"}}}},
        "egress": [{"action": "Deny", "to": [{"networks": [{"cidr": "10.0.0.0/8"}, "fd00::/8"]}], "portz": []}],
    }
    obj = {"apiVersion": "networking.k8s.aws/v1alpha1", "kind": KINDS[0], "metadata": {"name": "kept"}, "spec": spec}
    assert admitting.admin.create(path_of(obj), obj)["spec"] == spec
    [problem] = [problem for problem in parse_object(obj)[1] if problem.severity == "error"]
    assert problem.path == "spec.egress[0].portz"


def test_kubectl_lists_them_by_their_short_names(admitting: KubeServer) -> None:
    """With tier, priority and the two conditions, of an object that has been judged."""
    obj = {"apiVersion": "networking.k8s.aws/v1alpha1", "kind": KINDS[0], "metadata": {"name": "listed"}}
    spec = {"tier": "Baseline", "priority": 7, "subject": {"namespaces": {}}}
    admitting.admin.create(path_of(obj), {**obj, "spec": spec})
    conditions = [
        {"type": kind, "status": status, "reason": "Test", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        for kind, status in (("Accepted", "True"), ("Programmed", "False"))
    ]
    admitting.admin.call(
        "PATCH",
        f"{path_of(obj)}/listed/status",
        {"status": {"conditions": conditions}},
        content_type="application/merge-patch+json",
    )
    head, row = admitting.kubectl("get", "cnp", "listed").stdout.splitlines()
    assert head.split() == ["NAME", "TIER", "PRIORITY", "ACCEPTED", "PROGRAMMED", "AGE"]
    assert row.split()[:-1] == ["listed", "Baseline", "7", "True", "False"]
    assert admitting.kubectl("get", "anp", "-A").returncode == 0
