"""What came of a scenario: verdicts and problems against what its author expected; as JSON, and as JUnit XML.

Pure. Deliberately absent: tables for people (the command's).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from schemas.status import Problem
from schemas.terms import Verdict
from services.controller.policy.model import Finding
from services.scenario.model import Probe, Scenario, ScenarioError
from services.scenario.words import format_source

_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML document may hold (XML 1.0, production 2)."""
SEVERITY = {Verdict.DENY: 2, Verdict.AUDIT: 1, Verdict.ALLOW: 0}


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """``egress`` and ``ingress``: what decided there, None where no pod is. ``error``: why no packet could be made.
    ``note``: what the verdict hangs on and nobody told."""

    probe: Probe
    verdict: Verdict | None
    egress: Finding | None = None
    ingress: Finding | None = None
    error: str = ""
    note: str = ""

    @property
    def is_ok(self) -> bool:
        """Whether it is as expected. A flow under audit passes, so it is an allowed one too."""
        expected = self.probe.expect
        if self.error:
            return False
        return expected in (None, self.verdict) or (expected is Verdict.ALLOW and self.verdict is Verdict.AUDIT)


@dataclass(frozen=True, slots=True)
class ScenarioResult:
    """``problems``: refusals; ``unexpected`` of them nobody announced; ``missing``: announced paths without one."""

    scenario: Scenario
    probes: tuple[ProbeResult, ...]
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    unexpected: tuple[Problem, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def is_ok(self) -> bool:
        return not self.unexpected and not self.missing and all(probe.is_ok for probe in self.probes)


def fold_findings(findings: Sequence[Finding]) -> Finding | None:
    """Of several crossings that must all be allowed: the one that matters, the first of the strictest."""
    return max(findings, key=lambda found: SEVERITY[found.verdict], default=None)


def conclude_probe(probe: Probe, egress: Sequence[Finding], ingress: Sequence[Finding]) -> ProbeResult:
    """A flow is allowed if every crossing is; where nothing is a pod, nobody judges."""
    out, into = fold_findings(egress), fold_findings(ingress)
    whole = fold_findings([found for found in (out, into) if found is not None])
    return ProbeResult(probe, whole.verdict if whole else Verdict.ALLOW, out, into)


def conclude_scenario(scenario: Scenario, probes: Iterable[ProbeResult], problems: Iterable[Problem]) -> ScenarioResult:
    """Problems against ``expect_problems``: a path announces the problem there and those below it."""
    found = list(problems)
    refusals = [problem for problem in found if problem.severity == "error"]
    warnings = [problem for problem in found if problem.severity != "error"]
    unexpected = [each for each in refusals if not any(_announces(path, each) for path in scenario.expect_problems)]
    missing = [path for path in scenario.expect_problems if not any(_announces(path, each) for each in found)]
    return ScenarioResult(scenario, tuple(probes), tuple(refusals), tuple(warnings), tuple(unexpected), tuple(missing))


def _announces(path: str, problem: Problem) -> bool:
    if not problem.path.startswith(path):
        return False
    return len(problem.path) == len(path) or problem.path[len(path)] in ".["


# ---------------------------------------------------------------------------------------------------------------------
# For programs


def finding_to_json(finding: Finding | None) -> dict[str, str] | None:
    """One direction's verdict, None where no pod is there to judge."""
    if finding is None:
        return None
    told = {
        "verdict": finding.verdict.name.lower(),
        "tier": finding.tier.name.lower(),
        "policy": format_source(finding.policy),
        "rule": finding.policy.rule if finding.policy else "",
        "reason": finding.reason.name.lower(),
    }
    return told | ({"name": finding.name} if finding.name else {})


def problem_to_json(problem: Problem) -> dict[str, str]:
    told = {"object": problem.object, "path": problem.path, "message": problem.message}
    return told | ({"file": problem.file} if problem.file else {})


def scenario_to_json(result: ScenarioResult) -> dict[str, Any]:
    """One scenario as one object; ``ok`` says whether all of it is as expected."""
    told: dict[str, Any] = {
        "name": result.scenario.name,
        "ok": result.is_ok,
        "problems": [problem_to_json(problem) for problem in result.problems],
        "probes": [_probe_to_json(probe) for probe in result.probes],
    }
    if result.warnings:
        told["warnings"] = [problem_to_json(problem) for problem in result.warnings]
    if result.missing:
        told["missing_problems"] = list(result.missing)
    return told


def unusable_to_json(error: ScenarioError) -> dict[str, Any]:
    """A scenario that could not be judged: as any other, without a verdict, and with why."""
    name = error.name or error.file
    return {"name": name, "ok": False, "problems": [], "probes": [], "unusable": list(error.faults)}


def _probe_to_json(result: ProbeResult) -> dict[str, Any]:
    expected = result.probe.expect
    told: dict[str, Any] = {
        "id": result.probe.id,
        "verdict": result.verdict.name.lower() if result.verdict is not None else None,
        "egress": finding_to_json(result.egress),
        "ingress": finding_to_json(result.ingress),
        "expect": expected.name.lower() if expected is not None else None,
        "ok": result.is_ok,
    }
    return told | ({"error": result.error} if result.error else {}) | ({"note": result.note} if result.note else {})


def describe_finding(finding: Finding | None) -> str:
    """A few words for people: what decided."""
    if finding is None:
        return "-"
    words = [finding.verdict.name.lower(), "by" if finding.policy else "for", finding.reason.name]
    if finding.policy:
        words[2] = f"{format_source(finding.policy)} {finding.policy.rule}".strip()
    if finding.policy and finding.reason.name != "RULE":
        words.append(f"({finding.reason.name})")
    return " ".join(words) + (f" as {finding.name}" if finding.name else "")


def describe_failures(result: ScenarioResult) -> list[str]:
    """One line for each thing that is not as expected."""
    lines = [f"problem: {each.object}: {each.path}: {each.message}" for each in result.unexpected]
    lines += [f"no problem at {path}" for path in result.missing]
    return lines + [
        f"probe {each.probe.id}: {describe_probe_failure(each)}" for each in result.probes if not each.is_ok
    ]


def describe_probe_failure(result: ProbeResult) -> str:
    """Why a probe is not as expected."""
    if result.error:
        return result.error
    expected = result.probe.expect.name.lower() if result.probe.expect is not None else "anything"
    verdict = result.verdict.name.lower() if result.verdict is not None else "nothing"
    ways = f"egress {describe_finding(result.egress)}, ingress {describe_finding(result.ingress)}"
    return f"{result.probe.source} -> {result.probe.destination}: expected {expected}, got {verdict}: {ways}"


def make_junit(results: Iterable[ScenarioResult], unusable: Iterable[ScenarioError]) -> str:
    """JUnit XML: a suite a scenario, a case a probe, and one for the scenario's problems."""
    root = ElementTree.Element("testsuites")
    for result in results:
        suite = ElementTree.SubElement(root, "testsuite", name=result.scenario.name)
        about = [f"problem: {each.object}: {each.path}: {each.message}" for each in result.unexpected]
        about += [f"no problem at {path}" for path in result.missing]
        _add_case(suite, result.scenario.name, "problems", about)
        for probe in result.probes:
            name = f"{probe.probe.id}: {probe.probe.source} -> {probe.probe.destination}"
            said = [] if probe.is_ok else [describe_probe_failure(probe)]
            _add_case(suite, result.scenario.name, name, said, "error" if probe.error else "failure")
        suite.set("tests", str(len(result.probes) + 1))
        suite.set("failures", str(len(suite.findall("testcase/failure"))))
        suite.set("errors", str(len(suite.findall("testcase/error"))))
    for error in unusable:
        name = error.name or error.file
        suite = ElementTree.SubElement(root, "testsuite", name=name, tests="1", failures="0", errors="1")
        _add_case(suite, name, "usable", error.faults, "error")
    ElementTree.indent(root)
    for element in root.iter():
        element.attrib = {key: _NOT_XML.sub("\ufffd", value) for key, value in element.attrib.items()}
        element.text = _NOT_XML.sub("\ufffd", element.text) if element.text else element.text
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def _add_case(
    suite: ElementTree.Element, class_name: str, name: str, said: Sequence[str], kind: str = "failure"
) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=class_name, name=name)
    if said:
        ElementTree.SubElement(case, kind, message=said[0]).text = "\n".join(said)
