"""Plays the story in the demo's laboratory, with a receiver of OTLP in its fabric, and keeps what arrived there."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial

import uvloop
from rich.console import Console

from services.demo import servers, topology
from services.demo.app import owned_run, until_signalled
from services.demo.convergence import read_revision
from services.demo.lab import Lab, in_namespace
from services.demo.runner import Demo, Options, check_machine
from services.demo.state import DemoError, Process, Run
from services.story.recording import Recording, Scene, choose_spans
from services.story.spans import Span, Spans

PORT = 4318
RECEIVER = "otlp"
DENIED_POD, ALLOWED_POD, ASKING_POD = "app/curl-backend", "default/s3-client", "default/s3-client-b"
DENIED_NAME, ALLOWED_NAME = "httpbin.org", topology.SEEN_ELSEWHERE
CHANGE = ("objects changed", "parse objects", "compile policies", "publish revision")


def start_receiver(lab: Lab) -> Process:
    """In the fabric, where host and nodes reach it."""
    run = lab.run
    command = in_namespace(lab.fabric, sys.executable, "-m", "services.story.receiver", str(PORT))
    process = servers.start_process(run, RECEIVER, command)
    servers.wait_until(run, process, lambda: "ready" in (run.logs / f"{RECEIVER}.log").read_text())
    return process


def find_spans(run: Run) -> Spans:
    """What the receiver of a run has got."""
    return Spans(run.logs / f"{RECEIVER}.log")


@contextmanager
def tracing(run: Run) -> Iterator[None]:
    """Services started meanwhile send their spans to the receiver, every allowed flow's among them."""
    endpoint = f"http://{run.fabric_address}:{PORT}"
    own = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "YETT_SPAN_ALLOW_RATIO": "1"}
    former = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Recorder:
    """Plays scenes on a pipeline that runs, and collects their spans."""

    def __init__(self, demo: Demo) -> None:
        self._demo = demo
        self._spans = find_spans(demo.run)

    async def record(self) -> Recording:
        """Both scenes; DemoError where the world does not follow."""
        await self._apply("2-allow-dns.yaml")
        scenes = (await self._record_denied(), await self._record_allowed())
        return Recording(recorded=datetime.now(UTC).date().isoformat(), scenes=scenes)

    async def _record_denied(self) -> Scene:
        pod, manifest = topology.find_pod(DENIED_POD), "3-allow-example-com-only.yaml"
        revision = await self._apply(manifest)
        (address,) = await self._demo.traffic.resolve(pod, DENIED_NAME)
        if (await self._demo.traffic.connect(pod, DENIED_NAME, 80, address)).is_open:
            raise DemoError(f"{pod.key} reached {DENIED_NAME}, which no policy allows")
        verdict, spans = await self._collect(revision, pod, address, "deny")
        return Scene(
            title="A policy changes, and a curl is denied",
            did=(f"apply {manifest}", f"{pod.key}: dig {DENIED_NAME}; curl http://{DENIED_NAME}/"),
            verdict=verdict.id,
            spans=spans,
        )

    async def _record_allowed(self) -> Scene:
        pod, asking, manifest = topology.find_pod(ALLOWED_POD), topology.find_pod(ASKING_POD), "6-access-to-s3.yaml"
        revision = await self._apply(manifest)
        (address,) = await self._demo.traffic.resolve(asking, ALLOWED_NAME)
        for node in topology.NODES:
            await asyncio.to_thread(self._spans.find, f"{node.name} learned", partial(_has_learned, node.name))
        if not (await self._demo.traffic.connect(pod, ALLOWED_NAME, 443, address)).is_open:
            raise DemoError(f"{pod.key} did not reach {ALLOWED_NAME}, which its policy allows")
        verdict, spans = await self._collect(revision, pod, address, "allow")
        return Scene(
            title="A name is allowed that a pod on the other node resolved",
            did=(
                f"apply {manifest}",
                f"{asking.key} on {asking.node.name}: dig {ALLOWED_NAME}",
                f"{pod.key} on {pod.node.name}: curl http://{ALLOWED_NAME}:443/",
            ),
            verdict=verdict.id,
            spans=spans,
        )

    async def _apply(self, manifest: str) -> int:
        before = await read_revision(self._demo.bus)
        self._demo.folder.write_policy(manifest)
        return await self._demo.settle(before)

    async def _collect(
        self, revision: int, pod: topology.Pod, address: str, verdict: str
    ) -> tuple[Span, tuple[Span, ...]]:
        """The verdict, and all spans of its story once they have arrived."""
        wanted = {"k8s.pod.name": pod.name, "destination.address": address, "yett.verdict": verdict}
        return await asyncio.to_thread(self._await_story, wanted, str(revision))

    def _await_story(self, wanted: dict[str, str], revision: str) -> tuple[Span, tuple[Span, ...]]:
        find = self._spans.find
        verdict = find(f"a verdict with {wanted}", lambda one: wanted.items() <= one.attributes.items())
        applied = self._spans.linked(verdict)["apply revision"]
        if applied.attributes["yett.revision"] != revision:
            raise DemoError(f"a verdict under revision {applied.attributes['yett.revision']}, not {revision}")
        for name, node in (
            *((name, None) for name in CHANGE),
            *(("apply revision", one.name) for one in topology.NODES),
        ):
            find(f"{name}, {node}", partial(_is_span, name, applied.trace, node))
        return verdict, choose_spans(verdict, self._spans.all())


def _is_span(name: str, trace: str, node: str | None, span: Span) -> bool:
    return (span.name, span.trace, span.attributes.get("k8s.node.name")) == (name, trace, node)


def _has_learned(node: str, span: Span) -> bool:
    return (span.name, span.attributes.get("k8s.node.name")) == ("learn name", node)


def record_story() -> Recording:
    """A run of its own, from nothing to nothing; DemoError if it cannot be had here."""
    check_machine()
    with owned_run() as run:
        demo = Demo(run, Console(stderr=True), Options())
        recorded: list[Recording] = []

        async def work() -> None:
            try:
                await demo.build()
                start_receiver(demo.lab)
                with tracing(run):
                    await demo.start_services()
                recorded.append(await Recorder(demo).record())
            finally:
                await demo.close()

        uvloop.run(until_signalled(work()))
    return recorded[0]
