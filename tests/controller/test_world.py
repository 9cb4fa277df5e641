"""The state: events in any order make the same rows; what is refused leaves the last good version in force."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas import wire
from schemas.policy import AddressRow, Config, EndpointRow, FrontendRow, IdentityRow, Ruleset
from schemas.terms import (
    IDENTITY_PARITY_BIT,
    RULES_ADMIN,
    RULES_NETWORK_POLICY,
    AddressKind,
    Default,
    FrontendKind,
    IdentityId,
    NodeName,
    RulesetHash,
)
from services.controller.policy.diff import apply, diff
from services.controller.policy.ground import read_ground
from services.controller.policy.parse import identify
from services.controller.sources import KINDS, POLICY_KINDS
from services.controller.world import State
from tests import builders as k8s
from tests.strategies import RandomDice, make_cluster_policy, make_pod, seeded_scene
from tests.strategies.policies import make_classic_policy
from tests.strategies.pools import NAMESPACES, POD_ADDRESSES

Obj = dict[str, Any]


def state_of(*objects: Obj) -> State:
    state = State()
    for obj in objects:
        state.upsert(obj)
    return state


def delete(state: State, obj: Obj) -> None:
    key = identify(obj)
    assert key is not None
    state.delete(*key)


def rows_of(state: State, kind: type) -> list[Any]:
    decoded = [wire.decode(subject, body) for subject, body in state.rows().items()]
    return [row for row in decoded if type(row) is kind]


def endpoint(state: State, name: str) -> EndpointRow:
    (row,) = [row for row in rows_of(state, EndpointRow) if f"{row.namespace}/{row.pod}" == name]
    return row  # type: ignore[no-any-return]


def ruleset(state: State, ruleset_hash: RulesetHash) -> Ruleset:
    row = wire.decode(wire.subject_ruleset(ruleset_hash), state.rows()[wire.subject_ruleset(ruleset_hash)])
    assert isinstance(row, Ruleset)
    return row


ALLOW_ALL = {"policyTypes": ["Egress"], "egress": [{}]}
BAD_PORT = {"policyTypes": ["Egress"], "egress": [{"ports": [{"port": 0}]}]}
WEB = k8s.pod("app/web", "10.0.0.1", app="web")
BASE = (k8s.namespace("app"), k8s.node("node-a", "192.168.0.1"), WEB)


# -- the same objects, the same rows ----------------------------------------------------------------------------------


def normal(state: State, keys: set[str]) -> dict[str, Any]:
    """Rows without identity numbers: each replaced by its identity's namespace and those labels that ``keys`` names."""
    rows = {subject: wire.decode(subject, body) for subject, body in state.rows().items()}
    identities = {row.id: row for row in rows.values() if isinstance(row, IdentityRow)}

    def content(number: IdentityId) -> object:
        row = identities.get(number)
        if row is None:
            return None
        return row.kind, row.namespace, tuple(sorted(item for item in row.labels.items() if item[0] in keys))

    found: dict[str, Any] = {}
    for subject, row in rows.items():
        if isinstance(row, IdentityRow):
            continue
        if isinstance(row, AddressRow | EndpointRow):
            found[subject] = (content(row.identity), msgspec.structs.replace(row, identity=IdentityId(0)))
        elif isinstance(row, FrontendRow):
            backends = {(content(each.identity), each.port, each.address) for each in row.backends}
            found[subject] = (backends, msgspec.structs.replace(row, backends=()))
        else:
            found[subject] = row
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1 << 32))
def test_incremental_is_as_from_scratch(seed: int) -> None:
    """After any sequence of events the rows are those of a state that saw only the final objects."""
    roll = random.Random(seed)
    scene = seeded_scene(seed, packets=0)
    present = {identify(obj): obj for obj in scene.cluster + scene.policies}
    state = state_of(*present.values())
    published = dict(state.rows())
    state.changes()
    for _ in range(12):
        _mutate(state, present, roll)
        if roll.random() < 0.6:
            published = apply(published, state.changes())
            assert published == state.rows()
    fresh = state_of(*present.values())
    keys = {key for row in rows_of(fresh, IdentityRow) for key in row.labels}
    assert normal(state, keys) == normal(fresh, keys), f"seed {seed}"
    assert state.problems() == fresh.problems(), f"seed {seed}"


def _mutate(state: State, present: dict[Any, Obj], roll: random.Random) -> None:
    dice = RandomDice(roll)
    if roll.random() < 0.2 and present:
        key = roll.choice(sorted(present))
        delete(state, present.pop(key))
        return
    policies = [present[key] for key in sorted(present) if key[0] in POLICY_KINDS]
    if roll.random() < 0.2 and policies:
        obj = copy.deepcopy(roll.choice(policies))
        obj["metadata"]["annotations"] = {"yett.dev/mode": roll.choice(("audit", "audit", "enforce"))}
    else:
        obj = roll.choice(MUTATIONS)(dice)
    present[identify(obj)] = obj
    state.upsert(obj)


def _make_unbound_pod(dice: RandomDice) -> Obj:
    obj = make_pod(dice, dice.pick(range(8)))
    del obj["spec"]["nodeName"]
    return obj


def _make_slice(dice: RandomDice) -> Obj:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "namespace": "app", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"name": "", "port": dice.pick((80, 8080))}],
        "endpoints": [{"addresses": [dice.pick((*POD_ADDRESSES, "198.51.100.1"))]}],
    }


def _make_dns_service(dice: RandomDice) -> Obj:
    port = {"port": dice.pick((53, 5300)), "protocol": "UDP", "targetPort": "dns"}
    return k8s.service("app/dns", "10.100.0.9", port, selector={"app": dice.pick("xy")})


def _make_dns_slice(dice: RandomDice) -> Obj:
    """Now and then of another Service than before."""
    endpoints = [{"addresses": [dice.pick(POD_ADDRESSES)], "conditions": {"ready": dice.pick((True, False))}}]
    ports = [{"port": dice.pick((53, 5353)), "protocol": "UDP"}]
    return k8s.endpoint_slice(dice.pick(("app/dns", "app/dns", "app/web")), *endpoints, ports=ports, name="dns-1")


def _make_namespace(dice: RandomDice) -> Obj:
    obj = k8s.namespace(dice.pick(NAMESPACES), team=dice.pick("xy"))
    asked = dice.pick(("", "deny", "allow"))
    if asked:
        obj["metadata"]["annotations"] = {"yett.dev/default": asked}
    return obj


def _make_settings(dice: RandomDice) -> Obj:
    data = {"default": dice.pick(("allow", "deny")), "dns_implicit": dice.pick(("true", "false"))}
    data |= dice.pick(({"dns_service": "app/dns"}, {"dns_service": "app/dns"}, {}))
    return k8s.settings(**data, **dice.pick(({}, {"node_defaults": "node-a=deny"}, {"namespace_defaults": "db=deny"})))


MUTATIONS: tuple[Callable[[RandomDice], Obj], ...] = (
    lambda dice: make_pod(dice, dice.pick(range(8))),
    lambda dice: make_pod(dice, dice.pick(range(8))),
    _make_unbound_pod,
    lambda dice: make_classic_policy(dice, f"p{dice.pick(range(4))}"),
    lambda dice: make_classic_policy(dice, f"p{dice.pick(range(4))}"),
    lambda dice: make_cluster_policy(dice, f"p{dice.pick(range(4))}"),
    _make_namespace,
    lambda dice: k8s.node("node-a", dice.pick(("192.168.0.1", "192.168.0.9")), zone=dice.pick("pq")),
    lambda dice: k8s.service("app/web", "10.100.0.1", {"port": 80}, selector={"app": dice.pick("xy")}),
    _make_slice,
    _make_dns_service,
    _make_dns_slice,
    _make_settings,
)


def test_rows_are_closed() -> None:
    """Every endpoint has its rulesets and identity, every address its identity, every identity its namespace."""
    for seed in range(30):
        scene = seeded_scene(seed, packets=0)
        rows = state_of(*scene.cluster, *scene.policies).rows()
        assert missing(rows) == set()


def test_rows_are_canonical() -> None:
    """However a row came about, its bytes are those of its content: rulesets spliced of parts, endpoints flipped."""
    for seed in range(30):
        scene, other = seeded_scene(seed, packets=0), seeded_scene(seed + 1000, packets=0)
        state = state_of(*scene.cluster, *scene.policies)
        state.changes()
        for obj in other.policies:
            state.upsert(obj)
        for subject, body in state.rows().items():
            assert wire.encode(wire.decode(subject, body)) == body
            if subject.startswith("yett.policy.ruleset."):
                assert wire.subject_ruleset(RulesetHash(wire.hash_body(body))) == subject


def missing(rows: dict[str, bytes]) -> set[str]:
    """Subjects that rows refer to and that are not there."""
    wanted: set[str] = set()
    for subject, body in rows.items():
        row = wire.decode(subject, body)
        if isinstance(row, EndpointRow):
            shadows = {each for each in (row.egress_shadow, row.ingress_shadow) if each}
            wanted |= {wire.subject_ruleset(each) for each in {row.egress, row.ingress} | shadows}
            wanted.add(wire.subject_identity(row.identity))
        elif isinstance(row, AddressRow):
            wanted.add(wire.subject_identity(row.identity))
        elif isinstance(row, IdentityRow) and row.kind is AddressKind.POD:
            wanted.add(wire.subject_namespace(row.namespace))
        elif isinstance(row, Ruleset):
            peers = [
                peer for rules in (row.admin, row.network_policy, row.baseline) for rule in rules for peer in rule.peers
            ]
            wanted |= {wire.subject_peerset(peer.hash) for peer in peers if hasattr(peer, "hash")}
    return wanted - rows.keys()


def test_every_prefix_of_a_change_is_closed() -> None:
    """A controller that dies after any row of a change leaves no reference to a row that is missing."""
    for seed in range(12):
        scene, other = seeded_scene(seed, packets=0), seeded_scene(seed + 1000, packets=0)
        state = state_of(*scene.cluster, *scene.policies)
        published = dict(state.rows())
        state.changes()
        for obj in scene.policies + scene.cluster[3:6]:
            delete(state, obj)
        for obj in other.cluster + other.policies:
            state.upsert(obj)
        changes = state.changes()
        assert changes == diff(published, state.rows())
        for change in changes:
            published = apply(published, [change])
            assert missing(published) == set(), change.subject
        assert published == state.rows()


# -- identities -------------------------------------------------------------------------------------------------------


def test_labels_that_no_policy_names_make_no_identity() -> None:
    """A pod-template-hash tells nothing apart until a policy names it."""
    pods = [k8s.pod(f"app/p{n}", f"10.0.0.{n}", **{"pod-template-hash": str(n)}) for n in range(1, 6)]
    state = state_of(*BASE, *pods)
    assert len([row for row in rows_of(state, IdentityRow) if row.kind is AddressKind.POD]) == 1


def test_a_policy_edit_moves_no_pod_row_unless_it_names_a_new_key() -> None:
    """Editing, removing and re-adding a policy writes rulesets and endpoints; a new key moves only its bearers."""
    pods = [k8s.pod(f"app/p{n}", f"10.0.1.{n}", app="x", tier=str(n % 2)) for n in range(1, 6)]
    by_app = {"ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "x"}}}]}]}
    state = state_of(*BASE, *pods, k8s.network_policy("p", by_app))
    state.changes()

    def moved() -> int:
        return sum(".address." in change.subject or ".identity." in change.subject for change in state.changes())

    state.upsert(k8s.network_policy("p", {"ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "y"}}}]}]}))
    assert moved() == 0
    state.delete("NetworkPolicy", "app", "p")
    assert moved() == 0
    state.upsert(k8s.network_policy("p", by_app))
    assert moved() == 0
    state.upsert(k8s.network_policy("p", {"ingress": [{"from": [{"podSelector": {"matchLabels": {"tier": "1"}}}]}]}))
    assert moved() == 5 + 2 + 1  # five addresses, two new identities, one that nobody has any more


def test_numbers_survive_a_restart_and_are_never_used_twice() -> None:
    """A restarted controller with the stream's rows publishes nothing; a removed identity's number stays taken."""
    scene = seeded_scene(3, packets=0)
    first = state_of(*scene.cluster, *scene.policies)
    rows = first.rows()
    second = State()
    second.restore(rows)
    for obj in reversed(scene.cluster + scene.policies):
        second.upsert(obj)
    assert diff(rows, second.rows()) == []
    highest = max(row.id for row in rows_of(first, IdentityRow))
    third = State()
    third.restore({wire.subject_identity(IdentityId(highest + 5)): b""})
    third.upsert(WEB)
    assert min(row.id for row in rows_of(third, IdentityRow)) > highest + 5


def test_epochs_never_share_a_number() -> None:
    """The parity is the top bit of every number, and numbers of the other parity are not taken over."""
    even, odd = State(parity=0), State(parity=1)
    for state in (even, odd):
        state.upsert(WEB)
    (number,) = [row.id for row in rows_of(odd, IdentityRow)]
    assert number & IDENTITY_PARITY_BIT
    third = State(parity=0)
    third.restore(odd.rows())
    third.upsert(WEB)
    assert [row.id for row in rows_of(third, IdentityRow)] == [row.id for row in rows_of(even, IdentityRow)]


# -- addresses and frontends ------------------------------------------------------------------------------------------


def address(state: State, text: str) -> AddressRow | None:
    body = state.rows().get(wire.subject_address(text))
    row = wire.decode(wire.subject_address(text), body) if body is not None else None
    assert row is None or isinstance(row, AddressRow)
    return row


def test_an_address_belongs_to_the_newest_live_pod() -> None:
    """Two pods claim an address while one goes: the newer one has it, and the older one where the newer ends."""
    old, new = k8s.pod("app/old", "10.0.0.9"), k8s.pod("app/new", "10.0.0.9")
    old["metadata"] |= {"creationTimestamp": "2026-01-01T00:00:00Z", "uid": "old"}
    new["metadata"] |= {"creationTimestamp": "2026-01-02T00:00:00Z", "uid": "new"}
    for order in ((old, new), (new, old)):
        state = state_of(*order)
        assert (row := address(state, "10.0.0.9")) is not None and row.uid == "new"
        new_gone = {**new, "status": {**new["status"], "phase": "Failed"}}
        state.upsert(new_gone)
        assert (row := address(state, "10.0.0.9")) is not None and row.uid == "old"
        delete(state, old)
        assert address(state, "10.0.0.9") is None


def test_host_network_pods_are_nobody() -> None:
    """A hostNetwork pod is no endpoint and no peer; its address is the node's."""
    obj = k8s.pod("app/agent", "192.168.0.1")
    obj["spec"]["hostNetwork"] = True
    state = state_of(k8s.node("node-a", "192.168.0.1"), obj)
    assert rows_of(state, EndpointRow) == []
    assert (row := address(state, "192.168.0.1")) is not None and row.kind is AddressKind.NODE


def test_an_endpoint_is_published_before_its_address() -> None:
    """A pod that is bound has an endpoint row without addresses; one that is not bound has none."""
    state = state_of(k8s.pod("app/web"))
    assert endpoint(state, "app/web").addresses == ()
    unbound = k8s.pod("app/web")
    del unbound["spec"]["nodeName"]
    state.upsert(unbound)
    assert rows_of(state, EndpointRow) == []


def test_a_pods_row_bears_labels_and_owner_only_where_the_settings_ask_for_them() -> None:
    """Live, both ways; the pods' rows move and no other; a Deployment's pod is the Deployment's."""
    pod = k8s.pod("app/web-6d4cf-x2x7p", "10.0.0.1", app="x", team="shop", **{"pod-template-hash": "6d4cf"})
    made = {"kind": "ReplicaSet", "name": "web-6d4cf", "controller": True}
    pod["metadata"]["ownerReferences"] = [{"kind": "Node", "name": "not-in-control"}, made]
    state = state_of(*BASE, pod, k8s.settings())
    state.changes()
    pod_key = "app/web-6d4cf-x2x7p"
    assert (endpoint(state, pod_key).labels, endpoint(state, pod_key).owner) == ({}, "")
    state.upsert(k8s.settings(flow_labels="team,absent app", flow_owners="true"))
    moved = {change.subject.split(".")[2] for change in state.changes()}
    assert moved == {"endpoint", "config", "source"}
    asked = endpoint(state, pod_key)
    assert (asked.labels, asked.owner) == ({"app": "x", "team": "shop"}, "Deployment/web")
    pod["metadata"]["labels"]["team"] = "y" * 100
    state.upsert(pod)
    assert [change.subject.split(".")[2] for change in state.changes()] == ["endpoint"]
    assert endpoint(state, pod_key).labels["team"] == "y" * 63
    state.upsert(k8s.settings())
    assert (endpoint(state, pod_key).labels, endpoint(state, pod_key).owner) == ({}, "")


@pytest.mark.parametrize(
    ("kind", "name", "template", "owner"),
    [
        ("ReplicaSet", "web-6d4cf", "6d4cf", "Deployment/web"),
        ("ReplicaSet", "web-6d4cf", "", "ReplicaSet/web-6d4cf"),
        ("ReplicaSet", "web-6d4cf", "cf", "ReplicaSet/web-6d4cf"),
        ("StatefulSet", "db-6d4cf", "6d4cf", "StatefulSet/db-6d4cf"),
    ],
)
def test_only_a_template_hash_makes_an_owner_a_deployments(kind: str, name: str, template: str, owner: str) -> None:
    """Never the stem of a name alone."""
    pod = k8s.pod("app/p", "10.0.0.1", **({"pod-template-hash": template} if template else {}))
    pod["metadata"]["ownerReferences"] = [{"kind": kind, "name": name, "controller": True}]
    assert endpoint(state_of(*BASE, pod, k8s.settings(flow_owners="true")), "app/p").owner == owner


@pytest.mark.parametrize("labels", ["a b c d e f g h i", "not/a/key", "-x"])
def test_too_many_labels_or_what_is_no_key_refuses_the_settings(labels: str) -> None:
    """What is in force stays."""
    state = state_of(*BASE, k8s.pod("app/p", "10.0.0.1", a="1"), k8s.settings(flow_labels="a"))
    state.upsert(k8s.settings(flow_labels=labels))
    assert [problem.path for problem in state.problems()] == ["data[flow-labels]"]
    assert endpoint(state, "app/p").labels == {"a": "1"}


def frontends(state: State) -> dict[tuple[str, int], FrontendRow]:
    return {(row.address, row.port): row for row in rows_of(state, FrontendRow)}


def test_frontends_follow_services_pods_and_nodes() -> None:
    """ClusterIP, node port, external and load-balancer addresses stand for the ready pods behind the selector."""
    svc = k8s.service(
        "app/web",
        "10.96.0.7",
        {"port": 80, "targetPort": "http", "nodePort": 30080},
        selector={"app": "web"},
        type="LoadBalancer",
        externalIPs=["203.0.113.1"],
    )
    svc["status"] = {"loadBalancer": {"ingress": [{"ip": "203.0.113.2"}]}}
    web = k8s.pod("app/web", "10.0.0.1", ports=[{"name": "http", "containerPort": 8080}], app="web")
    state = state_of(k8s.node("node-a", "192.168.0.1"), web, svc)
    found = frontends(state)
    kinds = {key: row.kind for key, row in found.items()}
    assert kinds == {
        ("10.96.0.7", 80): FrontendKind.CLUSTER_IP,
        ("192.168.0.1", 30080): FrontendKind.NODE_PORT,
        ("203.0.113.1", 80): FrontendKind.EXTERNAL_IP,
        ("203.0.113.2", 80): FrontendKind.LOAD_BALANCER,
    }
    identity = endpoint(state, "app/web").identity
    assert all([(each.identity, each.port) for each in row.backends] == [(identity, 8080)] for row in found.values())
    state.upsert({**web, "status": {**web["status"], "conditions": [{"type": "Ready", "status": "False"}]}})
    assert all(row.backends == () for row in frontends(state).values())
    delete(state, svc)
    assert frontends(state) == {}


def test_slices_win_over_the_selector() -> None:
    """Where EndpointSlices are given they say who is behind a Service, addresses without an identity included."""
    each = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "namespace": "app", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"name": "", "port": 9000}],
        "endpoints": [
            {"addresses": ["10.0.0.1"]},
            {"addresses": ["198.51.100.1"]},
            {"addresses": ["10.0.0.5"], "conditions": {"ready": False}},
        ],
    }
    svc = k8s.service("app/web", "10.96.0.7", {"port": 80}, selector={"app": "web"})
    state = state_of(*BASE, svc, each)
    backends = frontends(state)["10.96.0.7", 80].backends
    assert [(backend.address, backend.port) for backend in backends] == [("198.51.100.1", 9000), ("", 9000)]
    delete(state, each)
    assert [backend.port for backend in frontends(state)["10.96.0.7", 80].backends] == [80]


def test_nobody_takes_a_cluster_address_by_claiming_it_from_outside() -> None:
    """A Service that lists another one's ClusterIP among its externalIPs does not get its frontend."""
    real = k8s.service("app/web", "10.96.0.7", {"port": 80}, selector={"app": "web"})
    thief = k8s.service("app/a-thief", "10.96.0.8", {"port": 80}, externalIPs=["10.96.0.7"])
    state = state_of(*BASE, thief, real)
    assert frontends(state)["10.96.0.7", 80].service == "app/web"


def test_host_ports_are_faces_of_the_node() -> None:
    """A hostPort on every address of the pod's node stands for the pod."""
    web = k8s.pod("app/web", "10.0.0.1", ports=[{"containerPort": 80, "hostPort": 8081}])
    state = state_of(web, k8s.node("node-a", "192.168.0.1"))
    row = frontends(state)["192.168.0.1", 8081]
    assert row.kind is FrontendKind.HOST_PORT and row.backends[0].port == 80


# -- defaults and settings --------------------------------------------------------------------------------------------


def default_of(state: State, name: str = "app/web") -> Default:
    return ruleset(state, endpoint(state, name).egress).default


def test_a_host_port_follows_the_address_behind_it() -> None:
    """A newer pod that takes over the address is what the hostPort leads to; when it is gone, the first one again."""
    web = k8s.pod("app/web", "10.0.0.1", ports=[{"containerPort": 80, "hostPort": 8081}])
    heir = k8s.pod("db/heir", "10.0.0.1")
    heir["metadata"]["creationTimestamp"] = "2026-01-02T00:00:00Z"
    state = state_of(web, k8s.node("node-a", "192.168.0.1"))
    for change, namespace in ((lambda: state.upsert(heir), "db"), (lambda: state.delete("Pod", "db", "heir"), "app")):
        state.rows()
        change()
        (backend,) = frontends(state)["192.168.0.1", 8081].backends
        (row,) = [each for each in rows_of(state, IdentityRow) if each.id == backend.identity]
        assert row.namespace == namespace


def test_default_is_the_namespaces_then_the_nodes_then_the_clusters() -> None:
    """Unset is allow; the node's wins over the cluster's, the namespace's setting over both."""
    state = state_of(*BASE)
    assert default_of(state) is Default.ALLOW
    state.upsert(k8s.settings(default="deny"))
    assert default_of(state) is Default.DENY
    state.upsert(k8s.settings(default="deny", node_defaults="node-a=allow"))
    assert default_of(state) is Default.ALLOW
    state.upsert(k8s.settings(default="allow", node_defaults="node-a=allow", namespace_defaults="app=deny"))
    assert default_of(state) is Default.DENY


def test_a_namespaces_annotation_only_tightens() -> None:
    """``yett.dev/default: deny`` closes a namespace; ``allow`` does not open one."""
    asked = {"annotations": {"yett.dev/default": "deny"}}
    closed = k8s.namespace("app")
    closed["metadata"] |= asked
    state = state_of(*BASE)
    state.upsert(closed)
    assert default_of(state) is Default.DENY
    closed["metadata"] = {**closed["metadata"], "annotations": {"yett.dev/default": "allow"}}
    state.upsert(closed)
    assert default_of(state) is Default.ALLOW
    state.upsert(k8s.settings(default="deny"))
    assert default_of(state) is Default.DENY


def test_a_node_class_sets_the_default_of_its_nodes() -> None:
    """EKS' NodeClass ``networkPolicy: DefaultDeny`` holds on the nodes that bear its name."""
    state = state_of(*BASE, k8s.node("node-a", "192.168.0.1", **{"eks.amazonaws.com/nodeclass": "default"}))
    state.upsert(k8s.policy("eks.amazonaws.com/v1", "NodeClass", "default", {"networkPolicy": "DefaultDeny"}))
    assert default_of(state) is Default.DENY
    (config,) = rows_of(state, Config)
    assert config.node_defaults == {NodeName("node-a"): Default.DENY}


def test_a_node_class_whose_default_nobody_knows_leaves_the_last_good_one() -> None:
    """It is told with its path, also after a restart; without a good version the cluster's default holds."""
    unknown = k8s.policy("eks.amazonaws.com/v1", "NodeClass", "default", {"networkPolicy": "DefaultDenny"})
    good = k8s.policy("eks.amazonaws.com/v1", "NodeClass", "default", {"networkPolicy": "DefaultDeny"})
    nodes = (*BASE, k8s.node("node-a", "192.168.0.1", **{"eks.amazonaws.com/nodeclass": "default"}))
    state = state_of(*nodes, good)
    state.upsert(unknown)
    again = State()
    again.restore(state.rows())
    for obj in (*nodes, unknown):
        again.upsert(obj)
    assert default_of(state) is default_of(again) is Default.DENY
    (problem,) = again.problems()
    assert (problem.object, problem.path) == ("NodeClass default", "spec.networkPolicy")
    assert default_of(state_of(*nodes, unknown)) is Default.ALLOW
    state.upsert(k8s.policy("eks.amazonaws.com/v1", "NodeClass", "default", {}))
    assert default_of(state) is Default.ALLOW and state.problems() == []


def test_the_cluster_dns_service_is_the_trusted_resolver() -> None:
    """``kube-system/kube-dns`` is, whatever the setting adds to it; what that says of its address holds."""
    state = state_of(k8s.service("kube-system/kube-dns", DNS, {"port": 53, "protocol": "UDP"}))
    assert resolvers(state) == [(DNS, 53)]
    state.upsert(k8s.settings(resolvers="169.254.20.10"))
    assert resolvers(state) == [("169.254.20.10", 53), (DNS, 53)]
    state.upsert(k8s.settings(resolvers=f"169.254.20.10 outside:{DNS}"))
    (config,) = rows_of(state, Config)
    listed = [(each.address, each.port, each.outside) for each in config.resolvers]
    assert listed == [(DNS, 53, True), ("169.254.20.10", 53, False)]
    state.upsert(k8s.settings(resolvers="169.254.20.10", dns_service="kube-system/none"))
    assert resolvers(state) == [("169.254.20.10", 53)]


DNS = "10.96.0.10"
DNS_PORTS = (
    {"name": "udp-53", "port": 53, "protocol": "UDP", "targetPort": "dns"},
    {"name": "tcp-53", "port": 53, "targetPort": "dns-tcp"},
    {"name": "quic", "port": 853, "protocol": "UDP", "targetPort": 853},
    {"name": "metrics", "port": 9153},
)
TARGETS = ({"name": "udp-53", "port": 5353, "protocol": "UDP"}, {"name": "tcp-53", "port": 5354, "protocol": "TCP"})
ELSEWHERE = ({"name": "quic", "port": 8853, "protocol": "UDP"}, {"name": "metrics", "port": 9153})


def dns_service(**spec: Any) -> Obj:
    return k8s.service("kube-system/kube-dns", DNS, *DNS_PORTS, **spec)


def dns_slice(*endpoints: Obj, name: str = "") -> Obj:
    return k8s.endpoint_slice("kube-system/kube-dns", *endpoints, ports=(*TARGETS, *ELSEWHERE), name=name)


def answering(address: str, **conditions: bool) -> Obj:
    return {"addresses": [address], "conditions": conditions}


def resolvers(state: State) -> list[tuple[str, int]]:
    (config,) = rows_of(state, Config)
    return [(each.address, each.port) for each in config.resolvers]


def test_what_answers_behind_the_dns_service_is_trusted_at_its_own_port() -> None:
    """Ready ones, and those that still serve while they end; by UDP, and by TCP of the same number; nothing else."""
    ready, ending = answering("10.0.0.7", ready=True), answering("10.0.0.6", ready=False, serving=True)
    state = state_of(dns_service(), dns_slice(ready, ending, answering("10.0.0.8", ready=False)))
    behind = [(address, port) for address in ("10.0.0.6", "10.0.0.7") for port in (5353, 5354)]
    assert resolvers(state) == [(DNS, 53), *behind]
    state.upsert(dns_slice(ready))
    assert resolvers(state) == [(DNS, 53), *behind[2:]]
    delete(state, dns_slice())
    assert resolvers(state) == [(DNS, 53)]
    state.upsert(dns_slice(ready))
    assert len(resolvers(state)) == 3
    state.upsert(k8s.endpoint_slice("kube-system/other", ready, ports=TARGETS, name="kube-dns-1"))
    assert resolvers(state) == [(DNS, 53)]
    delete(state, dns_service())
    assert resolvers(state) == []


def test_a_headless_dns_service_is_what_answers_behind_it() -> None:
    """It has no address of its own to ask."""
    headless = {**dns_service(), "spec": {"clusterIP": "None", "ports": list(DNS_PORTS)}}
    assert resolvers(state_of(headless, dns_slice(answering("10.0.0.7")))) == [("10.0.0.7", 5353), ("10.0.0.7", 5354)]


def test_without_slices_the_pods_of_the_dns_service_answer() -> None:
    """As a folder of manifests has it: at the named port of the container, and no longer once the pod is gone."""
    ports = [{"name": "dns", "containerPort": 5353, "protocol": "UDP"}]
    pod = k8s.pod("kube-system/coredns", "10.0.0.7", ports=ports, app="dns")
    state = state_of(dns_service(selector={"app": "dns"}), pod)
    assert resolvers(state) == [(DNS, 53), ("10.0.0.7", 5353)]
    delete(state, pod)
    assert resolvers(state) == [(DNS, 53)]


def test_another_backend_of_dns_is_one_changed_row_whatever_the_order() -> None:
    """The same slices in any order are the same bytes; one more backend moves the settings and nothing else."""
    slices = [dns_slice(answering(f"10.0.0.{n}"), name=f"dns-{n}") for n in (9, 10, 7, 8)]
    state, other = state_of(dns_service(), *slices), state_of(*reversed(slices), dns_service())
    assert state.rows()[wire.SUBJECT_CONFIG] == other.rows()[wire.SUBJECT_CONFIG]
    before = state.rows()
    state.upsert(dns_slice(answering("10.0.0.5"), name="dns-5"))
    moved = {subject for subject, body in state.rows().items() if before.get(subject) != body}
    assert {subject.split(".")[2] for subject in moved} == {"config", "frontend"}
    assert len(state.rows()[wire.SUBJECT_CONFIG]) - len(before[wire.SUBJECT_CONFIG]) < 100


def test_what_other_services_have_behind_them_leaves_the_settings_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings are made again for the DNS Service alone, not for each slice, Service and pod of a cluster."""
    state = state_of(dns_service(), dns_slice(answering("10.0.0.7")))
    state.rows()
    monkeypatch.setattr(State, "_write_config", lambda _: pytest.fail("made again"))
    state.upsert(k8s.service("app/web", "10.96.0.7", {"port": 53, "protocol": "UDP"}, selector={"app": "web"}))
    state.upsert(k8s.endpoint_slice("app/web", answering("10.0.0.1"), ports=TARGETS))
    state.upsert(k8s.pod("app/new", "10.0.0.1", app="web"))
    state.rows()


def test_more_than_fit_behind_the_dns_service_are_left_out_with_a_word() -> None:
    """The first 1,024 addresses and ports are trusted; how many are not is a problem of the Service."""
    crowd = [answering(f"10.1.{n // 250}.{n % 250 + 1}") for n in range(515)]
    state = state_of(dns_service(), dns_slice(*reversed(crowd)))
    assert len(resolvers(state)) == 1 + 1024
    (problem,) = state.problems()
    assert (problem.object, problem.severity) == ("Service kube-system/kube-dns", "warning")
    assert problem.message.startswith("6 of its backends")
    assert read_ground([], state.world, ()).resolvers == set(resolvers(state))
    state.upsert(dns_slice(*crowd[:512]))
    assert state.rows() and state.problems() == []


# -- last good --------------------------------------------------------------------------------------------------------


def test_a_refused_version_leaves_the_last_good_one_in_force() -> None:
    """A bad edit changes no row but is reported with its file and path; a good one ends the report."""
    state = state_of(*BASE, k8s.network_policy("p", ALLOW_ALL))
    before = state.rows()
    state.upsert(k8s.network_policy("p", BAD_PORT), file="p.yaml")
    assert state.rows() == before
    (problem,) = state.problems()
    assert (problem.file, problem.path) == ("p.yaml", "spec.egress[0].ports[0].port")
    state.upsert(k8s.network_policy("p", ALLOW_ALL))
    assert state.problems() == [] and state.rows() == before


def test_a_policy_too_large_to_remember_is_still_kept() -> None:
    """A spec that exceeds a row is in force with a warning, and a bad edit after it does not replace it."""
    blocks = [{"ipBlock": {"cidr": f"10.{n // 256}.{n % 256}.0/24"}} for n in range(20_000)]
    large = {"policyTypes": ["Egress"], "egress": [{"to": blocks}]}
    state = state_of(*BASE, k8s.network_policy("p", large))
    assert [problem.severity for problem in state.problems()] == ["warning"]
    before = state.rows()
    state.upsert(k8s.network_policy("p", BAD_PORT))
    assert state.rows() == before and [problem.severity for problem in state.problems()] == ["error"]


def test_the_last_good_version_survives_a_restart() -> None:
    """A controller that starts on a bad version takes the last accepted spec from the stream."""
    rows = state_of(*BASE, k8s.network_policy("p", ALLOW_ALL), k8s.settings(default="deny")).rows()
    state = State()
    state.restore(rows)
    for obj in (*BASE, k8s.network_policy("p", BAD_PORT), k8s.settings(default="maybe")):
        state.upsert(obj)
    assert diff(rows, state.rows()) == []
    assert len(state.problems()) == 2


def test_a_new_refused_policy_isolates_its_pods() -> None:
    """Without a last good version a namespaced policy whose pods can be told closes them, and says so."""
    state = state_of(*BASE, k8s.network_policy("p", BAD_PORT))
    closed = ruleset(state, endpoint(state, "app/web").egress)
    assert closed.isolated and closed.network_policy == ()
    assert {problem.severity for problem in state.problems()} == {"error", "warning"}
    assert not ruleset(state, endpoint(state, "app/web").ingress).isolated
    state.delete("NetworkPolicy", "app", "p")
    assert not ruleset(state, endpoint(state, "app/web").egress).isolated and state.problems() == []


def is_open(state: State) -> bool:
    return bool(ruleset(state, endpoint(state, "app/web").egress).network_policy)


@pytest.mark.parametrize("is_restarted", [False, True])
def test_the_last_good_version_is_that_of_the_same_object(is_restarted: bool) -> None:
    """A refused policy that took the name of a deleted one, which nobody saw go, isolates its pods: what was good was
    another object. Its own later versions keep its own good one."""
    state = state_of(*BASE, k8s.network_policy("p", ALLOW_ALL, uid="former"))
    if is_restarted:
        rows, state = state.rows(), State()
        state.restore(rows)
        for obj in BASE:
            state.upsert(obj)
    state.upsert(k8s.network_policy("p", BAD_PORT, uid="later"))
    fresh = state_of(*BASE, k8s.network_policy("p", BAD_PORT, uid="later"))
    assert not is_open(state) and state.policies == fresh.policies and state.problems() == fresh.problems()
    assert wire.subject_source("NetworkPolicy", "app", "p") not in state.rows()
    state.upsert(k8s.network_policy("p", ALLOW_ALL, uid="later"))
    state.upsert(k8s.network_policy("p", BAD_PORT, uid="later"))
    assert is_open(state) and len(state.problems()) == 1


def test_a_cluster_policy_that_took_a_deleted_ones_name_and_is_refused_is_in_force_in_no_version() -> None:
    """It has no pods that could be isolated; what its predecessor allowed is gone with it."""
    good, bad = {"egress": []}, {"egress": [{"action": "Sometimes"}]}
    state = state_of(*BASE, k8s.aws_cluster_policy("p", good, uid="former"))
    state.upsert(k8s.aws_cluster_policy("p", bad, uid="former"))
    assert [policy.uid for policy in state.policies] == ["former"]
    state.upsert(k8s.aws_cluster_policy("p", bad, uid="later"))
    assert state.policies == [] and {problem.path for problem in state.problems()} == {
        "spec.egress[0].action",
        "spec.egress[0].to",
    }


def test_what_a_broken_source_gave_can_be_kept_across_a_restart() -> None:
    """``adopt_unseen`` keeps policies of these kinds that the stream remembers and that nobody could show; otherwise
    they are gone."""
    rows = state_of(*BASE, k8s.network_policy("p", ALLOW_ALL)).rows()
    state = State()
    state.restore(rows)
    for obj in BASE:
        state.upsert(obj)
    assert wire.subject_source("NetworkPolicy", "app", "p") not in state.rows()
    assert state.adopt_unseen(KINDS - {"NetworkPolicy"}) == []
    assert state.adopt_unseen(KINDS) == [("NetworkPolicy", "app", "p")]
    assert diff(rows, state.rows()) == []


def test_problems_of_a_file_are_replaced_by_its_next_ones() -> None:
    """What is wrong with a whole file stays until the file is read again."""
    state = State()
    problem = state.upsert("no object", file="x.yaml")
    state.report_file("x.yaml", problem)
    assert state.problems() == problem and len(problem) == 1
    state.report_file("x.yaml", [])
    assert state.problems() == []


# -- budgets ----------------------------------------------------------------------------------------------------------


def ports_policy(name: str, count: int, first: int, created: str) -> Obj:
    rules = [{"ports": [{"port": first + n}]} for n in range(count)]
    return k8s.network_policy(name, {"policyTypes": ["Egress"], "egress": rules}, creationTimestamp=created)


def test_the_newest_policy_is_left_out_of_a_full_tier() -> None:
    """What overflows the NetworkPolicy tier is left out policy by policy, newest first, in any order of arrival."""
    old = ports_policy("z-old", RULES_NETWORK_POLICY - 1, 1000, "2026-01-01T00:00:00Z")
    new = ports_policy("a-new", 2, 5000, "2026-01-02T00:00:00Z")
    for order in ((old, new), (new, old)):
        state = state_of(*BASE, *order)
        full = ruleset(state, endpoint(state, "app/web").egress)
        assert len(full.network_policy) == RULES_NETWORK_POLICY - 1 and len(full.isolated_by) == 2
        (problem,) = state.problems()
        assert problem.object == "NetworkPolicy app/a-new" and "256" in problem.message
        delete(state, old)
        assert len(ruleset(state, endpoint(state, "app/web").egress).network_policy) == 2 and state.problems() == []


def test_an_admin_policy_that_does_not_fit_is_refused_for_all() -> None:
    """The 193rd Admin rule of some pod refuses its whole policy, says so, and no other tier gives or takes room."""

    def denies(name: str, count: int, first: int, created: str) -> Obj:
        ports = [[{"portNumber": {"protocol": "TCP", "port": first + n}}] for n in range(count)]
        rules = [{"action": "Deny", "to": [{"namespaces": {}}], "ports": port} for port in ports]
        return k8s.aws_cluster_policy(name, {"egress": rules}, creationTimestamp=created)

    old = denies("old", RULES_ADMIN // 2, 1000, "2026-01-01T00:00:00Z")
    older = denies("older", RULES_ADMIN // 2, 2000, "2025-12-31T00:00:00Z")
    new = denies("new", 1, 5000, "2026-01-02T00:00:00Z")
    tenant = ports_policy("tenant", RULES_NETWORK_POLICY, 1, "2025-01-01T00:00:00Z")
    for order in ((old, older, new, tenant), (tenant, new, old, older)):
        state = state_of(*BASE, *order)
        full = ruleset(state, endpoint(state, "app/web").egress)
        assert (len(full.admin), len(full.network_policy)) == (RULES_ADMIN, RULES_NETWORK_POLICY)
        (problem,) = state.problems()
        assert problem.object.endswith("new") and "192" in problem.message
        delete(state, old)
        rules = ruleset(state, endpoint(state, "app/web").egress).admin
        assert len(rules) == RULES_ADMIN // 2 + 1 and state.problems() == []


def test_identical_rules_share_a_bit_and_keep_their_names() -> None:
    """Two policies that say the same take one rule between them; both are named, the first by name first."""
    state = state_of(*BASE, ports_policy("b", 1, 80, ""), ports_policy("a", 1, 80, ""))
    (rule,) = ruleset(state, endpoint(state, "app/web").egress).network_policy
    assert [source.name for source in rule.sources] == ["a", "b"]


def test_many_peers_travel_apart() -> None:
    """A rule of more than a thousand peers goes to peersets, each under the size of a row."""
    blocks = [{"ipBlock": {"cidr": f"10.{n // 256}.{n % 256}.0/24"}} for n in range(20_000)]
    state = state_of(*BASE, k8s.network_policy("p", {"policyTypes": ["Egress"], "egress": [{"to": blocks}]}))
    rows = state.rows()
    sizes = [len(body) for subject, body in rows.items() if ".peerset." in subject]
    assert len(sizes) == 20 and max(sizes) < wire.MAX_ROW_BYTES and missing(rows) == set()
    state.delete("NetworkPolicy", "app", "p")
    assert not [subject for subject in state.rows() if ".peerset." in subject]


def test_a_domain_rule_publishes_its_pattern_while_it_governs_somebody() -> None:
    """Patterns in force are rows; one that governs no pod any more is withdrawn."""
    spec = {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"]}
    spec["egress"] = [{"to": [{"domainNames": ["*.example.com"]}]}]
    state = state_of(*BASE, k8s.application_policy("p", spec))
    subject = wire.subject_domain("*.example.com")
    assert subject in state.rows()
    assert ruleset(state, endpoint(state, "app/web").egress).dns_implicit
    delete(state, WEB)
    assert subject not in state.rows()
