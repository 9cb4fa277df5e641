"""Policies under audit: read on every kind, remembered, compiled beside what is enforced, and nobody else's affair."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from schemas import wire
from schemas.policy import EndpointRow, Ruleset, SourceRow
from schemas.terms import RULES_ADMIN, RULES_NETWORK_POLICY, Default, Direction, Protocol, RulesetHash, Verdict
from services.controller.kube_kinds import decode_item, kinds_read
from services.controller.policy.evaluate import Oracle
from services.controller.policy.model import Packet, Pod, Policy
from services.controller.policy.parse import parse_isolation, parse_object
from services.controller.world import State
from services.scenario.rows import Rows
from tests import builders as k8s
from tests.controller.interpreter import judge

Obj = dict[str, Any]
MODE = "yett.dev/mode"
WEB, API, OTHER, WORLD = "10.0.0.1", "10.0.0.2", "10.0.1.1", "198.51.100.7"
CLUSTER = (
    k8s.namespace("app"),
    k8s.namespace("db"),
    k8s.node("node-a", "192.168.0.1"),
    k8s.pod("app/web", WEB, app="web"),
    k8s.pod("app/api", API, app="api"),
    k8s.pod("db/main", OTHER, app="db"),
)
PODS_OF_APP = (WEB, API)
DENY_WORLD = {"egress": [{"action": "Deny", "to": [{"networks": ["0.0.0.0/0"]}]}]}
EVERY_KIND = (
    k8s.network_policy("p", {"policyTypes": ["Egress"]}),
    k8s.application_policy("p", {"policyTypes": ["Egress"]}),
    k8s.aws_cluster_policy("p", DENY_WORLD),
    k8s.cluster_policy("p", DENY_WORLD),
    k8s.admin_policy("p", DENY_WORLD),
    k8s.baseline_policy(DENY_WORLD),
)
by_kind = pytest.mark.parametrize("obj", EVERY_KIND, ids=lambda obj: f"{obj['apiVersion']} {obj['kind']}")


def under(obj: Obj, mode: Any = "audit") -> Obj:
    """The same object with the annotation."""
    return {**obj, "metadata": {**obj["metadata"], "annotations": {MODE: mode, "another": "one"}}}


def state_of(*objects: Obj) -> State:
    state = State()
    for obj in (*CLUSTER, *objects):
        assert not [each for each in state.upsert(obj) if each.severity == "error"]
    return state


def endpoint(state: State, name: str) -> EndpointRow:
    namespace, _, pod = name.partition("/")
    return Rows.read(state.rows()).endpoints[namespace, pod]


def ruleset(state: State, name: RulesetHash) -> Ruleset:
    return Rows.read(state.rows()).rulesets[name]


# ---------------------------------------------------------------------------------------------------------------------
# The annotation


@by_kind
def test_every_kind_may_be_under_audit(obj: Obj) -> None:
    """``audit`` puts it there; ``enforce``, null and no annotation do not."""
    found = {}
    for mode in ("audit", "enforce", None):
        found[mode], problems = parse_object(under(obj, mode))
        assert problems == []
    found[""], _ = parse_object(obj)
    audited = {mode for mode, policy in found.items() if isinstance(policy, Policy) and policy.is_audited}
    assert audited == {"audit"} and None not in found.values()


@by_kind
@pytest.mark.parametrize("mode", ["Audit", "", "off", True, 1, ["audit"], {}])
def test_another_mode_refuses_the_policy(obj: Obj, mode: Any) -> None:
    """With the annotation's path, and the words that it knows."""
    parsed, (problem,) = parse_object(under(obj, mode))
    assert parsed is None and problem.severity == "error"
    assert problem.path == "metadata.annotations.yett.dev/mode" and "enforce, audit" in problem.message


def test_what_is_left_of_a_refused_policy_is_under_audit_only_if_it_says_so() -> None:
    """A mode that nobody knows shuts."""
    bad = k8s.network_policy("p", {"policyTypes": ["Egress"], "egress": [{"form": []}]})
    modes = {mode: parse_isolation(under(bad, mode)) for mode in ("audit", "enforce", "Audit")}
    assert {mode for mode, policy in modes.items() if policy is not None and policy.is_audited} == {"audit"}
    assert None not in modes.values()


def test_an_unknown_mode_leaves_the_version_that_was_in_force() -> None:
    """A typing error in an edit neither opens nor shuts."""
    state = state_of(under(EVERY_KIND[0]))
    before = state.rows()
    state.upsert(under(EVERY_KIND[0], "audti"))
    assert state.rows() == before and [each.path for each in state.problems()] == [f"metadata.annotations.{MODE}"]


def test_the_mode_is_remembered_with_the_last_good_version() -> None:
    """A controller that starts on a bad version of a policy under audit does not enforce it."""
    good, bad = EVERY_KIND[0], k8s.network_policy("p", {"policyTypes": ["Egress"], "egress": [{"form": []}]})
    for mode, is_audited in (("audit", True), ("enforce", False)):
        rows = state_of(under(good, mode)).rows()
        source = wire.decode(*find_source(rows))
        assert isinstance(source, SourceRow) and source.is_audited is is_audited
        state = State()
        state.restore(rows)
        for obj in (*CLUSTER, bad):
            state.upsert(obj)
        assert [policy.is_audited for policy in state.policies] == [is_audited]
        assert state.rows() == rows


def find_source(rows: dict[str, bytes]) -> tuple[str, bytes]:
    (found,) = [(subject, body) for subject, body in rows.items() if ".source." in subject]
    return found


def test_an_api_servers_object_keeps_the_annotation_and_no_other() -> None:
    """What is read of an object is cut down to what counts; the mode does."""
    kind = next(each for each in kinds_read("yett-system") if each.kind == "NetworkPolicy")
    raw = msgspec.json.encode(
        under({"metadata": {"name": "p", "namespace": "app", "resourceVersion": "1"}, "spec": {}})
    )
    item = decode_item(kind, kind.versions[0], raw)
    assert item is not None and item.obj["metadata"]["annotations"] == {MODE: "audit"}


# ---------------------------------------------------------------------------------------------------------------------
# What is compiled


def test_only_pods_that_it_governs_have_a_shadow_and_only_where_it_speaks() -> None:
    """Enforced is what there was before, to the byte; the pods beside it keep one ruleset a direction."""
    spec = {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"]}
    bare, state = state_of(), state_of(under(k8s.network_policy("p", spec)))
    web, before = endpoint(state, "app/web"), endpoint(bare, "app/web")
    assert (web.egress, web.ingress) == (before.egress, before.ingress)
    assert web.egress_shadow and not web.ingress_shadow
    assert ruleset(state, web.egress_shadow).isolated and not ruleset(state, web.egress).isolated
    for name in ("app/api", "db/main"):
        assert endpoint(state, name) == endpoint(bare, name)


def test_a_policy_under_audit_that_says_nothing_new_makes_no_shadow() -> None:
    """Where both rulesets are the same there is one."""
    nothing = k8s.cluster_policy("p", {"egress": []})
    assert not endpoint(state_of(under(nothing)), "app/web").egress_shadow


def test_the_annotation_moves_the_endpoints_of_its_pods_and_no_fact() -> None:
    """Put under audit, edited, enforced: rulesets and endpoints; and every state is that of a fresh controller."""
    obj = k8s.network_policy("p", {"policyTypes": ["Egress"]})
    state = state_of(obj)
    state.changes()
    for version in (under(obj), under(obj, "enforce"), under(obj), obj):
        state.upsert(version)
        moved = [change.subject.split(".")[2] for change in state.changes()]
        assert set(moved) <= {"source", "ruleset", "endpoint"}
        assert (moved.count("source"), moved.count("endpoint")) == (1, len(PODS_OF_APP))
        assert state.rows() == state_of(version).rows()
    assert endpoint(state, "app/web") == endpoint(state_of(obj), "app/web")


def test_a_default_of_audit_stands_in_the_shadow_alone() -> None:
    """Beside a shadow the enforced ruleset lets pass what no rule decides; without one it says audit itself."""
    spec = {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"], "egress": [{}]}
    state = state_of(k8s.settings(default="audit"), under(k8s.network_policy("p", spec)))
    web, api = endpoint(state, "app/web"), endpoint(state, "app/api")
    defaults = [ruleset(state, name).default for name in (web.egress, web.egress_shadow, web.ingress, api.egress)]
    assert defaults == [Default.ALLOW, Default.AUDIT, Default.AUDIT, Default.AUDIT]
    assert not web.ingress_shadow and not api.egress_shadow


def test_the_patterns_of_a_policy_under_audit_are_in_force() -> None:
    """Names are learned, so that the shadow can tell; the enforced ruleset implies no DNS."""
    spec = {"policyTypes": ["Egress"], "egress": [{"to": [{"domainNames": ["*.example.com"]}]}]}
    state = state_of(under(k8s.application_policy("p", spec)))
    assert wire.subject_domain("*.example.com") in state.rows()
    web = endpoint(state, "app/web")
    assert ruleset(state, web.egress_shadow).dns_implicit and not ruleset(state, web.egress).dns_implicit


# ---------------------------------------------------------------------------------------------------------------------
# What does not fit


def tenant(name: str, count: int, first: int, created: str) -> Obj:
    rules = [{"ports": [{"port": first + n}]} for n in range(count)]
    return k8s.network_policy(name, {"policyTypes": ["Egress"], "egress": rules}, creationTimestamp=created)


def test_a_tenant_under_audit_crowds_out_nobody() -> None:
    """The older policy under audit fills the shadow; what is enforced of the newer one stays, without a complaint."""
    old = tenant("old", RULES_NETWORK_POLICY, 1, "2026-01-01T00:00:00Z")
    new = tenant("new", 2, 5000, "2026-01-02T00:00:00Z")
    state = state_of(under(old), new)
    web = endpoint(state, "app/web")
    assert len(ruleset(state, web.egress).network_policy) == 2
    assert len(ruleset(state, web.egress_shadow).network_policy) == RULES_NETWORK_POLICY
    assert state.problems() == []
    state.upsert(old)
    (problem,) = state.problems()
    assert problem.object == "NetworkPolicy app/new" and "stay isolated" in problem.message


def test_a_tenant_under_audit_that_does_not_fit_says_so() -> None:
    """It is left out of the shadow, where its rules would be enforced; and it isolates nobody."""
    old = tenant("old", RULES_NETWORK_POLICY, 1, "2026-01-01T00:00:00Z")
    state = state_of(old, under(tenant("new", 2, 5000, "2026-01-02T00:00:00Z")))
    (problem,) = state.problems()
    assert problem.object == "NetworkPolicy app/new" and "under audit" in problem.message
    assert endpoint(state, "app/web").egress_shadow
    state.delete("NetworkPolicy", "app", "new")
    assert state.problems() == [] and not endpoint(state, "app/web").egress_shadow


def denies(name: str, ports: range, created: str, **subject: Any) -> Obj:
    each = [[{"portNumber": {"protocol": "TCP", "port": port}}] for port in ports]
    rules = [{"action": "Deny", "to": [{"networks": ["0.0.0.0/0"]}], "ports": port} for port in each]
    spec = {"egress": rules, "subject": {"namespaces": subject}}
    return k8s.aws_cluster_policy(name, spec, creationTimestamp=created)


def fill_admin_tier(**subject: Any) -> list[Obj]:
    """Two policies, because one may have a hundred rules."""
    half = RULES_ADMIN // 2
    return [
        denies(f"old-{first}", range(first, first + half), "2026-01-01T00:00:00Z", **subject)
        for first in (1000, 1000 + half)
    ]


def test_an_administrator_under_audit_crowds_out_nobody() -> None:
    """192 rules under audit leave no room in full, where the newer Deny is refused for all pods, those that the audit
    does not govern included; enforced it stays, and both roads say the same of every packet."""
    app = {"matchLabels": {"kubernetes.io/metadata.name": "app"}}
    old = fill_admin_tier(**app)
    new = denies("new", range(80, 81), "2026-01-02T00:00:00Z")
    state = state_of(*map(under, old), new)
    assert state.problems() == []
    web, main = endpoint(state, "app/web"), endpoint(state, "db/main")
    assert len(ruleset(state, web.egress).admin) == 1 and len(ruleset(state, web.egress_shadow).admin) == RULES_ADMIN
    assert len(ruleset(state, main.egress).admin) == 1 and ruleset(state, main.egress_shadow).admin == ()
    oracle, rows = Oracle(state.policies, state.world), Rows.read(state.rows())
    verdicts = {}
    for source in (WEB, OTHER):
        for port in (80, 1000, 2000):
            packet = Packet(source, WORLD, Protocol.TCP, port)
            pod = oracle.owner_of(source)
            assert isinstance(pod, Pod)
            found = oracle.evaluate(packet, direction=Direction.EGRESS, pod=pod)
            row = rows.endpoints[pod.key]
            assert judge(rows, packet, direction=Direction.EGRESS, endpoint=row, answers=(), at=0.0) == found
            verdicts[source, port] = found.verdict
    assert verdicts[WEB, 80] is verdicts[OTHER, 80] is Verdict.DENY
    assert (verdicts[WEB, 1000], verdicts[WEB, 2000]) == (Verdict.AUDIT, Verdict.ALLOW)
    assert verdicts[OTHER, 1000] is Verdict.ALLOW
    for obj in old:
        state.upsert(obj)
    (problem,) = state.problems()
    assert problem.object.endswith("new") and "refused for all pods" in problem.message


def test_an_administrator_under_audit_that_does_not_fit_says_so() -> None:
    """It is in no ruleset at all, and the enforced ones are in all of theirs."""
    state = state_of(*fill_admin_tier(), under(denies("new", range(80, 81), "2026-01-02T00:00:00Z")))
    (problem,) = state.problems()
    assert problem.object.endswith("new") and "under audit" in problem.message
    web = endpoint(state, "app/web")
    assert len(ruleset(state, web.egress).admin) == RULES_ADMIN and not web.egress_shadow
