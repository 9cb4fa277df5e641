"""The collector's configuration, against what its components document; no collector is packaged to run it with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.common.settings import NodeagentSettings

ROOT = Path(__file__).parents[2]
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "otel" / "collector.yaml").read_text(encoding="utf-8"))
OTLP_SERVER = {"endpoint", "transport", "tls", "max_recv_msg_size_mib", "max_request_body_size"}
DOCUMENTED: dict[tuple[str, str], set[str]] = {
    ("receivers", "otlp"): {"protocols"},
    ("processors", "memory_limiter"): {
        *("check_interval", "limit_mib", "spike_limit_mib", "limit_percentage", "spike_limit_percentage"),
    },
    ("processors", "batch"): {"timeout", "send_batch_size", "send_batch_max_size", "metadata_keys"},
    ("exporters", "awsxray"): {
        *("region", "endpoint", "role_arn", "resource_arn", "local_mode", "no_verify_ssl", "proxy_address"),
        *("num_workers", "request_timeout_seconds", "max_retries", "telemetry", "aws_log_groups"),
        *("indexed_attributes", "index_all_attributes"),
    },
}
"""Component -> its keys. Source: READMEs and ``config.schema.yaml`` of opentelemetry-collector and its contrib."""
COMPONENTS = [(kind, name) for kind in ("receivers", "processors", "exporters") for name in CONFIG[kind]]


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_components_and_their_keys_are_documented_ones(kind: str, name: str) -> None:
    """A collector refuses a key that it does not know, and does not start."""
    assert set(CONFIG[kind][name]) <= DOCUMENTED[kind, name]


def test_the_receiver_hears_both_protocols_where_spans_are_sent_by_default() -> None:
    """4317 for gRPC, 4318 for HTTP: OTLP's own ports, and those that docs/traces.md writes."""
    protocols = CONFIG["receivers"]["otlp"]["protocols"]
    assert all(set(server) <= OTLP_SERVER for server in protocols.values())
    assert {name: server["endpoint"] for name, server in protocols.items()} == {
        "grpc": "0.0.0.0:4317",
        "http": "0.0.0.0:4318",
    }
    assert NodeagentSettings(node="a").otel_endpoint == ""


def test_pipelines_use_what_is_defined_and_all_of_it() -> None:
    """An undefined component keeps a collector from starting; an unused one is a mistake that it only warns of."""
    used = {(kind, name) for pipe in CONFIG["service"]["pipelines"].values() for kind in pipe for name in pipe[kind]}
    assert used == set(COMPONENTS)
    assert set(CONFIG) == {"receivers", "processors", "exporters", "service"}


def test_memory_is_limited_before_anything_else_is_done() -> None:
    """First in the pipeline, so that receivers are pushed back; batches last. Both limits are set, as they must be."""
    (traces,) = CONFIG["service"]["pipelines"].values()
    assert traces["processors"] == ["memory_limiter", "batch"]
    limiter = CONFIG["processors"]["memory_limiter"]
    assert re.fullmatch(r"[1-9]\d*m?s", limiter["check_interval"]) and limiter["limit_mib"] > 0
    assert limiter.get("spike_limit_mib", 0) < limiter["limit_mib"]


def test_what_is_indexed_is_an_attribute_of_our_spans() -> None:
    """A renamed attribute does not leave an index of nothing."""
    page = (ROOT / "docs" / "traces.md").read_text(encoding="utf-8")
    attributes = set(re.findall(r"`([a-z0-9_]+(?:\.[a-z0-9_]+)+)`", page))
    indexed = CONFIG["exporters"]["awsxray"]["indexed_attributes"]
    assert len(indexed) == len(set(indexed)) and set(indexed) <= attributes
