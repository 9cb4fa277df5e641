"""Metrics, their page, the alerts and the dashboard are of one mind; names follow Prometheus' conventions."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from services.common.metrics import COMMON, Family
from services.controller.metrics import FAMILIES as CONTROLLER
from services.dnsrecorder.metrics import FAMILIES as RECORDER
from services.nodeagent.metrics import FAMILIES as AGENT

ROOT = Path(__file__).parents[2]
FAMILIES: tuple[Family, ...] = (*COMMON, *CONTROLLER, *AGENT, *RECORDER)
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
DASHBOARD = ROOT / "deploy" / "grafana" / "yett.json"


def list_queries() -> list[str]:
    """Every query of the dashboard, with Grafana's interval filled in."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"].replace("$__rate_interval", "1m") for panel in panels for target in panel["targets"]]


def test_the_page_says_what_the_code_does() -> None:
    """One row a metric, with its kind, labels and help; none is invented."""
    rows = re.findall(
        r"^\| (yett_\w+) \| (\w+) \| ([^|]*) \| (.*) \|$", (ROOT / "docs" / "metrics.md").read_text(), re.M
    )
    said = [(name, kind, labels.strip(), text) for name, kind, labels, text in rows]
    assert said == [(one.name, one.kind, ", ".join(one.labels), one.help) for one in FAMILIES]


def test_names_follow_the_conventions() -> None:
    """Counters end in _total and nothing else does; times are in seconds, sizes in bytes; no name is used twice."""
    assert len({one.name for one in FAMILIES}) == len(FAMILIES)
    for one in FAMILIES:
        assert re.fullmatch(r"yett_[a-z_]+", one.name)
        assert one.name.endswith("_total") == (one.kind == "counter"), one.name
        assert not re.search(r"millis|micros|_ms\b|kilobytes", one.name), one.name


@pytest.mark.parametrize("text", [RULES.read_text(), *list_queries()], ids=lambda text: text[:40])
def test_alerts_and_dashboard_use_metrics_that_exist(text: str) -> None:
    """A renamed metric does not leave an alert that never fires."""
    known = {one.name for one in FAMILIES} | {f"{one.name}_bucket" for one in FAMILIES if one.kind == "histogram"}
    used = set(re.findall(r"\byett_\w+", text))
    assert used and used <= known


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here: apt-get install prometheus")
def test_prometheus_accepts_the_alerts() -> None:
    """``promtool check rules``."""
    done = subprocess.run(["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "14 rules found" in done.stdout, done.stdout + done.stderr
