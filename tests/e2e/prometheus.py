"""A real Prometheus in the lab's fabric, which scrapes every service of a running pipeline."""

from __future__ import annotations

import json
import time
import urllib.parse
from typing import Any

from services.demo import servers
from services.demo.lab import in_namespace, run_command
from services.demo.pipeline import METRICS_AGENT, METRICS_CONTROLLER, METRICS_RECORDER
from services.demo.topology import NODES
from tests.docs.test_metrics import RULES
from tests.e2e.conftest import Running

PORT = 9090
SCRAPE_SECONDS = 1
WAIT_SECONDS = 30.0
SERVICES = 1 + 2 * len(NODES)


class Prometheus:
    """Started in the fabric's namespace; asked from there."""

    def __init__(self, running: Running) -> None:
        self._lab = running.demo.lab
        run = running.demo.run
        folder = run.folder / "prometheus"
        folder.mkdir()
        jobs = {
            "controller": [f"{run.host_address}:{METRICS_CONTROLLER}"],
            "nodeagent": [f"{node.address}:{METRICS_AGENT}" for node in NODES],
            "dnsrecorder": [f"{node.address}:{METRICS_RECORDER}" for node in NODES],
        }
        scrapes = [{"job_name": name, "static_configs": [{"targets": targets}]} for name, targets in jobs.items()]
        interval = f"{SCRAPE_SECONDS}s"
        config = {
            "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
            "rule_files": [str(RULES)],
            "scrape_configs": scrapes,
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))
        command = in_namespace(
            self._lab.fabric,
            "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{PORT}",
        )
        process = servers.start_process(run, "prometheus", command)
        servers.wait_until(run, process, lambda: "ready to receive web requests" in self._log(running))

    def _log(self, running: Running) -> str:
        return (running.demo.run.logs / "prometheus.log").read_text()

    def query(self, text: str) -> list[dict[str, Any]]:
        """The result of an instant query; AssertionError if Prometheus refuses it."""
        answer = self._ask(f"query?query={urllib.parse.quote(text)}")
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def await_result(self, text: str, least: int = 1) -> list[dict[str, Any]]:
        """The first result with so many series."""
        deadline = time.monotonic() + WAIT_SECONDS
        while len(found := self.query(text)) < least:
            assert time.monotonic() < deadline, f"{text}: {found}"
        return found

    def list_rules(self) -> list[dict[str, Any]]:
        """The alerts, as evaluated."""
        return [rule for group in self._ask("rules")["data"]["groups"] for rule in group["rules"]]

    def _ask(self, path: str) -> dict[str, Any]:
        command = in_namespace(
            self._lab.fabric, "curl", "-sS", "--noproxy", "*", f"http://127.0.0.1:{PORT}/api/v1/{path}"
        )
        answer: dict[str, Any] = json.loads(run_command(command))
        return answer
