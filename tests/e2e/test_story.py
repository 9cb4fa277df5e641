"""One verdict, one story: from a denied or allowed curl to the change that decided and the answer that named it.

Three kinds of processes on two nodes, and a receiver of OTLP that is not ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.message
import jsonschema
import nats
import pytest

from schemas import wire
from schemas.terms import Verdict
from schemas.verdict import NameRefused
from services.common.bus import wait_for
from services.common.metrics import Family
from services.common.nats import flush
from services.demo import objects, topology
from services.demo.figures import FreshNames, ask, open_questions
from services.demo.pipeline import agent_name
from services.demo.state import is_alive
from services.demo.traffic import Traffic
from services.nodeagent.metrics import MAP_REFUSED
from services.story.record import RECEIVER, find_spans, start_receiver, tracing
from services.story.spans import Span, Spans
from tests.docs.test_metrics import FAMILIES, RULES, list_queries
from tests.e2e.conftest import Running, start_running
from tests.e2e.onenode import until
from tests.e2e.prometheus import SERVICES, Prometheus

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

WITHOUT_CAUSE = (MAP_REFUSED,)
"""Metrics that have no series in a run without a fault."""
ASKER, USER, STRANGER = (topology.find_pod(key) for key in ("figures/prober", "figures/prober-b", "app/curl-frontend"))
SWITCH = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: change-{number}, namespace: app}}
spec:
  podSelector: {{}}
  policyTypes: [Egress]
  egress:
    - to: [{{ipBlock: {{cidr: "203.0.113.{number}/32"}}}}]
    - ports: [{{protocol: UDP, port: 53}}]
"""


@pytest.fixture(scope="module")
def traced() -> Iterator[Running]:
    """A pipeline whose spans go to the receiver, every allowed flow's among them."""

    def before_services(running: Running) -> None:
        start_receiver(running.demo.lab)
        settings.enter_context(tracing(running.demo.run))

    with contextlib.ExitStack() as settings, start_running(before_services) as running:
        running.apply("figures.yaml")
        yield running


@pytest.fixture
def spans(traced: Running) -> Spans:
    return find_spans(traced.demo.run)


def connect(running: Running, pod: topology.Pod, address: str, name: str) -> bool:
    return running.run(Traffic(running.demo.lab).connect(pod, name, 80, address)).is_open


def resolve(running: Running, pod: topology.Pod, name: str) -> None:
    with open_questions(running.demo.lab, pod) as questions:
        ask(questions, name)


def find_verdict(spans: Spans, pod: topology.Pod, address: str, verdict: Verdict) -> Span:
    wanted = {"k8s.pod.name": pod.name, "destination.address": address, "yett.verdict": verdict.name.lower()}
    return spans.find(f"{verdict.name} of {pod.key}", lambda one: wanted.items() <= one.attributes.items())


def test_a_denied_curl_leads_to_the_change_of_the_revision_in_force(traced: Running, spans: Spans) -> None:
    """Verdict -> application of that very revision on that node -> publication -> the manifest that changed."""
    revision = traced.apply("change-7.yaml", SWITCH.format(number=7))
    assert not connect(traced, STRANGER, "203.0.113.9", "203.0.113.9")
    verdict = find_verdict(spans, STRANGER, "203.0.113.9", Verdict.DENY)
    assert verdict.attributes["k8s.namespace.name"] == "app"
    assert verdict.attributes["network.transport"] == "tcp"
    assert int(verdict.attributes["destination.port"]) == 80
    assert verdict.attributes["yett.policy"] == "app/change-7"
    applied = spans.linked(verdict)["apply revision"]
    assert int(applied.attributes["yett.revision"]) == int(verdict.attributes["yett.revision"]) == revision
    assert applied.attributes["k8s.node.name"] == verdict.attributes["k8s.node.name"] == STRANGER.node.name
    published = spans.parent(applied)
    changed = spans.parent(published)
    assert (published.name, changed.name) == ("publish revision", "objects changed")
    assert "NetworkPolicy app/change-7" in str(changed.attributes["yett.objects"])


def test_a_change_is_one_trace_with_an_application_on_each_node(traced: Running, spans: Spans) -> None:
    """Watched, parsed, compiled, published, applied twice: all under one trace id."""
    revision = traced.apply("change-8.yaml", SWITCH.format(number=8))
    for node in topology.NODES:
        wanted = {"yett.revision": str(revision), "k8s.node.name": node.name}
        applied = spans.find(
            f"application on {node.name}",
            lambda one, wanted=wanted: one.name == "apply revision" and wanted.items() <= one.attributes.items(),
        )
        for name in ("objects changed", "parse objects", "compile policies", "publish revision"):
            spans.find(name, lambda one, name=name, trace=applied.trace: (one.name, one.trace) == (name, trace))


def test_an_allowed_name_leads_to_the_answer_on_the_other_node(traced: Running, spans: Spans) -> None:
    """Verdict on one node -> lesson there -> publication -> the last answer that was news, on the node that asked."""
    names = FreshNames()
    name, address = names.take()
    resolve(traced, ASKER, name)
    deadline = time.monotonic() + 10
    while not connect(traced, USER, address, name):
        assert time.monotonic() < deadline, "the name did not reach the other node"
    verdict = find_verdict(spans, USER, address, Verdict.ALLOW)
    assert verdict.attributes["dns.question.name"] == name
    assert verdict.attributes["yett.learned_by"] == ASKER.node.name
    learned = spans.linked(verdict)["learn name"]
    assert learned.attributes["k8s.node.name"] == USER.node.name
    published = spans.parent(learned)
    answered = spans.parent(published)
    assert (published.name, answered.name) == ("publish resolution", "dns answer")
    assert answered.attributes["dns.question.name"] == name


def test_a_name_of_ones_own_leads_to_ones_own_answer(traced: Running, spans: Spans) -> None:
    """On the node that asked, the verdict is linked with the recorder's span itself; a denial is too."""
    names = FreshNames()
    name, address = (names.take(), names.take())[1]
    resolve(traced, ASKER, name)
    assert connect(traced, ASKER, address, name)
    linked = spans.linked(find_verdict(spans, ASKER, address, Verdict.ALLOW))
    assert linked["dns answer"].attributes["dns.question.name"] == name
    resolve(traced, STRANGER, name)
    assert not connect(traced, STRANGER, address, name)
    denied = find_verdict(spans, STRANGER, address, Verdict.DENY)
    assert denied.attributes["dns.question.name"] == name
    assert spans.linked(denied)["dns answer"].attributes["dns.question.name"] == name


def test_the_receiver_may_die_and_come_back(traced: Running, spans: Spans) -> None:
    """Verdicts go on without it, and the next ones reach the one that is started again."""
    receiver = next(one for one in reversed(traced.demo.run.state.processes) if one.name == RECEIVER)
    os.kill(receiver.pid, signal.SIGKILL)
    assert not connect(traced, STRANGER, "203.0.113.21", "203.0.113.21")
    heard = traced.run(find_heard(traced, "203.0.113.21"))
    assert heard and not is_alive(receiver)
    start_receiver(traced.demo.lab)
    assert not connect(traced, STRANGER, "203.0.113.22", "203.0.113.22")
    find_verdict(spans, STRANGER, "203.0.113.22", Verdict.DENY)


async def find_heard(running: Running, address: str) -> bool:
    """Whether a verdict on an address was published."""
    bus = running.demo.bus
    found = await wait_for(lambda: bus.find_verdicts(0, lambda event: event.destination_address == address), 10)
    return bool(found)


@pytest.fixture(scope="module")
def prometheus(traced: Running) -> Prometheus:
    """One that has scraped every service at least twice while there was traffic."""
    if shutil.which("prometheus") is None:
        pytest.skip("no prometheus here: apt-get install prometheus")
    started = Prometheus(traced)
    started.await_result("count_over_time(up[1m]) > 2", SERVICES)
    assert not connect(traced, STRANGER, "203.0.113.31", "203.0.113.31")
    traced.apply("change-9.yaml", SWITCH.format(number=9))
    started.await_result('yett_verdicts_total{verdict="deny"} > 0')
    return started


def test_prometheus_scrapes_every_service(prometheus: Prometheus) -> None:
    """The controller, and an agent and a recorder a node."""
    assert [one["value"][1] for one in prometheus.await_result("up == 1", SERVICES)] == ["1"] * SERVICES


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_documented_metric_is_there_after_a_run(prometheus: Prometheus, family: Family) -> None:
    """With the labels that are documented; those of refused writes only where a write was refused."""
    if family in WITHOUT_CAUSE:
        assert prometheus.query(family.name) == []
        return
    name = f"{family.name}_bucket" if family.kind == "histogram" else family.name
    series = prometheus.await_result(name)
    own = {"__name__", "instance", "job", "le"}
    assert {label for one in series for label in one["metric"]} - own == set(family.labels)


@pytest.mark.parametrize("query", list_queries())
def test_every_query_of_the_dashboard_has_a_result(prometheus: Prometheus, query: str) -> None:
    """Against what a real Prometheus scraped from a real run."""
    assert prometheus.await_result(query)


def test_every_alert_can_be_evaluated(prometheus: Prometheus) -> None:
    """Each that is shipped; and a healthy pipeline fires none."""
    rules = prometheus.list_rules()
    shipped = re.findall(r"^ *- alert: (\w+)$", RULES.read_text(), re.M)
    assert shipped and [rule["name"] for rule in rules] == shipped
    assert {rule["name"]: rule["state"] for rule in rules if rule["health"] == "err" or rule["state"] == "firing"} == {}


def test_an_allowed_name_with_a_sinkholes_address_is_an_event_of_its_own(traced: Running) -> None:
    """Policy allows the name, the resolver answers with an address that no name may have: the bus says which it was."""
    before = traced.revision()
    traced.demo.folder.write_config({"never-learn": "198.19.200.0/24"})
    traced.settle(before)
    name = f"n198-19-200-1.{topology.FRESH_ZONE}"

    async def hear() -> NameRefused:
        client = await nats.connect(traced.demo.run.state.nats_url)
        heard = await client.subscribe("yett.name_refused.>")
        await flush(client)
        await asyncio.to_thread(resolve, traced, ASKER, name)
        message = await heard.next_msg(timeout=20)
        await client.close()
        refused = wire.decode(message.subject, message.data)
        assert isinstance(refused, NameRefused)
        return refused

    refused = traced.run(hear())
    assert (f"{refused.namespace}/{refused.pod}", refused.name) == (ASKER.key, name)
    assert refused.addresses == ("198.19.200.1",)
    assert not connect(traced, ASKER, "198.19.200.1", name)


def test_a_name_that_dns_refuses_is_told_apart_from_a_shut_gate(traced: Running) -> None:
    """NXDOMAIN, REFUSED, no address: events, lines of ``yett flows`` and of ``yett explain``, each with what DNS said.

    Not told: an empty AAAA beside a good A, and the same names asked by a pod that no rule lets use them.
    """
    missing = f"missing.{topology.FRESH_ZONE}"
    expected = {missing: "nxdomain", topology.REFUSED_NAME: "refused", topology.EMPTY_NAME: "no_address"}
    good, _ = FreshNames().take()
    lab, bus = traced.demo.lab, traced.demo.run.state.nats_url
    traced.apply("change-11.yaml", SWITCH.format(number=11))  # the other pod may ask, and may use none of the names

    async def hear() -> dict[str, str]:
        client = await nats.connect(bus)
        heard = await client.subscribe("yett.name_refused.>")
        await flush(client)
        await asyncio.to_thread(ask_all)
        told = {}
        while len(told) < len(expected):
            message = await heard.next_msg(timeout=20)
            event = wire.decode(message.subject, message.data)
            assert isinstance(event, NameRefused) and f"{event.namespace}/{event.pod}" == ASKER.key
            told[event.name] = str(event.reason)
        await client.close()
        return told

    def ask_all() -> None:
        with open_questions(lab, STRANGER) as strange, open_questions(lab, ASKER) as questions:
            ask(strange, missing)
            ask(questions, good)
            questions.send(dns.message.make_query(good, "AAAA").to_wire())
            for name in expected:
                ask(questions, name)

    assert traced.run(hear()) == expected
    flows = ("flows", "--since", "1m", "--verdict", "name_refused", "--name", missing)
    (line,) = run_yett(bus, *flows).stdout.splitlines()
    assert f"{ASKER.key} -> {missing}: the gate is open, DNS said NXDOMAIN by {topology.DNS_SERVICE}" in line
    explained = run_yett(bus, "explain", "--from", ASKER.key, "--to", f"{missing}:80")
    assert f"nobody has resolved {missing}" in explained.stderr and "DNS said NXDOMAIN" in explained.stderr
    shut = run_yett(bus, "explain", "--from", STRANGER.key, "--to", f"{missing}:80")
    assert f"nobody has resolved {missing}" in shut.stderr and "DNS said" not in shut.stderr


USED = """\
apiVersion: networking.k8s.aws/v1alpha1
kind: ApplicationNetworkPolicy
metadata: {name: wide, namespace: app}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
    - to: [{domainNames: ["*.fresh.example.net"]}]
    - to: [{domainNames: ["*.nobody.example.net"]}]
"""


def ask_audit(running: Running, *words: str) -> list[dict[str, Any]]:
    answered = run_yett(running.demo.run.state.nats_url, "audit", *words, "--output", "json")
    return json.loads(answered.stdout) if answered.returncode == 0 else []


def ask_uses(running: Running, since: str) -> dict[str, str]:
    """Rule of the policy -> its use."""
    rules = ask_audit(running, "unused", "--since", since, "--all")
    return {one["rule"]: one["use"] for one in rules if one["policy"].endswith(" app/wide")}


def find_names(running: Running) -> set[tuple[str, int]]:
    """(name, port) of what the pod reached by name."""
    found = [one["usage"] for one in ask_audit(running, "pods", STRANGER.key) if one["usage"]]
    contacts = [contact for usage in found for contact in usage.get("contacts", ())]
    return {(one["peer"], one["port"]) for one in contacts if one["kind"] == "name"}


def test_what_a_pod_did_becomes_a_policy_that_allows_it_and_no_more(traced: Running) -> None:
    """Real connections, counted by the kernel: the used rule is used, the other is not, and the recommended policy in
    place of the wide one lets the same connection through and stops another that the wide one would have let through.
    """
    (seen, seen_address), (other, other_address) = topology.fresh_name(400), topology.fresh_name(401)
    traced.apply("usage.yaml", USED)
    resolve(traced, STRANGER, seen)
    assert connect(traced, STRANGER, seen_address, seen)
    until(lambda: find_names(traced) == {(seen, 80)}, 30, "the contact is reported")
    assert ask_uses(traced, "1h") == {"egress[0]": "used", "egress[1]": "unproven"}
    until(lambda: ask_uses(traced, "2s") == {"egress[0]": "unused", "egress[1]": "unused"}, 30, "all is quiet")
    bus = traced.demo.run.state.nats_url
    recommended = run_yett(bus, "audit", "recommend", STRANGER.key)
    assert recommended.returncode == 0 and seen in recommended.stdout, recommended.stderr
    traced.apply("usage.yaml", recommended.stdout)
    resolve(traced, STRANGER, seen)
    assert connect(traced, STRANGER, seen_address, seen)
    resolve(traced, STRANGER, other)
    assert not connect(traced, STRANGER, other_address, other)


FLOW_LOG = {
    "YETT_FLOW_LOG_LABELS": "role=frontend",
    "YETT_FLOW_LOG_PODS": "app/curl-*",
    "YETT_FLOW_LOG_OWNERS": "StatefulSet/*",
}
"""Whose flows are logged: pods that all of them choose."""
OWNER = {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "curl", "uid": "1", "controller": True}


def own_pods(running: Running, *owned: topology.Pod) -> None:
    """These pods are a StatefulSet's, as their objects say."""
    cluster = objects.make_cluster()
    for one in cluster:
        if one["kind"] == "Pod" and one["metadata"]["name"] in {pod.name for pod in owned}:
            one["metadata"]["ownerReferences"] = [OWNER]
    running.demo.folder.write("01-cluster.yaml", objects.render(cluster))


def restart_agent(running: Running, node: topology.Node, own: dict[str, str]) -> None:
    """Ended as a kubelet ends it, and started with other settings."""
    agent = running.demo.pipeline.processes[agent_name(node)]
    os.kill(agent.pid, signal.SIGTERM)
    until(lambda: not is_alive(agent), 10, "the agent ends")
    running.demo.pipeline.start_agent(node, own)


def read_flow_log(folder: Path) -> list[dict[str, Any]]:
    """All lines of a log and its rotated files."""
    return [json.loads(line) for path in folder.glob("flows.log*") for line in path.read_text().splitlines()]


def test_flow_logs_hold_what_the_settings_chose(traced: Running) -> None:
    """Two agents, a file that is rotated and standard output in CloudWatch's form, real denials: pods are chosen by
    name, label and owner, lines bear what the cluster's settings ask for, and fit the published schema."""
    run, before = traced.demo.run, traced.revision()
    folder = run.folder / "flow-log"
    folder.mkdir()
    own_pods(traced, STRANGER, topology.find_pod("app/curl-backend"))
    traced.demo.folder.write_config({"flow-labels": "role", "flow-owners": "true"})
    traced.settle(before)
    to_file = {"YETT_FLOW_LOG": str(folder / "flows.log"), "YETT_FLOW_LOG_MAX_BYTES": "2000"}
    restart_agent(traced, topology.NODE_A, {**FLOW_LOG, **to_file})
    restart_agent(traced, topology.NODE_B, {"YETT_FLOW_LOG": "stdout", "YETT_FLOW_LOG_FORMAT": "emf"})
    traced.apply("change-12.yaml", SWITCH.format(number=12))
    others = [topology.find_pod(key) for key in ("app/curl-backend", "app/curl-frontend.b")]
    for number in range(41, 47):
        address = f"203.0.113.{number}"
        assert not any(connect(traced, pod, address, address) for pod in (*others, STRANGER))
    until(lambda: len(read_flow_log(folder)) >= 6, 20, "the denials are logged")
    lines, schema = read_flow_log(folder), wire.export_json_schema()
    assert (folder / "flows.log.1").exists()
    for line in lines:
        jsonschema.validate(line, {**schema, "$ref": "#/$defs/FlowLog"})
    assert {(one["pod"], one["verdict"], one["owner"], str(one["labels"])) for one in lines} == {
        (STRANGER.name, "deny", "StatefulSet/curl", str({"role": "frontend"}))
    }
    printed = (run.logs / f"{agent_name(topology.NODE_B)}.log").read_text().splitlines()
    counted = [json.loads(line) for line in printed if line.startswith('{"_aws"')]
    mine = [one for one in counted if one["pod"] == others[1].name and one["verdict"] == "deny"]
    assert mine and all(one["Verdicts"] == one["count"] for one in mine if "count" in one)
    assert mine[0]["labels"] == {"role": "frontend"} and "owner" not in mine[0]


def run_yett(nats_url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, against the run's server."""
    command = [sys.executable, "-m", "services.cli", *arguments, "--nats", nats_url]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
