"""What a scenario may say, and how faults are told."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.terms import Verdict
from services.controller.policy.model import Answer
from services.scenario.model import End, ScenarioError, read_scenario

GOOD: dict[str, Any] = {"id": "a", "from": {"pod": "app/web"}, "to": {"address": "10.0.0.1"}, "port": 80}


def read_probe(**changes: Any) -> Any:
    document = {"name": "s", "probes": [{key: value for key, value in (GOOD | changes).items() if value is not None}]}
    return read_scenario(document).probes[0]


def faults_of(document: Any) -> list[str]:
    with pytest.raises(ScenarioError) as raised:
        read_scenario(document, default_name="s")
    return list(raised.value.faults)


def test_every_field_is_read() -> None:
    """Objects and files stay as they are; settings become text, resolutions answers, probes flows."""
    scenario = read_scenario(
        {
            "name": "all",
            "objects": [{"kind": "Pod"}],
            "files": ["a.yaml"],
            "config": {"default": "deny", "dns_implicit": False, "pod-cidrs": ["10.0.0.0/8", "fd00::/8"], "ttl-min": 5},
            "resolutions": [{"name": "X.Example.com.", "addresses": ["192.0.2.1"], "ttl": 60, "at": -5}],
            "probes": [GOOD],
            "expect_problems": ["spec.egress[0]"],
        }
    )
    assert scenario.config == {
        "default": "deny",
        "dns-implicit": "false",
        "pod-cidrs": "10.0.0.0/8 fd00::/8",
        "ttl-min": "5",
    }
    assert scenario.resolutions == (Answer(name="x.example.com", addresses=("192.0.2.1",), ttl_seconds=60, at=-5),)
    assert (scenario.objects, scenario.files) == (({"kind": "Pod"},), ("a.yaml",))
    assert scenario.expect_problems == ("spec.egress[0]",)


@pytest.mark.parametrize(
    ("given", "end"),
    [
        ({"pod": "app/web"}, End(pod=("app", "web"))),
        ({"pod": "app/web", "address": "FD00::1"}, End(pod=("app", "web"), address="fd00::1")),
        ({"address": "::ffff:10.0.0.1"}, End(address="10.0.0.1")),
        ({"service": "app/web"}, End(service=("app", "web"))),
        ({"name": "Example.com."}, End(name="example.com")),
        ({"name": "example.com", "address": "192.0.2.1"}, End(name="example.com", address="192.0.2.1")),
    ],
)
def test_an_end_is_a_pod_an_address_a_service_or_a_name(given: dict[str, str], end: End) -> None:
    """An address stands alone, or says which of a pod's or a name's is meant."""
    assert read_probe(to=given).destination == end


@pytest.mark.parametrize(
    ("protocol", "number", "port"),
    [(None, 6, 80), ("udp", 17, 80), ("SCTP", 132, 80), ("ICMP", 1, 0), ("ICMPv6", 58, 0), (47, 47, 0), ("47", 47, 0)],
)
def test_protocols_by_name_or_number(protocol: Any, number: int, port: int) -> None:
    """TCP where nothing is said; a protocol without ports has none."""
    probe = read_probe(protocol=protocol)
    assert (probe.protocol, probe.port) == (number, port)


def test_what_is_left_out() -> None:
    """Without an id its place counts, without a time all answers are there, without an expectation anything goes."""
    probe = read_probe(id=None)
    assert (probe.id, probe.at, probe.expect) == (0, None, None)
    assert read_probe(expect="deny", at=3).expect is Verdict.DENY


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"expect": "maybe"}, "probes[0].expect: 'maybe' is none of deny, allow, audit"),
        ({"protocol": "QUIC"}, "probes[0].protocol: 'QUIC' is none of TCP, UDP, SCTP, ICMP, ICMPv6 and no number"),
        ({"port": None}, "probes[0].port: required"),
        ({"port": 70000}, "probes[0].port: 70000 is out of range 1..65535"),
        ({"from": None}, "probes[0].from: required"),
        ({"from": {"service": "app/web"}}, "probes[0].from.service: only a destination can be one"),
        ({"from": {"name": "example.com"}}, "probes[0].from.name: only a destination can be one"),
        ({"to": {}}, "probes[0].to: give one of pod, service, name or address"),
        ({"to": {"pod": "a/b", "name": "x.y"}}, "probes[0].to: give one of pod, service, name or address"),
        ({"to": {"pod": "web"}}, "probes[0].to.pod: 'web' is not namespace/name"),
        ({"to": {"address": "10.0.0"}}, "probes[0].to.address: '10.0.0' is not an IP address"),
        ({"to": {"pods": "a/b"}}, "probes[0].to.pods: unknown field"),
        ({"at": "soon"}, "probes[0].at: seconds are expected"),
        ({"at": float("inf")}, "probes[0].at: seconds are expected"),
        ({"id": ["a"]}, "probes[0].id: a word or a number is expected, not a list"),
        ({"id": True}, "probes[0].id: a word or a number is expected, not a boolean"),
        ({"to": {"name": ""}}, "probes[0].to.name: '' is no DNS name"),
        ({"to": {"name": "a..example.com"}}, "probes[0].to.name: 'a..example.com' is no DNS name"),
        ({"expected": "deny"}, "probes[0].expected: unknown field; is expect meant?"),
    ],
)
def test_faults_are_told_with_their_path(change: dict[str, Any], fault: str) -> None:
    """One line each; a misspelled field is a fault, since a lost expectation would pass."""
    probe = {key: value for key, value in (GOOD | change).items() if value is not None}
    assert any(line.startswith(fault) for line in faults_of({"probes": [probe]})), faults_of({"probes": [probe]})


@pytest.mark.parametrize(
    "name", ["", "*.example.com", "a b.example.com", f"{'x' * 64}.com", "ä.example.com", "a.com.."]
)
def test_a_resolution_is_of_a_name_that_may_travel(name: str) -> None:
    """No agent would hear of another, so none may seem to be learned."""
    (fault,) = faults_of({"resolutions": [{"name": name, "addresses": ["192.0.2.1"]}]})
    assert fault.startswith(f"resolutions[0].name: {name!r} is no DNS name")


def test_an_id_given_twice_is_told() -> None:
    """Its results cannot be told apart by it."""
    scenario = read_scenario({"probes": [GOOD, {**GOOD, "id": 1.5}, GOOD]})
    assert scenario.warnings == ("probes: the id 'a' is given 2 times",)
    assert [probe.id for probe in scenario.probes] == ["a", 1.5, "a"]


def test_a_manifest_is_no_scenario() -> None:
    """Its fields would be passed over one by one, and nothing be tested."""
    assert faults_of({"apiVersion": "v1", "kind": "Pod"}) == ["a Kubernetes object, not a scenario: name it in files"]


def test_all_faults_are_told_at_once() -> None:
    """Whoever mends a file need not run it once a fault."""
    assert len(faults_of({"probes": [{**GOOD, "port": 0, "expect": "x"}], "resolutions": [{"ttl": -1}]})) >= 4


def test_a_scenario_is_an_object() -> None:
    """Anything else is told so."""
    assert faults_of("x") == ["a scenario is an object with objects and probes"]


def test_fields_of_others_are_passed_over() -> None:
    """A comment field is no fault, but it is said that it was not read."""
    scenario = read_scenario({"name": "s", "ticket": "ABC-1", "probes": [{**GOOD, "description": "why"}]})
    assert len(scenario.warnings) == 1 and scenario.warnings[0].startswith("ticket: unknown field, ignored")
