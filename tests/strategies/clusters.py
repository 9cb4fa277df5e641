"""Random clusters: namespaces, nodes, pods as odd as pods can be, Services with every face, settings."""

from __future__ import annotations

from tests import builders as k8s
from tests.strategies.dice import Dice, Obj, is_rare
from tests.strategies.pools import (
    BALANCER,
    CROWD,
    DNS_BACKENDS,
    DNS_SERVICE,
    DNS_TARGETS,
    EXTERNAL,
    HOST_PORT,
    NAMESPACES,
    NODE_PORT,
    NODES,
    OTHER_RESOLVER,
    OUTSIDE,
    POD_ADDRESSES,
    POD_ADDRESSES_6,
    SERVICES,
    SERVICES_6,
    SLICED,
)

DEFAULT_ANNOTATION = "yett.dev/default"
NODE_CLASS_LABEL = "eks.amazonaws.com/nodeclass"
MANY = 64
"""Distinct backends that are judged together."""


def make_cluster(dice: Dice) -> list[Obj]:
    """Always the same nodes and Service addresses."""
    objects = _make_namespaces(dice) + _make_nodes(dice)
    objects += [make_pod(dice, index) for index in range(dice.pick((4, len(POD_ADDRESSES), 6)))]
    objects += _make_odd_pods(dice) + _make_services(dice)
    return [*objects, k8s.settings(**_make_settings(dice))]


def _make_namespaces(dice: Dice) -> list[Obj]:
    teams: tuple[dict[str, str], ...] = ({}, {"team": "x"}, {"team": "y"})
    # The last one sometimes has no object: its pods know its name alone.
    shown = NAMESPACES[:-1] if is_rare(dice, 6) else NAMESPACES
    objects = [k8s.namespace(name, **dice.pick(teams)) for name in shown]
    asked = dice.pick(("", "", "deny", "allow", "audit"))
    if asked:
        objects[0]["metadata"]["annotations"] = {DEFAULT_ANNOTATION: asked}
    return objects


def _make_nodes(dice: Dice) -> list[Obj]:
    objects = []
    for name, addresses in NODES.items():
        node = k8s.node(name, *addresses, **dice.pick(({}, {"zone": "p"}, {"zone": "q"})))
        if is_rare(dice, 6):
            node["metadata"]["annotations"] = {DEFAULT_ANNOTATION: dice.pick(("deny", "allow", "audit"))}
        objects.append(node)
    if is_rare(dice, 6):
        objects[0]["metadata"]["labels"][NODE_CLASS_LABEL] = "own"
        spec = {"networkPolicy": dice.pick(("DefaultDeny", "DefaultAllow"))}
        objects.append(k8s.policy("eks.amazonaws.com/v1", "NodeClass", "own", spec))
    return objects


def _make_settings(dice: Dice) -> dict[str, str]:
    data = {"default": dice.pick(("allow", "deny", "allow", "deny", "audit"))}
    if dice.pick((False, True)):
        data |= {"pod_cidrs": "10.244.0.0/16 fd00::/64", "service_cidrs": "10.100.0.0/16"}
    odd = {
        "namespace_defaults": ("app=deny", "db=allow team.one=audit"),
        "node_defaults": ("node-a=deny", "node.b=allow"),
        "dns_implicit": ("false",),
        "resolvers": (f"{OTHER_RESOLVER}:53", f"{DNS_SERVICE} {OTHER_RESOLVER}:5353"),
        "grace": ("0", "300"),
        "ttl_max": ("60",),
        "learn_anyway": ("169.254.169.254/32 10.100.0.0/16",),
        "never_learn": ("198.51.100.0/24",),
    }
    for key, values in odd.items():
        if is_rare(dice, 12):
            data[key] = dice.pick(values)
    return data


# ---------------------------------------------------------------------------------------------------------------------
# Pods


def make_labels(dice: Dice) -> dict[str, str]:
    chosen = {"app": dice.pick(("", "x", "y")), "tier": dice.pick(("", "p", "q"))}
    return {key: value for key, value in chosen.items() if value}


def _make_ports(dice: Dice) -> list[Obj]:
    ports: list[Obj] = []
    number = dice.pick((0, 80, 8080))
    if number:
        ports.append({"name": "http", "containerPort": number})
    if dice.pick((False, True)):
        ports.append({"name": "dns", "containerPort": 53, "protocol": "UDP"})
    if is_rare(dice, 8):
        ports.append({"containerPort": 443, "hostPort": HOST_PORT})
    return ports


def make_pod(dice: Dice, index: int) -> Obj:
    obj = k8s.pod(
        f"{dice.pick(('app', *NAMESPACES))}/pod-{index}",
        POD_ADDRESSES[index],
        POD_ADDRESSES_6[index],
        node=dice.pick(tuple(NODES)),
        ports=_make_ports(dice),
        **make_labels(dice),
    )
    special = dice.pick((*[""] * 24, "Succeeded", "Failed", "hostNetwork", "hostNetwork", "one family", "unready"))
    if special in ("Succeeded", "Failed"):
        obj["status"]["phase"] = special
    elif special == "hostNetwork":
        obj["spec"]["hostNetwork"] = True
        obj["status"]["podIPs"] = [{"ip": "192.168.0.1"}]
    elif special == "one family":
        obj["status"]["podIPs"] = [{"ip": dice.pick((POD_ADDRESSES[index], POD_ADDRESSES_6[index]))}]
    elif special == "unready":
        obj["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
    return obj


def _make_odd_pods(dice: Dice) -> list[Obj]:
    """Without an address yet, and one that has taken over the address of another."""
    odd = []
    if is_rare(dice, 4):
        pending = k8s.pod("app/pending", ports=_make_ports(dice), **make_labels(dice))
        # An address that is none: a scenario gives an address to a pod that says nothing of its own.
        pending["status"]["podIPs"] = [{"ip": ""}]
        odd.append(pending)
    if is_rare(dice, 6):
        heir = k8s.pod("app/heir", POD_ADDRESSES[0], node="node.b", **make_labels(dice))
        heir["metadata"]["creationTimestamp"] = "2026-01-03T00:00:00Z"
        odd.append(heir)
    return odd


# ---------------------------------------------------------------------------------------------------------------------
# Services


def _make_services(dice: Dice) -> list[Obj]:
    selectors: dict[str, dict[str, str] | None] = {
        "web": {"app": dice.pick("xy")},
        "all": {"tier": dice.pick("pq")},
        "empty": {"none": "none"},
        "kube-dns": None,
    }
    objects = []
    for address, name in SERVICES.items():
        port: Obj = {"port": 80, "targetPort": dice.pick((80, 8080, "http"))}
        if name == "kube-dns":
            port = {"port": 53, "protocol": "UDP"}
        place = "kube-system" if name == "kube-dns" else "app"
        made = k8s.service(f"{place}/{name}", address, port, selector=selectors[name])
        six = [each for each, owner in SERVICES_6.items() if owner == name]
        made["spec"]["clusterIPs"] = [address, *six]
        objects.append(made)
    _open_outside(dice, objects[0])
    if dice.pick((False, True)):
        objects += _make_sliced(dice) + _make_dns_slices()
    if is_rare(dice, 10):
        objects += _make_crowd(MANY + dice.pick((0, 1)))
    return objects


def _open_outside(dice: Dice, service: Obj) -> None:
    """NodePort, external and load-balancer addresses, a second port; sometimes it claims a resolver's address."""
    spec = service["spec"]
    if dice.pick((False, True)):
        spec["type"] = "NodePort"
        spec["ports"][0]["nodePort"] = NODE_PORT
    if dice.pick((False, True)):
        spec["externalIPs"] = [EXTERNAL, OTHER_RESOLVER] if is_rare(dice, 4) else [EXTERNAL]
        service["status"] = {"loadBalancer": {"ingress": [{"ip": BALANCER}]}}
    if dice.pick((False, True)):
        spec["ports"][0]["name"] = "first"
        spec["ports"].append({"name": "second", "port": 53, "protocol": "UDP", "targetPort": dice.pick((53, "dns"))})


def _make_sliced(dice: Dice) -> list[Obj]:
    """Backends by EndpointSlice: pods and addresses outside, ready, serving, neither."""
    conditions: tuple[Obj, ...] = ({}, {"ready": False, "serving": True}, {"ready": False, "serving": False})
    addresses = (*POD_ADDRESSES[:4], *OUTSIDE[:2])
    endpoints = [
        {"addresses": [dice.pick(addresses)], "conditions": dice.pick(conditions)}
        for _ in range(dice.pick((1, 2, 0, 4)))
    ]
    service = k8s.service("db/sliced", SLICED, {"port": 443, "targetPort": 8080})
    return [service, k8s.endpoint_slice("db/sliced", *endpoints, ports=[{"port": 8080, "protocol": "TCP"}])]


def _make_crowd(count: int) -> list[Obj]:
    """As many distinct backends as can be judged together, or one more."""
    endpoints: list[Obj] = [{"addresses": [f"198.18.9.{n + 1}"]} for n in range(count)]
    ports = [{"port": 80, "protocol": "TCP"}]
    return [k8s.service("db/crowd", CROWD, {"port": 80}), k8s.endpoint_slice("db/crowd", *endpoints, ports=ports)]


def _make_dns_slices() -> list[Obj]:
    """What answers DNS, at ports of its own. Nothing is chosen: whose addresses these are differs from scene to scene,
    and each choice more is one more that hypothesis has to undo."""
    conditions: tuple[Obj, ...] = ({}, {"ready": False, "serving": True}, {"ready": False, "serving": False})
    endpoints = [{"addresses": [DNS_BACKENDS[n]], "conditions": each} for n, each in enumerate(conditions)]
    ports = [{"port": DNS_TARGETS[0], "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
    other = {"addresses": [DNS_BACKENDS[-1]]}
    return [
        k8s.endpoint_slice("kube-system/kube-dns", *endpoints, ports=ports, name="kube-dns-a"),
        k8s.endpoint_slice(
            "kube-system/kube-dns", other, ports=[{"port": DNS_TARGETS[1], "protocol": "UDP"}], name="kube-dns-b"
        ),
    ]
