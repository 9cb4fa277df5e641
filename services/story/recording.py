"""What is drawn: scenes of spans, as a file that is kept. Pure.

A scene is one verdict with everything that its links lead to: each linked span, and the whole trace that span is of.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from services.story.spans import Span

SERVICES = {
    "objects changed": "controller",
    "parse objects": "controller",
    "compile policies": "controller",
    "publish revision": "controller",
    "apply revision": "nodeagent",
    "learn name": "nodeagent",
    "verdict": "nodeagent",
    "dns answer": "dnsrecorder",
    "publish resolution": "dnsrecorder",
}
"""Span -> who makes it (docs/traces.md); a receiver's lines do not say."""
TOLD = (
    *("yett.verdict", "yett.reason", "yett.tier", "yett.policy.kind", "yett.policy", "yett.direction"),
    *("k8s.namespace.name", "k8s.pod.name", "k8s.node.name", "dns.question.name", "yett.learned_by"),
    *("network.type", "network.transport", "destination.address", "destination.port", "yett.objects"),
)
"""Attributes that are the same in every run."""


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """``did``: what was done, line by line. ``verdict``: the span it is about."""

    title: str
    did: tuple[str, ...]
    verdict: str
    spans: tuple[Span, ...]

    @property
    def by_id(self) -> dict[str, Span]:
        return {span.id: span for span in self.spans}


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """Two scenes of one run. ``recorded``: the day."""

    recorded: str
    scenes: tuple[Scene, ...]


def find_process(span: Span) -> str:
    """``nodeagent node-a``: the service, and the node where there is one of it on each."""
    return " ".join(filter(None, (SERVICES[span.name], str(span.attributes.get("k8s.node.name", "")))))


def choose_spans(verdict: Span, spans: Iterable[Span]) -> tuple[Span, ...]:
    """The verdict and the traces that it is linked with, in order of time."""
    traces = {verdict.trace, *(trace for trace, _ in verdict.links)}
    chosen = [span for span in spans if span.trace in traces]
    return tuple(sorted(chosen, key=lambda one: (one.start_nanos, one.id)))


def describe_shape(recording: Recording) -> list[str]:
    """All that two runs must have in common: who did what, for whose sake, linked with what. No times, no ids."""
    return [line for scene in recording.scenes for line in (scene.title, *scene.did, *_describe_scene(scene))]


def _describe_scene(scene: Scene) -> list[str]:
    known = scene.by_id
    lines = []
    for span in scene.spans:
        parent = known[span.parent].name if span.parent else "nothing"
        links = sorted(known[one].name for _, one in span.links)
        told = {name: span.attributes[name] for name in TOLD if name in span.attributes}
        others = sorted(span.attributes.keys() - told.keys())
        lines.append(f"{find_process(span)}: {span.name}, of {parent}, linked with {links}, {told}, {others}")
    return sorted(lines)


def read_recording(path: Path) -> Recording:
    """What was kept."""
    return msgspec.json.decode(path.read_bytes(), type=Recording)


def write_recording(path: Path, recording: Recording) -> None:
    """In lines, so that a change can be read."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(recording), indent=1) + b"\n")
