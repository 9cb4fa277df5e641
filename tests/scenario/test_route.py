"""Which packets a probe makes, and where they are judged."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.terms import Direction
from services.scenario.route import Crossing, Route, RouteError, find_route
from services.scenario.world import build_cluster
from tests import builders as k8s
from tests.scenario.build import API, DB, NODE, OTHER_NODE, WEB, address, name, pod, probe, scenario, service

SERVICE = k8s.service("app/svc", "10.96.0.1", {"port": 80, "targetPort": 8080}, selector={"app": "api"})
OUTSIDE = "203.0.113.9"


def route(asked: Any, *objects: Any, **fields: Any) -> Route:
    made = scenario(*objects, probes=[asked], **fields)
    return find_route(build_cluster(made, [("", obj) for obj in made.objects]), made.probes[0], 0.0)


def show(crossing: Crossing) -> tuple[str, str, str, int]:
    return crossing.pod.name, crossing.packet.source, crossing.packet.destination, crossing.packet.port


def test_between_pods_both_judge() -> None:
    """Egress of the one, ingress of the other, the same packet."""
    found = route(probe(pod("app/web"), pod("data/db"), 5432))
    assert [show(each) for each in found.egress] == [("web", WEB, DB, 5432)]
    assert [show(each) for each in found.ingress] == [("db", WEB, DB, 5432)]


def test_an_address_that_is_a_pods_is_the_pod() -> None:
    """Whoever writes the address means who has it."""
    assert route(probe(address(WEB), address(DB))) == route(probe(pod("app/web"), pod("data/db")))


def test_outside_nobody_judges() -> None:
    """Only the pod's side is asked."""
    assert not route(probe(pod("app/web"), address(OUTSIDE))).ingress
    assert not route(probe(address(OUTSIDE), pod("app/web"))).egress


@pytest.mark.parametrize("protocol", [0, 43, 44, 51, 60])
def test_an_extension_header_is_no_protocol(protocol: int) -> None:
    """Over IPv6 these numbers say what comes before the protocol; over IPv4 they are protocols."""
    with pytest.raises(RouteError, match="extension header"):
        route(probe(pod("app/web", address="fd00::1"), address("2001:db8::1"), protocol=protocol))
    assert route(probe(pod("app/web"), address(OUTSIDE), protocol=protocol)).egress


def test_a_service_is_judged_as_it_is_at_egress_and_behind_it_at_ingress() -> None:
    """The packet bears the cluster address until it is translated."""
    found = route(probe(pod("app/web"), service("app/svc"), None), SERVICE)
    assert [show(each) for each in found.egress] == [("web", WEB, "10.96.0.1", 80)]
    assert [show(each) for each in found.ingress] == [("api", WEB, API, 8080)]
    assert found == route(probe(pod("app/web"), address("10.96.0.1")), SERVICE)


def test_every_backend_judges() -> None:
    """A flow may be sent to any of them."""
    both = k8s.service("app/svc", "10.96.0.1", {"port": 80}, selector={})
    both["spec"]["selector"] = {"kind": "backend"}
    pods = [k8s.pod(f"app/b{n}", f"10.0.2.{n}", kind="backend") for n in (1, 2)]
    found = route(probe(pod("app/web"), service("app/svc")), both, *pods)
    assert sorted(each.pod.name for each in found.ingress) == ["b1", "b2"]


def test_a_headless_service_is_its_backends() -> None:
    """The name resolves to pods, and nothing translates the port."""
    headless = k8s.service("app/svc", "None", {"port": 80, "targetPort": 8080}, selector={"app": "api"})
    found = route(probe(pod("app/web"), service("app/svc"), 9000), headless)
    assert [show(each) for each in found.egress] == [("web", WEB, API, 9000)]
    assert [show(each)[3] for each in route(probe(pod("app/web"), service("app/svc"), None), headless).egress] == [8080]


def test_a_node_port_leads_to_the_backends() -> None:
    """From outside only they judge; the source stays what it was."""
    exposed = {**SERVICE, "spec": {**SERVICE["spec"], "type": "NodePort"}}
    exposed["spec"]["ports"] = [{"port": 80, "targetPort": 8080, "nodePort": 30080}]
    found = route(probe(address(OUTSIDE), address(NODE), 30080), exposed)
    assert (found.egress, [show(each) for each in found.ingress]) == ((), [("api", OUTSIDE, API, 8080)])


@pytest.mark.parametrize(("source", "own"), [(NODE, True), (OTHER_NODE, False), (OUTSIDE, False)])
def test_the_own_node_is_known_by_its_address(source: str, own: bool) -> None:
    """A kubelet's probe is generated on the node of its pod."""
    assert [each.packet.from_own_node for each in route(probe(address(source), pod("app/web"))).ingress] == [own]


def test_a_host_network_pod_is_its_node() -> None:
    """It is not governed itself; to pods of its node it is the own node."""
    agent = k8s.pod("app/agent")
    agent["spec"]["hostNetwork"] = True
    found = route(probe(pod("app/agent"), pod("app/web")), agent)
    assert found.egress == ()
    assert [(show(each)[1], each.packet.from_own_node) for each in found.ingress] == [(NODE, True)]


def test_names_lead_to_all_their_addresses() -> None:
    """All must be allowed, those of the family that both ends have."""
    told = [{"name": "x.com", "addresses": ["192.0.2.1", "192.0.2.2", "2001:db8::1"]}]
    found = route(probe(pod("app/web"), name("x.com")), resolutions=told)
    assert [show(each)[2] for each in found.egress] == ["192.0.2.1", "192.0.2.2"]
    found = route(probe(pod("app/web"), name("x.com"), protocol="ICMPv6"), resolutions=told)
    assert [show(each)[2] for each in found.egress] == ["2001:db8::1"]


def test_a_pod_reaches_itself_without_an_interface() -> None:
    """Such a crossing is local."""
    found = route(probe(pod("app/web"), pod("app/web")))
    assert [each.is_local for each in found.egress] == [True]
    assert [each.direction for each in found.ingress] == [Direction.INGRESS]


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (probe(pod("app/none"), pod("app/web")), "there is no pod app/none"),
        (probe(pod("app/web", address="10.9.9.9"), pod("data/db")), "10.9.9.9 is none of the addresses of app/web"),
        (probe(pod("data/db"), address("2001:db8::1")), "data/db and 2001:db8::1 have no address of the same family"),
        (probe(pod("app/web"), service("app/none")), "there is no Service app/none"),
        (probe(pod("app/web"), service("app/two"), None), "port is required: Service app/two has 2 ports"),
        (
            probe(pod("app/web"), service("app/empty")),
            "Service app/empty leads nowhere: it is an ExternalName, or headless without a backend",
        ),
    ],
)
def test_a_probe_that_no_packet_can_be_made_of(asked: Any, why: str) -> None:
    """It is told why."""
    two = k8s.service("app/two", "10.96.0.2", {"name": "a", "port": 80}, {"name": "b", "port": 81})
    empty = k8s.service("app/empty", "None", {"port": 80}, selector={"app": "nobody"})
    with pytest.raises(RouteError, match=why):
        route(asked, two, empty)
