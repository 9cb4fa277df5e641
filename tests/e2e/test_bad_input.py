"""Bad input is refused whole and said aloud; what was good before stays in force, and nothing falls over."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import nats
import pytest

from services.common.nats import flush
from services.demo import topology
from services.demo.folder import read_manifest
from services.demo.servers import read_log_end
from services.demo.traffic import Traffic
from tests.e2e.conftest import Running

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

WAIT_SECONDS = 10.0
T = TypeVar("T")


def run_yett(running: Running, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command against the running pipeline."""
    command = [sys.executable, "-m", "services.cli", *arguments, "--nats", running.demo.run.state.nats_url]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def wait_for_exit(running: Running, code: int) -> subprocess.CompletedProcess[str]:
    """``yett status`` once it ends with ``code``."""
    return await_truth(lambda: (done := run_yett(running, "status")).returncode == code and done)


def await_truth(find: Callable[[], T | bool]) -> T:
    """The first true thing that ``find`` gives."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not (found := find()):
        assert time.monotonic() < deadline, "it did not come to that"
    assert not isinstance(found, bool)
    return found


def test_status_names_file_object_and_field_and_the_last_good_state_stays(running: Running) -> None:
    """Exit status 3 while an object is refused, 0 once it is mended; DNS, which it allows, works all along."""
    name = "2-allow-dns.yaml"
    pod = topology.find_pod("app/curl-backend")
    traffic = Traffic(running.demo.lab)
    running.apply(name)
    assert run_yett(running, "status").returncode == 0
    assert running.run(traffic.resolve(pod, "example.com"))
    running.demo.folder.write(name, read_manifest(name).replace("port: 53", "port: 70000"))
    refused = wait_for_exit(running, 3)
    for part in (name, "app/allow-dns", "spec.egress[0].ports[0].port"):
        assert part in refused.stdout
    assert running.run(traffic.resolve(pod, "example.com"))
    running.demo.folder.write_policy(name)
    assert wait_for_exit(running, 0).returncode == 0


def test_status_as_json_says_leader_revision_convergence_and_endpoints(running: Running) -> None:
    """What a program needs to wait for."""
    shown = json.loads(run_yett(running, "status", "--output", "json").stdout)
    assert shown["leader"]
    assert shown["revision"] >= 1
    assert shown["converged"] == {"nodes": 2, "of": 2}
    states = {endpoint["pod"]: endpoint["state"] for node in shown["nodes"].values() for endpoint in node["endpoints"]}
    assert states == {pod.key: "enforced" for pod in running.demo.lab.pods.values()}


def test_flows_shows_a_denial_as_a_line_of_json(running: Running) -> None:
    """While it happens, for the namespace that was asked for."""
    pod = topology.find_pod("switch/switch-client")
    command = [sys.executable, "-m", "services.cli", "flows", "--namespace", "switch", "--verdict", "deny"]
    command += ["--output", "json", "--nats", running.demo.run.state.nats_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as flows:
        assert flows.stdout is not None
        watcher = Traffic(running.demo.lab)
        connections = [running.run(watcher.connect(pod, "example.com", 80, "192.0.2.10")) for _ in range(3)]
        event = json.loads(flows.stdout.readline())
        flows.terminate()
    assert not any(reached.is_open for reached in connections)
    assert (event["namespace"], event["pod"], event["destination_address"]) == ("switch", pod.name, "192.0.2.10")


def test_a_message_that_does_not_decode_is_skipped(running: Running) -> None:
    """Every service lives on, and the next change is enforced."""

    async def publish() -> None:
        client = await nats.connect(running.demo.run.state.nats_url)
        for subject in ("yett.resolution.node-a.com.example", "yett.status.node-a", "yett.observed.node-a"):
            for body in (b"", b"\xff\xfe", b"[]", b'{"name": 7}'):
                await client.publish(subject, body)
        await flush(client)
        await client.close()

    running.run(publish())
    running.apply("3-allow-example-com-only.yaml")
    dead = running.demo.pipeline.find_dead()
    assert dead == [], [read_log_end(running.demo.run, process.name) for process in dead]
