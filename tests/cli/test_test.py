"""``yett test``."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from services.cli.__main__ import app
from tests import builders as k8s
from tests.scenario.build import CLUSTER, pod, probe

ASKED = probe(pod("app/web"), pod("data/db"), id="x", expect="allow")
GOOD: dict[str, Any] = {"name": "good", "objects": CLUSTER, "probes": [ASKED]}
WRONG: dict[str, Any] = {**GOOD, "name": "wrong", "config": {"default": "deny"}}
IMPOSSIBLE: dict[str, Any] = {**GOOD, "name": "impossible", "probes": [probe(pod("app/none"), pod("data/db"))]}
UNUSABLE: dict[str, Any] = {**GOOD, "name": "unusable", "probes": [{"from": {}}]}


def yett(tmp_path: Path, *scenarios: Any, arguments: tuple[str, ...] = (), file: str = "s.jsonl") -> Result:
    path = tmp_path / file
    path.write_text("\n".join(json.dumps(each) for each in scenarios))
    return CliRunner().invoke(app, ["test", str(path), *arguments], env={"COLUMNS": "200"})


@pytest.mark.parametrize(
    ("scenarios", "code"),
    [
        ([GOOD], 0),
        ([GOOD, WRONG], 1),
        ([GOOD, UNUSABLE], 2),
        ([WRONG, UNUSABLE], 2),
        ([IMPOSSIBLE], 2),
        ([{**GOOD, "files": ["none.yaml"]}], 2),
        ([{**GOOD, "config": {"x": 1}}], 2),
    ],
)
def test_exit_codes(tmp_path: Path, scenarios: list[Any], code: int) -> None:
    """0: all as expected; 1: some not; 2: unusable input."""
    assert yett(tmp_path, *scenarios).exit_code == code


def test_an_unusable_scenario_does_not_hide_the_others(tmp_path: Path) -> None:
    """The rest is judged and printed, and stderr names the field."""
    result = yett(tmp_path, UNUSABLE, GOOD, arguments=("-o", "json"))
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(line["name"], line["ok"], len(line["probes"])) for line in lines] == [
        ("unusable", False, 0),
        ("good", True, 1),
    ]
    assert lines[0]["unusable"][0].startswith("probes[0].from: give one of")
    assert "unusable: probes[0].from: give one of pod, service, name or address" in result.stderr


def test_json_is_one_line_a_scenario(tmp_path: Path) -> None:
    """In the order given, and nothing else on stdout."""
    result = yett(tmp_path, GOOD, WRONG, arguments=("--output", "json"))
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(line["name"], line["ok"], line["probes"][0]["verdict"]) for line in lines] == [
        ("good", True, "allow"),
        ("wrong", False, "deny"),
    ]


def test_the_table_says_what_is_wrong(tmp_path: Path) -> None:
    """Which probe, what was expected, what was concluded and why."""
    result = yett(tmp_path, GOOD, WRONG)
    assert result.stdout.splitlines() == [
        "ok   good (1 probes)",
        "FAIL wrong (1 probes)",
        "     probe x: app/web -> data/db: expected allow, got deny: egress deny for DEFAULT, ingress deny for DEFAULT",
        "1 of 2 scenarios as expected, 2 probes",
    ]


def test_what_hangs_on_a_nodes_own_cache_is_noted(tmp_path: Path) -> None:
    """No engine knows where NodeLocal DNSCache is: what an agent would do that finds it stands beside the verdict, in
    every form; in the settings it is judged."""
    named = {"policyTypes": ["Egress"], "egress": [{"to": [{"domainNames": ["x.com"]}]}]}
    objects = [*CLUSTER, k8s.application_policy("named", named)]
    to = {"address": "169.254.20.10"}
    probes = [probe(pod("app/web"), to, port, id=f"at-{port}", protocol="UDP", expect="deny") for port in (53, 80)]
    cached = {**GOOD, "name": "cached", "objects": objects, "probes": probes}
    found = yett(tmp_path, cached, arguments=("-o", "json"))
    first, second = json.loads(found.stdout)["probes"]
    assert "allow for DNS_IMPLICIT" in first["note"] and "note" not in second and found.exit_code == 0
    assert "cached: probe at-53: NodeLocal DNSCache listens at" in yett(tmp_path, cached).stderr
    settled = {**cached, "config": {"resolvers": "169.254.20.10"}}
    found = yett(tmp_path, settled, arguments=("-o", "json"))
    assert [each["verdict"] for each in json.loads(found.stdout)["probes"]] == ["allow", "deny"]
    assert "note" not in found.stdout and not found.stderr


def test_on_a_terminal_a_bar_tells_how_far_it_is(tmp_path: Path) -> None:
    """On stderr, with what is done and how much there is; where stderr is no terminal there is nothing of it."""
    path = tmp_path / "s.jsonl"
    path.write_text("\n".join(json.dumps({**GOOD, "name": f"good {number}"}) for number in range(3)))
    screen, stderr = pty.openpty()
    command = [sys.executable, "-m", "services.cli", "test", str(path)]
    run = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=stderr, check=True, env={**os.environ, "TERM": "xterm"}
    )
    os.close(stderr)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: nothing is left, and nobody writes any more
        while read := os.read(screen, 65_536):
            shown += read
    os.close(screen)
    assert b"scenarios" in shown and b"3/3" in shown, shown
    assert b"3 of 3 scenarios as expected" in run.stdout and b"3/3" not in run.stdout
    assert yett(tmp_path, GOOD).stderr == ""


def test_junit_is_one_document(tmp_path: Path) -> None:
    """For CI."""
    result = yett(tmp_path, GOOD, WRONG, arguments=("-o", "junit"))
    assert result.stdout.startswith("<?xml") and result.stdout.count("<testsuite ") == 2


@pytest.mark.parametrize(
    ("file", "text", "names"),
    [
        ("one.yaml", "name: a\nprobes: []\n", ["a"]),
        ("many.yaml", "name: a\n---\nprobes: []\n", ["a", "many[1]"]),
        ("list.json", '[{"name": "a"}, {"name": "b"}]', ["a", "b"]),
        ("lines.jsonl", '{"name": "a"}\n\n{"name": "b"}\n', ["a", "b"]),
        ("lines.jsonl", '{"name": "a"}\r\n{"name": "b"}\r\n', ["a", "b"]),
        ("marked.json", '\ufeff{"name": "a"}', ["a"]),
        ("marked.jsonl", '\ufeff{"name": "a"}\n', ["a"]),
        ("marked.yaml", "\ufeffname: a\n", ["a"]),
    ],
)
def test_forms_of_scenario_files(tmp_path: Path, file: str, text: str, names: list[str]) -> None:
    """YAML, several documents, a list, JSON, JSON lines; a folder stands for what is in it."""
    (tmp_path / file).write_text(text)
    for path in (tmp_path / file, tmp_path):
        result = CliRunner().invoke(app, ["test", str(path), "-o", "json"])
        assert [json.loads(line)["name"] for line in result.stdout.splitlines()] == names


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("a.yaml", "a: 1\nb: [}", "line 2: not YAML"),
        ("a.json", "{", "not JSON"),
        ("a.jsonl", '{"name": "a"}\n{', "line 2: not JSON"),
        ("a.yaml", "a: 1\na: 2\n", "the key 'a' is given twice"),
        ("a.json", '{"name": "a", "name": "b"}', "the key 'name' is given twice"),
        ("a.json", '{"name": "a" // why\n}', "not JSON"),
        ("a.jsonl", '{"probes": [{"at": NaN}]}', "line 1: not JSON: NaN is no number"),
        ("a.jsonl", '{"name": "a"}\n{"name": "\\ud800"}', "line 2: not JSON"),
        ("a.json", "", "not JSON"),
        ("a.jsonl", "", "no scenario in it"),
        ("a.jsonl", "\n \n", "no scenario in it"),
        ("a.json", "[]", "no scenario in it"),
        ("a.yaml", "---\n---\n", "no scenario in it"),
        ("a.yaml", "apiVersion: v1\nkind: Pod\n", "a Kubernetes object, not a scenario"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, file: str, text: str, said: str) -> None:
    """The file and the line are named."""
    (tmp_path / file).write_text(text)
    result = CliRunner().invoke(app, ["test", str(tmp_path / file)], env={"COLUMNS": "200"})
    assert result.exit_code == 2 and said in result.stderr and file in result.stderr


def test_a_missing_file_is_unusable_input(tmp_path: Path) -> None:
    """Exit 2, with its name."""
    result = CliRunner().invoke(app, ["test", str(tmp_path / "none.yaml")])
    assert result.exit_code == 2 and "none.yaml" in result.stderr


def test_a_folder_without_scenarios_is_unusable_input(tmp_path: Path) -> None:
    """A wrong folder in a pipeline must not look like a green one, even beside a right one."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.json").write_text('{"name": "a"}')
    result = CliRunner().invoke(app, ["test", str(tmp_path / "empty"), str(tmp_path / "full"), "-o", "json"])
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 2 and [line["ok"] for line in lines] == [False, True]
    assert lines[0]["unusable"] == ["no scenario in it"]


def test_manifests_in_a_folder_are_passed_over(tmp_path: Path) -> None:
    """Scenarios name them; a folder of manifests alone has no scenario."""
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / "pods.yaml").write_text(json.dumps(k8s.pod("app/web", "10.0.0.1")) + "\n---\n")
    (tmp_path / "a.json").write_text('{"name": "a", "files": ["objects"]}')
    result = CliRunner().invoke(app, ["test", str(tmp_path), "-o", "json"])
    assert result.exit_code == 0 and [json.loads(line)["name"] for line in result.stdout.splitlines()] == ["a"]
    assert CliRunner().invoke(app, ["test", str(tmp_path / "objects")]).exit_code == 2


def test_files_stand_beside_the_scenario(tmp_path: Path) -> None:
    """Paths are relative to the scenario's own place; a folder stands for its manifests."""
    (tmp_path / "cluster").mkdir()
    deny = k8s.network_policy("deny", {"policyTypes": ["Ingress"]}, namespace="data")
    for index, obj in enumerate([*CLUSTER, deny]):
        (tmp_path / "cluster" / f"{index}.json").write_text(json.dumps(obj))
    asked = {"name": "f", "files": ["cluster"], "probes": [{**ASKED, "expect": "deny"}]}
    assert yett(tmp_path, asked, file="s.json").exit_code == 0


@pytest.mark.kernel
def test_the_kernel_engine_says_the_same(tmp_path: Path) -> None:
    """Same lines from both."""
    said = yett(tmp_path, GOOD, WRONG, arguments=("-o", "json", "--engine", "kernel"))
    assert said.stdout == yett(tmp_path, GOOD, WRONG, arguments=("-o", "json")).stdout
    assert said.exit_code == 1


def test_names_are_printed_as_they_are(tmp_path: Path) -> None:
    """Neither markup nor emoji is made of what a user wrote."""
    bad = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "a:x:b"}, "spec": {}}
    result = yett(tmp_path, {**GOOD, "name": "[red]:bug:", "objects": [*CLUSTER, bad]})
    assert "FAIL [red]:bug: (1 probes)" in result.stdout
    assert "'a:x:b' is not a Kubernetes name" in result.stdout


def test_what_is_nested_too_deeply_is_unusable(tmp_path: Path) -> None:
    """A line of brackets, as JSON, as a line of many, as YAML: exit 2 and the file's name."""
    for name in ("deep.json", "deep.jsonl", "deep.yaml"):
        path = tmp_path / name
        path.write_text("[" * 100_000)
        result = CliRunner().invoke(app, ["test", str(path)], env={"COLUMNS": "400"})
        assert result.exit_code == 2 and f"{name}: " in result.stderr and "nested" in result.stderr


@pytest.mark.parametrize("output", ["table", "json", "junit"])
def test_answers_are_utf8_in_every_locale(tmp_path: Path, output: str) -> None:
    """A terminal of another encoding, and a file whose name has none, end no run with a traceback."""
    path = tmp_path / os.fsdecode(b"\xff.yaml")
    path.write_text('- {name: "gr\u00fcn \u2713"}\n- {probes: []}\n', encoding="utf-8")
    command = [sys.executable, "-m", "services.cli", "test", str(path), str(tmp_path / "none"), "-o", output]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    one = subprocess.run([*command[:5], *command[6:]], capture_output=True, env=environment, check=False)
    assert one.returncode == 0 and "gr\u00fcn \u2713" in one.stdout.decode("utf-8")
    two = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert two.returncode == 2 and b"Traceback" not in two.stderr and b"none: no such file" in two.stderr
