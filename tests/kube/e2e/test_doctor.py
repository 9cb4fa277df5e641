"""``yett doctor`` on a whole cluster: with everything in order it finds everything in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from services.demo.pipeline import agent_name
from services.demo.state import is_alive
from services.demo.topology import NODE_A, NODE_B
from services.operate.doctor import CHECKS, KUBECTL_AGENTS
from tests.kube.e2e.cluster import Cluster, ClusterPipeline
from tests.kube.servers import ADMIN_TOKEN

pytestmark = [pytest.mark.kube, pytest.mark.e2e, pytest.mark.timeout(180)]


def doctor(whole: Cluster, *more: str) -> tuple[int, str]:
    """Exit code and output of the command, as somebody on node A with a kubeconfig and a reader's key calls it."""
    pipeline, run = whole.demo.pipeline, whole.demo.run
    assert isinstance(pipeline, ClusterPipeline)
    own = {
        "KUBECONFIG": str(whole.kube.kubeconfig("person", ADMIN_TOKEN)),
        "YETT_NATS_TLS_NAME": pipeline.reader()["YETT_NATS_TLS_NAME"],
        "YETT_PIN_ROOT": str(run.pins / NODE_A.key),
    }
    clean = {key: value for key, value in os.environ.items() if not key.startswith("YETT_")}
    asked = ("--here", "--kube", "--nats", run.state.nats_url, "--creds", str(pipeline.reader_key))
    command = [sys.executable, "-m", "services.cli", "doctor", *asked, *more]
    done = subprocess.run(command, env=clean | own, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout or done.stderr


def is_all_well(whole: Cluster) -> bool:
    return doctor(whole)[0] == 0


def test_all_is_well_until_an_agent_is_stopped(whole: Cluster) -> None:
    """Every check is fine and nothing is to be done: exit 0. Without one agent its node and the next command are named:
    exit 1. With the agent started again all is well again."""
    code, out = doctor(whole, "--output", "json")
    told = json.loads(out)
    assert {one["check"]: one for one in told["findings"] if one["state"] != "fine"} == {}
    assert (code, told["next"], len(told["findings"])) == (0, "", len(CHECKS))
    pipeline = whole.demo.pipeline
    stopped = pipeline.processes[agent_name(NODE_B)]
    os.kill(stopped.pid, signal.SIGTERM)
    try:
        whole.until(lambda: not is_alive(stopped), 20, "the agent has ended")
        code, out = doctor(whole)
        assert code == 1 and f"agents: no agent is heard on {NODE_B.name}\n" in out, out
        assert out.endswith(f"\nnext: {KUBECTL_AGENTS}\n") and out.count("wrong") == 1
    finally:
        pipeline.start_agent(NODE_B)
    whole.until(lambda: is_all_well(whole), 60, "all is well again")
