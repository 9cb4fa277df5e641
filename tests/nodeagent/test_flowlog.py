"""Flow logs: a line a verdict in words, rotated, never in the way."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
import pytest

from schemas import wire
from schemas.flowlog import FlowLog as Line
from schemas.flowlog import make_flow_log, make_refused_log
from schemas.policy import RuleSource
from schemas.terms import Direction, NodeName, Reason, RefusalReason, RevisionNumber, Tier, Verdict
from schemas.verdict import NameRefused, VerdictEvent
from services.common.settings import NodeagentSettings, SettingsError
from services.nodeagent.flowlog import EMF_DIMENSIONS, QUEUE, FlowLog, format_emf, format_json

EVENT = VerdictEvent(
    node=NodeName("node-a"),
    namespace="app",
    pod="web",
    direction=Direction.EGRESS,
    verdict=Verdict.DENY,
    reason=Reason.ISOLATED,
    tier=Tier.NETWORK_POLICY,
    source_address="10.244.1.12",
    destination_address="192.0.2.10",
    protocol=6,
    source_port=40000,
    destination_port=443,
    policy=RuleSource(kind="NetworkPolicy", namespace="app", name="isolate", rule=""),
    name="example.com",
    revision=RevisionNumber(7),
    unix_nanos=1_765_000_000_123_456_789,
    count=12,
    applied_trace="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
)
GOLDEN = (
    '{"version":1,"time":"2025-12-06T05:46:40.123456Z","node":"node-a","namespace":"app","pod":"web",'
    '"direction":"egress","verdict":"deny","reason":"ISOLATED","tier":"network_policy",'
    '"source_address":"10.244.1.12","destination_address":"192.0.2.10","protocol":6,"source_port":40000,'
    '"destination_port":443,"policy":{"kind":"NetworkPolicy","name":"isolate","namespace":"app"},'
    '"name":"example.com","revision":7,"count":12,"trace_id":"0af7651916cd43dd8448eb211c80319c"}'
)
REFUSED = NameRefused(
    node=NodeName("node-a"),
    namespace="app",
    pod="web",
    name="example.com",
    reason=RefusalReason.NXDOMAIN,
    resolver="10.96.0.10",
    count=3,
    unix_nanos=1_765_000_000_123_456_789,
    learned_trace="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
)
GOLDEN_REFUSED = (
    '{"version":1,"time":"2025-12-06T05:46:40.123456Z","node":"node-a","namespace":"app","pod":"web",'
    '"direction":"egress","verdict":"name_refused","reason":"NXDOMAIN","tier":"none","source_address":"",'
    '"destination_address":"","protocol":0,"name":"example.com","count":3,'
    '"trace_id":"0af7651916cd43dd8448eb211c80319c","resolver":"10.96.0.10"}'
)


def make_log(path: Path, **settings: object) -> FlowLog:
    return FlowLog(NodeagentSettings(node="node-a", flow_log=str(path), **settings))  # type: ignore[arg-type]  # by name


def test_a_line_is_stable() -> None:
    """Golden text: SIEMs parse it; a field may be added, never renamed."""
    assert format_json(EVENT) == GOLDEN
    assert msgspec.json.decode(GOLDEN, type=Line) == make_flow_log(EVENT)


def test_a_refused_name_is_a_line_of_the_same_form() -> None:
    """What reads lines needs no second parser: ``verdict`` says that no flow was judged."""
    assert format_json(REFUSED) == GOLDEN_REFUSED
    assert msgspec.json.decode(GOLDEN_REFUSED, type=Line) == make_refused_log(REFUSED)
    counted = json.loads(format_emf(REFUSED))
    assert (counted["Verdicts"], counted["verdict"], counted["reason"]) == (3, "name_refused", "NXDOMAIN")
    sinkhole = msgspec.structs.replace(REFUSED, reason=RefusalReason.SINKHOLE, addresses=("0.0.0.0",))
    assert make_refused_log(sinkhole).destination_address == "0.0.0.0"


def test_the_line_has_a_published_schema() -> None:
    """``yett schemas`` exports every field that a line may have."""
    schema = wire.export_json_schema()["$defs"]["FlowLog"]
    assert set(json.loads(GOLDEN)) <= set(schema["properties"])
    assert {"version", "time", "verdict"} <= set(schema["required"])


def test_cloudwatch_counts_by_verdict_namespace_and_reason() -> None:
    """Each dimension and the metric are members of the same object, as the embedded metric format wants."""
    line = json.loads(format_emf(EVENT))
    (metrics,) = line["_aws"]["CloudWatchMetrics"]
    assert line["_aws"]["Timestamp"] == 1_765_000_000_123
    assert metrics["Dimensions"] == [list(one) for one in EMF_DIMENSIONS]
    assert all(name in line for dimension in metrics["Dimensions"] for name in dimension)
    assert [line[one["Name"]] for one in metrics["Metrics"]] == [12]


def test_files_are_rotated_and_bounded(tmp_path: Path) -> None:
    """No file is larger than said, no more files are kept than said, and every line is whole."""
    path = tmp_path / "flows.log"

    async def scenario() -> None:
        log = make_log(path, flow_log_max_bytes=5_000, flow_log_files=2)
        for _ in range(100):
            log(EVENT)
        log.close()
        assert log.counters["flow_log_lines"] == 100

    asyncio.run(scenario())
    files = sorted(tmp_path.iterdir())
    assert [one.name for one in files] == ["flows.log", "flows.log.1", "flows.log.2"]
    assert all(one.stat().st_size <= 5_000 for one in files)
    assert {line for one in files for line in one.read_text().splitlines()} == {GOLDEN}


def test_lines_are_written_as_they_come(tmp_path: Path) -> None:
    """Not only at the end."""
    path = tmp_path / "flows.log"

    async def scenario() -> None:
        log = make_log(path)
        writing = asyncio.create_task(log.run())
        log(EVENT)
        async with asyncio.timeout(10):
            while not log.counters["flow_log_lines"]:  # noqa: ASYNC110  the thread has no event
                await asyncio.sleep(0.005)
        assert path.read_text() == GOLDEN + "\n"
        writing.cancel()
        log.close()

    asyncio.run(scenario())


def test_only_the_chosen_namespaces_are_logged(tmp_path: Path) -> None:
    """The others' flows are nobody's business here."""
    path = tmp_path / "flows.log"
    log = make_log(path, flow_log_namespaces=("payments",))
    log(EVENT)
    log(msgspec.structs.replace(EVENT, namespace="payments"))
    log.close()
    assert [json.loads(line)["namespace"] for line in path.read_text().splitlines()] == ["payments"]


OWNED = msgspec.structs.replace(EVENT, owner="Deployment/web", labels={"app": "web", "team": "shop"})


def test_a_line_says_owner_and_labels_where_they_are_known() -> None:
    """They are of the pod; a refused name's line has them too."""
    assert format_json(OWNED) == GOLDEN[:-1] + ',"owner":"Deployment/web","labels":{"app":"web","team":"shop"}}'
    refused = make_refused_log(msgspec.structs.replace(REFUSED, owner="Job/j", labels={"a": "b"}))
    assert (refused.owner, refused.labels) == ("Job/j", {"a": "b"})


@pytest.mark.parametrize(
    ("choice", "is_logged"),
    [
        ({"flow_log_pods": ("app/w*", "x/y")}, True),
        ({"flow_log_pods": ("app/b*",)}, False),
        ({"flow_log_owners": ("Deployment/*",)}, True),
        ({"flow_log_owners": ("StatefulSet/*",)}, False),
        ({"flow_log_labels": ("team=shop", "app=web")}, True),
        ({"flow_log_labels": ("team=shop", "app=api")}, False),
        ({"flow_log_labels": ("team=shop",), "flow_log_namespaces": ("payments",)}, False),
    ],
)
def test_a_pod_has_to_suit_every_setting(tmp_path: Path, choice: dict[str, object], is_logged: bool) -> None:
    """Pods, owners, labels and namespaces; each of them alone, and together."""
    log = make_log(tmp_path / "flows.log", **choice)
    log(OWNED)
    log.close()
    assert log.counters["flow_log_lines"] == is_logged


def test_a_pod_without_owner_or_labels_suits_none_that_asks_for_them(tmp_path: Path) -> None:
    """Where the cluster's settings ask for neither, nothing is logged by them: never all."""
    for choice in ({"flow_log_owners": ("*/*",)}, {"flow_log_labels": ("app=web",)}):
        log = make_log(tmp_path / "flows.log", **choice)
        log(EVENT)
        log.close()
        assert not log.counters["flow_log_lines"]


def test_a_label_without_a_value_is_an_unusable_setting(tmp_path: Path) -> None:
    """Said at the start."""
    with pytest.raises(SettingsError, match="YETT_FLOW_LOG_LABELS"):
        make_log(tmp_path / "flows.log", flow_log_labels=("app",))


def test_what_the_disk_does_not_take_is_counted_and_nobody_waits(tmp_path: Path) -> None:
    """A full queue drops, a file that cannot be written fails: both are numbers."""
    log = make_log(tmp_path / "absent" / "flows.log")
    for _ in range(QUEUE + 5):
        log(EVENT)
    assert log.counters["flow_log_dropped"] == 5 * EVENT.count
    log.close()
    assert log.counters["flow_log_failed"] == QUEUE


@pytest.mark.parametrize("format_line", [format_json, format_emf])
def test_a_line_is_one_line(format_line: object) -> None:
    """Whatever a name holds."""
    assert callable(format_line)
    assert "\n" not in format_line(msgspec.structs.replace(EVENT, name="a\nb"))
