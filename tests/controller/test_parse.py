"""The border: what each API's schema refuses is refused with its path, null equals absent, facts are read leniently."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.policy import AnyPeer, CidrPeer, DomainPeer, FlowTimeouts, PodPeer, PortRange
from schemas.selectors import NAMESPACE_NAME_LABEL, matches
from schemas.terms import Action, Default, Direction, PolicyKind, Protocol, Tier
from services.controller.policy.model import ANY_PORT, NamedPort, Namespace, Node, Pod, Policy, Settings
from services.controller.policy.parse import API_OF, parse_isolation, parse_object
from services.controller.policy.parse_fields import is_canonical_v4
from tests import builders as k8s
from tests.strategies import seeded_scene

Obj = dict[str, Any]


def errors(obj: Any) -> list[str]:
    parsed, problems = parse_object(obj)
    found = [problem.path for problem in problems if problem.severity == "error"]
    assert (parsed is None) == bool(found), problems
    return found


def policy(obj: Obj) -> Policy:
    parsed, problems = parse_object(obj)
    assert isinstance(parsed, Policy), problems
    return parsed


def np(**spec: Any) -> Obj:
    return k8s.network_policy("p", spec)


def egress(*rules: Any) -> Obj:
    return np(policyTypes=["Egress"], egress=list(rules))


def aws(*rules: Any, **spec: Any) -> Obj:
    return k8s.aws_cluster_policy("p", {"egress": list(rules), **spec})


def upstream(*rules: Any, **spec: Any) -> Obj:
    return k8s.cluster_policy("p", {"egress": list(rules), **spec})


def admin(*rules: Any, **spec: Any) -> Obj:
    return k8s.admin_policy("p", {"egress": list(rules), **spec})


def rule(action: str = "Accept", **more: Any) -> Obj:
    return {"action": action, "to": [{"namespaces": {}}], **more}


def to_domain(name: str) -> Obj:
    return k8s.application_policy("p", {"policyTypes": ["Egress"], "egress": [{"to": [{"domainNames": [name]}]}]})


PORT_PATH = "spec.egress[0].ports[0]"
REFUSED: list[tuple[str, Obj, list[str]]] = [
    # NetworkPolicy: kubernetes/pkg/apis/networking/validation/validation.go
    ("unknown field", np(podSelectors={}), ["spec.podSelectors"]),
    (
        "unknown field deep",
        egress({"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "expect": []}}]}),
        ["spec.egress[0].to[0].ipBlock.expect"],
    ),
    ("empty peer", egress({"to": [{}]}), ["spec.egress[0].to[0]"]),
    (
        "block beside selector",
        egress({"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}),
        ["spec.egress[0].to[0]"],
    ),
    ("cidr without length", egress({"to": [{"ipBlock": {"cidr": "10.0.0.1"}}]}), ["spec.egress[0].to[0].ipBlock.cidr"]),
    (
        "cidr with a mask",
        egress({"to": [{"ipBlock": {"cidr": "10.0.0.0/255.0.0.0"}}]}),
        ["spec.egress[0].to[0].ipBlock.cidr"],
    ),
    ("cidr too long", egress({"to": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]}), ["spec.egress[0].to[0].ipBlock.cidr"]),
    ("cidr missing", egress({"to": [{"ipBlock": {}}]}), ["spec.egress[0].to[0].ipBlock.cidr"]),
    (
        "except outside",
        egress({"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/9"]}}]}),
        ["spec.egress[0].to[0].ipBlock.except[0]"],
    ),
    (
        "except equal",
        egress({"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}}]}),
        ["spec.egress[0].to[0].ipBlock.except[0]"],
    ),
    ("port zero", egress({"ports": [{"port": 0}]}), [f"{PORT_PATH}.port"]),
    ("port too high", egress({"ports": [{"port": 65536}]}), [f"{PORT_PATH}.port"]),
    ("port boolean", egress({"ports": [{"port": True}]}), [f"{PORT_PATH}.port"]),
    ("port number as text", egress({"ports": [{"port": "80"}]}), [f"{PORT_PATH}.port"]),
    ("endPort below", egress({"ports": [{"port": 80, "endPort": 79}]}), [f"{PORT_PATH}.endPort"]),
    ("endPort alone", egress({"ports": [{"endPort": 80}]}), [f"{PORT_PATH}.endPort"]),
    ("endPort with a name", egress({"ports": [{"port": "http", "endPort": 80}]}), [f"{PORT_PATH}.endPort"]),
    ("unknown protocol", egress({"ports": [{"protocol": "ICMP"}]}), [f"{PORT_PATH}.protocol"]),
    ("protocol in lower case", egress({"ports": [{"protocol": "tcp"}]}), [f"{PORT_PATH}.protocol"]),
    ("policy type", np(policyTypes=["Both"]), ["spec.policyTypes[0]"]),
    (
        "operator",
        np(podSelector={"matchExpressions": [{"key": "a", "operator": "Is"}]}),
        ["spec.podSelector.matchExpressions[0].operator"],
    ),
    (
        "In without values",
        np(podSelector={"matchExpressions": [{"key": "a", "operator": "In"}]}),
        ["spec.podSelector.matchExpressions[0].values"],
    ),
    (
        "Exists with values",
        np(podSelector={"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}),
        ["spec.podSelector.matchExpressions[0].values"],
    ),
    ("label value of YAML's", np(podSelector={"matchLabels": {"a": True}}), ["spec.podSelector.matchLabels[a]"]),
    ("label key", np(podSelector={"matchLabels": {"a b": "c"}}), ["spec.podSelector.matchLabels[a b]"]),
    ("list expected", np(ingress={"from": []}), ["spec.ingress"]),
    ("no domain in NetworkPolicy", egress({"to": [{"domainNames": ["x.com"]}]}), ["spec.egress[0].to[0].domainNames"]),
    # ApplicationNetworkPolicy
    (
        "deny in the NetworkPolicy tier",
        k8s.application_policy("p", {"egress": [{"action": "Deny"}]}),
        ["spec.egress[0].action"],
    ),
    (
        "domain on ingress",
        k8s.application_policy("p", {"ingress": [{"from": [{"domainNames": ["x.com"]}]}]}),
        ["spec.ingress[0].from[0].domainNames"],
    ),
    # Domains: NPEP-133
    ("two stars", to_domain("*.*.x.com"), ["spec.egress[0].to[0].domainNames[0]"]),
    ("empty label", to_domain("a..b"), ["spec.egress[0].to[0].domainNames[0]"]),
    ("64-byte label", to_domain("a" * 64 + ".com"), ["spec.egress[0].to[0].domainNames[0]"]),
    ("star inside", to_domain("a.*.com"), ["spec.egress[0].to[0].domainNames[0]"]),
    ("star in a label", to_domain("a*.com"), ["spec.egress[0].to[0].domainNames[0]"]),
    ("only a star", to_domain("*"), ["spec.egress[0].to[0].domainNames[0]"]),
    ("254 bytes", to_domain(".".join(["a" * 62] * 4) + ".bb"), ["spec.egress[0].to[0].domainNames[0]"]),
    ("blank", to_domain("a b.com"), ["spec.egress[0].to[0].domainNames[0]"]),
    ("hyphen first", to_domain("-a.com"), ["spec.egress[0].to[0].domainNames[0]"]),
    # The cluster-wide APIs: apis/v1alpha1 and apis/v1alpha2 of network-policy-api
    ("domain denied", aws(rule("Deny", to=[{"domainNames": ["x.com"]}])), ["spec.egress[0].to[0].domainNames"]),
    ("domain passed", upstream(rule("Pass", to=[{"domainNames": ["x.com"]}])), ["spec.egress[0].to[0].domainNames"]),
    ("priority", aws(priority=1001), ["spec.priority"]),
    ("priority missing", aws(priority=None), ["spec.priority"]),
    ("tier", aws(tier="NetworkPolicy"), ["spec.tier"]),
    ("lower-case tier upstream", upstream(tier="admin"), ["spec.tier"]),
    ("subject missing", aws(subject=None), ["spec.subject"]),
    ("subject empty", aws(subject={}), ["spec.subject"]),
    (
        "two subjects",
        aws(subject={"namespaces": {}, "pods": {"namespaceSelector": {}, "podSelector": {}}}),
        ["spec.subject"],
    ),
    ("no peer", upstream(rule(to=[])), ["spec.egress[0].to"]),
    ("peers missing", aws({"action": "Accept"}), ["spec.egress[0].to"]),
    ("two kinds in a peer", aws(rule(to=[{"namespaces": {}, "networks": ["10.0.0.0/8"]}])), ["spec.egress[0].to[0]"]),
    (
        "networks on ingress",
        k8s.aws_cluster_policy("p", {"ingress": [{"action": "Deny", "from": [{"networks": ["10.0.0.0/8"]}]}]}),
        ["spec.ingress[0].from[0].networks"],
    ),
    ("Allow upstream", upstream(rule("Allow")), ["spec.egress[0].action"]),
    ("Accept in v1alpha1", admin(rule("Accept")), ["spec.egress[0].action"]),
    ("action missing", aws({"to": [{"namespaces": {}}]}), ["spec.egress[0].action"]),
    ("Pass in the one baseline", k8s.baseline_policy({"egress": [rule("Pass")]}), ["spec.egress[0].action"]),
    (
        "seed port upstream",
        upstream(rule(ports=[{"protocol": "TCP", "port": 443}])),
        ["spec.egress[0].ports[0].protocol", "spec.egress[0].ports[0].port", "spec.egress[0].ports[0]"],
    ),
    (
        "old and new ports upstream",
        upstream(rule(ports=[{"namedPort": "web"}], protocols=[{"tcp": {"destinationPort": {"number": 80}}}])),
        ["spec.egress[0].ports"],
    ),
    ("empty old ports upstream", upstream(rule(ports=[])), ["spec.egress[0].ports"]),
    (
        "old named port beside networks upstream",
        upstream(rule(to=[{"networks": ["10.0.0.0/8"]}], ports=[{"namedPort": "web"}])),
        ["spec.egress[0].ports"],
    ),
    (
        "seed network upstream",
        upstream(rule(to=[{"networks": [{"cidr": "10.0.0.0/8"}]}])),
        ["spec.egress[0].to[0].networks[0]", "spec.egress[0].to[0].networks[0]"],
    ),
    ("empty protocols", upstream(rule(protocols=[])), ["spec.egress[0].protocols"]),
    ("two protocols in one", upstream(rule(protocols=[{"tcp": {}, "udp": {}}])), ["spec.egress[0].protocols[0]"]),
    ("tcp without a port", upstream(rule(protocols=[{"tcp": {}}])), ["spec.egress[0].protocols[0].tcp"]),
    (
        "range backwards",
        upstream(rule(protocols=[{"tcp": {"destinationPort": {"range": {"start": 9, "end": 9}}}}])),
        ["spec.egress[0].protocols[0].tcp.destinationPort.range.end"],
    ),
    (
        "range out of range",
        admin(rule("Allow", ports=[{"portRange": {"protocol": "TCP", "start": 1, "end": 70000}}])),
        ["spec.egress[0].ports[0].portRange.end", "spec.egress[0].ports[0].portRange.end"],
    ),
    (
        "named port to networks",
        admin(rule("Allow", to=[{"networks": ["10.0.0.0/8"]}], ports=[{"namedPort": "http"}])),
        ["spec.egress[0].ports"],
    ),
    (
        "two port forms",
        admin(rule("Allow", ports=[{"namedPort": "http", "portNumber": {"port": 80}}])),
        ["spec.egress[0].ports[0]"],
    ),
    ("too many rules", upstream(*[rule()] * 26), ["spec.egress"]),
    (
        "too many networks",
        upstream(rule(to=[{"networks": [f"10.0.{n}.0/24" for n in range(26)]}])),
        ["spec.egress[0].to[0].networks"],
    ),
    ("long rule name", upstream(rule(name="x" * 101)), ["spec.egress[0].name"]),
    (
        "namespaceSelector missing in v1alpha1",
        admin(subject={"pods": {"podSelector": {}}}),
        ["spec.subject.pods.namespaceSelector"],
    ),
    ("podSelector missing", upstream(subject={"pods": {"namespaceSelector": {}}}), ["spec.subject.pods.podSelector"]),
    (
        "top-level domain upstream",
        upstream(rule(to=[{"domainNames": ["*.com"]}])),
        ["spec.egress[0].to[0].domainNames[0]"],
    ),
    # The object itself
    ("spec missing", k8s.policy("networking.k8s.io/v1", "NetworkPolicy", "p", None), ["spec"]),  # type: ignore[arg-type]
    ("name missing", k8s.policy("networking.k8s.io/v1", "NetworkPolicy", None, {}), ["metadata.name"]),  # type: ignore[arg-type]
    ("name that no row bears", k8s.network_policy("a/b", {}), ["metadata.name"]),
    (
        "another baseline's name",
        k8s.policy(
            "policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy", "mine", {"subject": {"namespaces": {}}}
        ),
        ["metadata.name"],
    ),
    (
        "version of the future",
        k8s.policy("policy.networking.k8s.io/v1", "ClusterNetworkPolicy", "p", {}),
        ["apiVersion"],
    ),
    ("settings", k8s.settings(default="maybe"), ["data[default]"]),
    ("unknown setting", k8s.settings(defualt="deny"), ["data[defualt]"]),
    ("resolver", k8s.settings(resolvers="10.0.0.10:99999"), ["data[resolvers]"]),
    ("ttl backwards", k8s.settings(ttl_min="60", ttl_max="30"), ["data"]),
    ("timeout of nothing", k8s.settings(timeout_udp="0"), ["data[timeout-udp]"]),
    ("timeout beyond a week", k8s.settings(timeout_tcp_closed="604801"), ["data[timeout-tcp-closed]"]),
    ("timeout in words", k8s.settings(timeout_other="1h"), ["data[timeout-other]"]),
    ("unknown timeout", k8s.settings(timeout_icmp="10"), ["data[timeout-icmp]"]),
]


@pytest.mark.parametrize(("obj", "paths"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_an_api_refuses_is_refused_with_its_path(obj: Obj, paths: list[str]) -> None:
    """One bad value or unknown field refuses the object whole and names the place."""
    assert errors(obj) == paths


ACCEPTED: list[tuple[str, Obj]] = [
    ("null is absent", np(ingress=None, egress=None, policyTypes=None)),
    ("null inside a peer", egress({"to": [{"podSelector": {}, "namespaceSelector": None, "ipBlock": None}]})),
    ("null unknown field", np(somethingNew=None)),
    ("empty lists", np(ingress=[], policyTypes=[])),
    ("aws seeds' Allow", aws(rule("Allow"))),
    ("aws underscore first", aws(rule(to=[{"domainNames": ["_sip._tcp.example.com"]}]))),
    ("aws named port beside networks", aws(rule(to=[{"networks": ["10.0.0.0/8"]}], ports=[{"namedPort": "http"}]))),
    ("aws port forms", aws(rule(ports=[{"portNumber": {"protocol": "TCP", "port": 1}}, {"namedPort": "http"}]))),
    ("upstream range", upstream(rule(protocols=[{"sctp": {"destinationPort": {"range": {"start": 1, "end": 2}}}}]))),
    ("nodes", upstream(rule(to=[{"nodes": {}}]))),
    ("255 hosts", upstream(rule(to=[{"networks": ["10.0.0.0/8", "fd00::/8"]}]))),
    ("endPort equal", egress({"ports": [{"port": 80, "endPort": 80}]})),
    ("253 bytes", to_domain(".".join(["a" * 62] * 4) + ".b")),
    ("63-byte label", to_domain("a" * 63 + ".com")),
    ("upper case and dot", to_domain("*.Example.COM.")),
    ("status is not ours", {**np(), "status": {"conditions": []}}),
]


@pytest.mark.parametrize("obj", [case[1] for case in ACCEPTED], ids=[case[0] for case in ACCEPTED])
def test_what_an_api_accepts_is_accepted(obj: Obj) -> None:
    """Forms that the documentation allows raise no error."""
    assert errors(obj) == []


def test_policy_types_default_to_ingress_and_to_egress_with_egress_rules() -> None:
    """Absent policyTypes: Ingress always, Egress only with an egress rule (networking/v1 documentation)."""
    both = frozenset(Direction)
    assert policy(np()).isolates == {Direction.INGRESS}
    assert policy(np(egress=[])).isolates == {Direction.INGRESS}
    assert policy(np(egress=[{}])).isolates == both
    assert policy(np(policyTypes=["Egress"])).isolates == {Direction.EGRESS}


def test_rules_of_a_direction_not_named_are_ignored() -> None:
    """``policyTypes: [Ingress]`` leaves egress rules without effect, with a warning."""
    obj = np(policyTypes=["Ingress"], egress=[{}])
    assert policy(obj).egress == ()
    assert [problem.severity for problem in parse_object(obj)[1]] == ["warning"]


def test_absent_lists_are_everything_and_empty_rules_nothing() -> None:
    """A rule without peers is any peer, without ports any protocol; no rule at all allows nothing."""
    (only,) = policy(np(ingress=[{}])).ingress
    assert only.peers == (AnyPeer(),) and only.ports == (ANY_PORT,)
    assert policy(np(ingress=[])).ingress == ()


def test_a_pod_selector_alone_means_the_policys_own_namespace() -> None:
    """``podSelector`` without ``namespaceSelector`` never leaves the namespace; with an empty one it means all."""
    own, everywhere = (
        policy(egress({"to": [{"podSelector": {}}, {"podSelector": {}, "namespaceSelector": {}}]})).egress[0].peers
    )
    assert isinstance(own, PodPeer) and isinstance(everywhere, PodPeer)
    assert matches(own.namespaces, {NAMESPACE_NAME_LABEL: "app"})
    assert not matches(own.namespaces, {NAMESPACE_NAME_LABEL: "db"})
    assert matches(everywhere.namespaces, {NAMESPACE_NAME_LABEL: "db"})


def test_ports_take_every_documented_form() -> None:
    """Number, range, name, protocol alone; a name without a protocol is one for each."""
    given = [{"protocol": "UDP"}, {"port": 80}, {"protocol": "SCTP", "port": 1, "endPort": 9}, {"port": "http"}]
    assert policy(egress({"ports": given})).egress[0].ports == (
        PortRange(protocol=Protocol.UDP),
        PortRange(protocol=Protocol.TCP, first=80, last=80),
        PortRange(protocol=Protocol.SCTP, first=1, last=9),
        NamedPort(protocol=Protocol.TCP, name="http"),
    )
    named = policy(upstream(rule(protocols=[{"destinationNamedPort": "http"}]))).egress[0].ports
    assert {port.protocol for port in named} == {Protocol.TCP, Protocol.UDP, Protocol.SCTP}


def test_host_bits_are_cleared_with_a_warning() -> None:
    """``10.1.2.3/8`` is read as ``10.0.0.0/8``, as every API here tolerates it, and said."""
    parsed, problems = parse_object(aws(rule(to=[{"networks": ["10.1.2.3/8"]}])))
    assert isinstance(parsed, Policy) and parsed.egress[0].peers == (CidrPeer(cidr="10.0.0.0/8"),)
    assert [(each.severity, each.path) for each in problems] == [("warning", "spec.egress[0].to[0].networks[0]")]


def test_domains_are_folded() -> None:
    """Case and the trailing dot of a domain carry no meaning."""
    assert policy(to_domain("*.Example.COM.")).egress[0].peers == (DomainPeer(pattern="*.example.com"),)


def test_admin_kinds_have_their_tiers() -> None:
    """AdminNetworkPolicy is Admin; BaselineAdminNetworkPolicy is Baseline and comes after every priority."""
    assert policy(admin(rule("Allow"))).tier is Tier.ADMIN
    baseline = policy(k8s.baseline_policy({"egress": [rule("Deny")]}))
    assert baseline.tier is Tier.BASELINE and baseline.priority > 1000 and baseline.egress[0].action is Action.DENY


def test_all_faults_of_an_object_are_named_at_once() -> None:
    """One pass reports every fault."""
    obj = egress({"to": [{"ipBlock": {"cidr": "x"}}], "ports": [{"port": 0}, {"protocol": "X"}]})
    assert len(errors(obj)) == 3


def test_a_refused_namespaced_policy_can_still_say_whom_it_isolates() -> None:
    """With a readable podSelector and policyTypes the stand-in isolates and allows nothing; else there is none."""
    bad = egress({"ports": [{"port": 0}]})
    stand_in = parse_isolation(bad)
    assert stand_in is not None and stand_in.isolates == {Direction.EGRESS} and stand_in.egress == ()
    assert parse_isolation(np(podSelector={"matchLabel": {}})) is None
    assert parse_isolation(np(policyTypes=["Both"])) is None
    assert parse_isolation(aws(tier="x")) is None


def test_facts_are_read_leniently() -> None:
    """Unknown fields, odd types and missing parts of a Pod do no harm; what can be read is used."""
    obj = k8s.pod("app/web", "10.0.0.1", "fd00::1")
    obj["spec"]["containers"] += [{"ports": [{"containerPort": "no"}]}, "odd"]
    obj["status"]["podIPs"].append({"ip": "not-an-address"})
    obj["metadata"]["labels"]["number"] = 7
    parsed, problems = parse_object(obj)
    assert isinstance(parsed, Pod) and parsed.addresses == ("10.0.0.1", "fd00::1") and parsed.labels == {}
    assert {problem.severity for problem in problems} == {"warning"}


def test_a_namespace_always_bears_its_name() -> None:
    """``kubernetes.io/metadata.name`` is the namespace's own, whatever the manifest claims."""
    parsed, _ = parse_object(k8s.namespace("app", **{NAMESPACE_NAME_LABEL: "db"}))
    assert isinstance(parsed, Namespace) and parsed.labels == {NAMESPACE_NAME_LABEL: "app"}


def test_nodes_have_their_status_addresses() -> None:
    """InternalIP and ExternalIP count, a Hostname does not."""
    obj = k8s.node("node.one", "192.168.0.1")
    obj["status"]["addresses"].append({"type": "Hostname", "address": "10.0.0.9"})
    parsed, _ = parse_object(obj)
    assert isinstance(parsed, Node) and parsed.addresses == ("192.168.0.1",)


def test_settings_are_read_and_only_from_a_namespace_of_ours() -> None:
    """The ConfigMap ``yett`` sets defaults, times, resolvers and ranges; a tenant's one of that name does nothing."""
    obj = k8s.settings(default="deny", ttl_min="5", grace="1s", resolvers="10.96.0.10, [fd00::10]:5353")
    parsed, problems = parse_object(obj)
    assert isinstance(parsed, Settings) and not problems
    assert parsed.config.default is Default.DENY
    assert (parsed.config.ttl_min_seconds, parsed.config.grace_seconds) == (5, 1)
    assert parsed.config.timeouts == FlowTimeouts()
    assert [(each.address, each.port) for each in parsed.config.resolvers] == [("10.96.0.10", 53), ("fd00::10", 5353)]
    obj["metadata"]["namespace"] = "tenant"
    assert parse_object(obj)[0] is None


def test_a_resolver_that_is_not_of_the_cluster_is_said_to_be() -> None:
    """``outside:`` stands before the address of either family, with a port or without; alone it is none."""
    parsed, problems = parse_object(k8s.settings(resolvers="outside:8.8.8.8 10.96.0.10 outside:[2001:db8::53]:5353"))
    assert isinstance(parsed, Settings) and not problems
    listed = [(each.address, each.port, each.outside) for each in parsed.config.resolvers]
    assert listed == [("10.96.0.10", 53, False), ("2001:db8::53", 5353, True), ("8.8.8.8", 53, True)]
    for text in ("outside:", "outside:outside:8.8.8.8", "inside:8.8.8.8"):
        _, problems = parse_object(k8s.settings(resolvers=text))
        assert [problem.path for problem in problems] == ["data[resolvers]"], text


def test_timeouts_are_settings() -> None:
    """Each by its own key, in whole seconds; the others keep their defaults."""
    parsed, problems = parse_object(k8s.settings(timeout_tcp="3600", timeout_udp_unanswered="30s"))
    assert isinstance(parsed, Settings) and not problems
    assert parsed.config.timeouts == FlowTimeouts(tcp=3600, udp_unanswered=30)


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(json, st.integers(0, 1 << 32), st.randoms(use_true_random=False))
def test_parse_never_raises(junk: Any, seed: int, random: Any) -> None:
    """Whatever stands in an object, the answer is a policy, a fact or problems, never an exception."""
    parse_object(junk)
    scene = seeded_scene(seed, packets=0)
    obj = random.choice(scene.cluster + scene.policies)
    _break(obj, junk, random)
    parsed, problems = parse_object(obj)
    parse_isolation(obj)
    assert parsed is None or not (isinstance(parsed, Policy) and any(each.severity == "error" for each in problems))


def _break(value: Any, junk: Any, random: Any) -> None:
    """Put junk somewhere into a nested value."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = random.choice(keys)
        if not isinstance(value[key], dict | list) or not value[key] or random.random() < 0.2:
            value[key] = junk
            return
        value = value[key]


def test_a_kind_of_no_interest_may_have_any_name() -> None:
    """RBAC names hold colons; what makes no row needs no row's name."""
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "system:node"}}
    assert parse_object(role) == (None, [])


def test_v1beta1_is_read_as_v1alpha2() -> None:
    """The upstream kind's next version has the same spec; a restarted controller reads it back under the older name."""
    older = upstream(rule("Deny"))
    newer = {**older, "apiVersion": "policy.networking.k8s.io/v1beta1"}
    assert parse_object(newer) == parse_object(older)
    assert API_OF[PolicyKind.CLUSTER_NETWORK_POLICY] == ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy")


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ({"to": [{"networks": ["10.1.2.3/8"]}]}, "spec.egress[0].to[0].networks[0]"),
        ({"to": [{"networks": ["::/0", "fd00::1/64"]}]}, "spec.egress[0].to[0].networks[1]"),
        ({"ports": [{"namedPort": "web"}]}, "spec.egress[0].ports"),
    ],
)
def test_v1beta1_refuses_what_v1alpha2_tolerates(more: Obj, path: str) -> None:
    """Host bits by a validation expression of its own, and the field that v1alpha2 gave up."""
    older = upstream(rule("Deny", **more))
    assert policy(older) and {problem.severity for problem in parse_object(older)[1]} == {"warning"}
    assert errors({**older, "apiVersion": "policy.networking.k8s.io/v1beta1"}) == [path]


@pytest.mark.parametrize("cidr", ["10.0.0.0/8", "FD00::/8", "2001:db8:0:0::/64", "192.0.2.1/32"])
def test_v1beta1_takes_every_spelling_of_a_prefix(cidr: str) -> None:
    """Only bits are compared, not letters."""
    newer = upstream(rule("Deny", to=[{"networks": [cidr]}])) | {"apiVersion": "policy.networking.k8s.io/v1beta1"}
    assert not errors(newer)


@pytest.mark.parametrize(
    ("former", "present"),
    [
        ({"portNumber": {"protocol": "SCTP", "port": 9003}}, {"sctp": {"destinationPort": {"number": 9003}}}),
        ({"portNumber": {"port": 80}}, {"tcp": {"destinationPort": {"number": 80}}}),
        (
            {"portRange": {"protocol": "UDP", "start": 1, "end": 9}},
            {"udp": {"destinationPort": {"range": {"start": 1, "end": 9}}}},
        ),
        ({"namedPort": "web"}, {"destinationNamedPort": "web"}),
    ],
)
def test_the_first_v1alpha2_had_ports(former: Obj, present: Obj) -> None:
    """They say what protocols say now, and it is told where."""
    parsed, problems = parse_object(upstream(rule("Deny", ports=[former])))
    assert parsed == policy(upstream(rule("Deny", protocols=[present])))
    assert [(each.severity, each.path) for each in problems] == [("warning", "spec.egress[0].ports")]


@pytest.mark.parametrize(
    ("obj", "path"),
    [
        (egress({"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": "http"}]}), "spec.egress[0].ports"),
        (aws(rule(to=[{"networks": ["10.0.0.0/8"]}], ports=[{"namedPort": "http"}])), "spec.egress[0].ports"),
    ],
)
def test_a_named_port_beside_a_prefix_is_warned_of(obj: Obj, path: str) -> None:
    """It matches nothing there, and nothing else would say so."""
    parsed, problems = parse_object(obj)
    assert parsed is not None
    assert [(each.severity, each.path) for each in problems] == [("warning", path)]


@given(st.lists(st.integers(0, 300), min_size=4, max_size=4), st.integers(0, 40), st.integers(0, 32), st.booleans())
def test_a_canonical_prefix_is_one_that_ipaddress_gives_back(
    octets: list[int], length: int, cleared: int, has_zero: bool
) -> None:
    """The short way knows exactly the texts that the long way would return unchanged."""
    number = sum((octet & 255) << shift for octet, shift in zip(octets, (24, 16, 8, 0), strict=True))
    whole = ipaddress.IPv4Address(number >> cleared << cleared)
    for text in (f"{whole}/{length}", f"{whole}/{'0' * has_zero}{length}", f"{'.'.join(map(str, octets))}/{length}"):
        try:
            expected = str(ipaddress.IPv4Network(text)) == text
        except ValueError:
            expected = False
        assert is_canonical_v4(text) is expected, text
    assert (
        not is_canonical_v4(f"{whole}") and not is_canonical_v4(f" {whole}/32") and not is_canonical_v4(f"{whole}/32\n")
    )
