"""When a policy's status is written, by a clock that leaps; without a server."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from schemas.status import Problem
from schemas.terms import NodeName, PolicyKind, RevisionNumber
from services.controller.kube_api import KubeError, Query
from services.controller.kube_status import COUNT_SECONDS, LISTEN_SECONDS, LOOK_SECONDS, StatusWriter
from services.controller.policy.model import PolicyKey
from services.controller.policy_status import PolicyObject, Standing, Told, describe
from tests.controller.leaping import run_leaping
from tests.controller.scripted import Obj, ScriptedApi

KEY: PolicyKey = (PolicyKind.APPLICATION_NETWORK_POLICY.value, "shop", "p")
AWS = "networking.k8s.aws/v1alpha1"
PATH = "/apis/networking.k8s.aws/v1alpha1/namespaces/shop/applicationnetworkpolicies/p"
NODES = ("a", "b", "c")
OBJECT = PolicyObject(KEY, AWS, "u1", 1, RevisionNumber(7))
ON_EVERY_NODE = Standing((), 1, frozenset(NodeName(node) for node in NODES))
PROMPT_SECONDS = 2 * LOOK_SECONDS
"""A change that comes during one look is seen by the next."""


@dataclass(frozen=True)
class Write:
    """A PATCH, by the loop's clock."""

    at_seconds: float
    path: str
    conditions: dict[str, Obj]

    @property
    def programmed(self) -> str:
        return str(self.conditions["Programmed"]["message"])


class Kept(ScriptedApi):
    """A server that stores objects and their status."""

    def __init__(self, *paths: str) -> None:
        super().__init__({path: {"metadata": {"uid": "u1", "resourceVersion": "1"}} for path in paths})
        self.writes: list[Write] = []
        self.refusing: dict[str, int] = {}
        """What a path's PATCH is answered with, by the object's path."""
        self.refused_at: list[float] = []

    async def send(
        self, method: str, path: str, *, query: Query | None = None, body: Any = None, content_type: str = ""
    ) -> bytes:
        if method == "PATCH":
            if (code := self.refusing.get(path.removesuffix("/status"))) is not None:
                self.refused_at.append(asyncio.get_running_loop().time())
                raise KubeError(f"PATCH {path}: {code}", code=code)
            stored = self.answers.get(path.removesuffix("/status"))
            if stored is None:
                raise KubeError(f"PATCH {path}: 404", code=404)
            assert body["metadata"]["resourceVersion"] == stored["metadata"]["resourceVersion"]
            stored["metadata"]["resourceVersion"] += "0"
            stored["status"] = body["status"]
            conditions = {each["type"]: each for each in body["status"]["conditions"]}
            self.writes.append(Write(asyncio.get_running_loop().time(), path, conditions))
        return await super().send(method, path, query=query, body=body, content_type=content_type)


@dataclass
class Desk:
    """A leader's policy and its nodes, and the writer that is told of them."""

    api: Kept
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    obj: PolicyObject = OBJECT
    standing: Standing = ON_EVERY_NODE
    acknowledged: dict[str, RevisionNumber] = field(default_factory=dict)
    names: tuple[str, ...] = ("p",)

    def read(self) -> list[Told]:
        conditions = describe(self.obj, self.standing, self.acknowledged)
        keys = [(*self.obj.key[:2], name) for name in self.names]
        return [Told(key, self.obj.api_version, self.obj.uid, self.obj.generation, conditions) for key in keys]

    def come(self, *nodes: str, revision: int = 7) -> float:
        """Nodes have come to a revision; when."""
        self.acknowledged |= {node: RevisionNumber(revision) for node in nodes}
        self.changed.set()
        return self.now

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    @property
    def said(self) -> list[str]:
        return [write.programmed for write in self.api.writes]


@asynccontextmanager
async def writing(desk: Desk) -> AsyncIterator[Desk]:
    """The writer has looked once."""
    running = asyncio.create_task(StatusWriter(desk.api, "yett-system").run(desk.changed, desk.read))
    try:
        await asyncio.sleep(LISTEN_SECONDS + LOOK_SECONDS)
        yield desk
    finally:
        running.cancel()
        outcome = (await asyncio.gather(running, return_exceptions=True))[0]
        assert isinstance(outcome, asyncio.CancelledError), outcome


def said(counts: Sequence[int]) -> list[str]:
    return [f"enforced on {count} of 3 nodes" for count in counts]


def test_nodes_that_come_one_by_one_make_two_writes() -> None:
    """That it is pending, and that it is enforced, as soon as the last one has come; what merely counts is not said."""

    async def scenario() -> None:
        async with writing(Desk(Kept(PATH))) as desk:
            assert desk.said == said([0])
            for node in NODES:
                await asyncio.sleep(5)
                came_at = desk.come(node)
            await asyncio.sleep(PROMPT_SECONDS)
            assert desk.said == said([0, 3])
            last = desk.api.writes[-1]
            assert 0 <= last.at_seconds - came_at <= PROMPT_SECONDS
            assert last.conditions["Programmed"]["status"] == "True"
            await asyncio.sleep(10 * COUNT_SECONDS)
            assert len(desk.api.writes) == 2

    run_leaping(scenario())


def test_a_count_is_written_once_a_minute() -> None:
    """Nodes that come and go every second for ten minutes; then what stands there is the last count."""

    async def scenario() -> None:
        async with writing(Desk(Kept(PATH))) as desk:
            for second in range(600):
                desk.come("a", revision=7 if second % 2 else 6)
                await asyncio.sleep(1)
            written = [write.at_seconds for write in desk.api.writes]
            gaps = [later - sooner for sooner, later in itertools.pairwise(written)]
            assert all(gap >= COUNT_SECONDS for gap in gaps) and 5 <= len(gaps) <= 10
            desk.come("a", "b")
            await asyncio.sleep(2 * COUNT_SECONDS)
            assert desk.said[-1] == said([2])[0]
            assert len(desk.api.writes) - len(written) <= 2

    run_leaping(scenario())


def test_a_transition_does_not_wait_for_the_minute() -> None:
    """Right after a write: back to pending by a new version, and enforced again."""

    async def scenario() -> None:
        async with writing(Desk(Kept(PATH))) as desk:
            desk.come(*NODES)
            await asyncio.sleep(PROMPT_SECONDS)
            desk.obj = PolicyObject(KEY, AWS, "u1", 2, RevisionNumber(8))
            desk.changed.set()
            await asyncio.sleep(PROMPT_SECONDS)
            desk.come(*NODES, revision=8)
            await asyncio.sleep(PROMPT_SECONDS)
            assert desk.said == said([0, 3, 0, 3])
            generations = [write.conditions["Programmed"]["observedGeneration"] for write in desk.api.writes]
            assert generations == [1, 1, 2, 2]

    run_leaping(scenario())


LATER = f"{PATH.removesuffix('/p')}/later"


def test_one_that_is_refused_keeps_no_other_waiting() -> None:
    """Its status does not fit its definition: the policies behind it have theirs at once, it is tried less and less
    often, and written when it fits."""

    async def scenario() -> None:
        api = Kept(PATH, LATER)
        api.refusing[PATH] = 422
        async with writing(Desk(api, names=("p", "later"))) as desk:
            assert [write.path for write in api.writes] == [f"{LATER}/status"]
            came_at = desk.come(*NODES)
            await asyncio.sleep(PROMPT_SECONDS)
            assert desk.said == said([0, 3]) and api.writes[-1].at_seconds - came_at <= PROMPT_SECONDS
            await asyncio.sleep(10 * COUNT_SECONDS)
            assert len(api.writes) == 2 and 10 <= len(api.refused_at) <= 18
            del api.refusing[PATH]
            await asyncio.sleep(COUNT_SECONDS + PROMPT_SECONDS)
            assert [write.path for write in api.writes[2:]] == [f"{PATH}/status"] and desk.said[-1] == said([3])[0]

    run_leaping(scenario())


def test_a_new_generation_of_one_that_was_refused_is_tried_at_once() -> None:
    """However long the one before it had to wait."""

    async def scenario() -> None:
        api = Kept(PATH)
        api.refusing[PATH] = 422
        async with writing(Desk(api)) as desk:
            await asyncio.sleep(5 * COUNT_SECONDS)
            api.refusing.clear()
            desk.obj = PolicyObject(KEY, AWS, "u1", 2, RevisionNumber(8))
            desk.changed.set()
            await asyncio.sleep(PROMPT_SECONDS)
            assert [write.conditions["Accepted"]["observedGeneration"] for write in api.writes] == [2]

    run_leaping(scenario())


def test_one_that_is_not_served_keeps_no_other_waiting() -> None:
    """Known from a version that the cluster no longer serves: it cannot be read, and the next one is."""

    async def scenario() -> None:
        async with writing(Desk(Kept(LATER), names=("p", "later"))) as desk:
            assert [write.path for write in desk.api.writes] == [f"{LATER}/status"]

    run_leaping(scenario())


@pytest.mark.parametrize("code", [0, 401, 429, 500, 503])
def test_a_server_that_takes_nothing_is_left_in_peace(code: int) -> None:
    """No other policy is tried in the same look; all of them a second later."""

    async def scenario() -> None:
        api = Kept(PATH, LATER)
        api.refusing = {PATH: code, LATER: code}
        async with writing(Desk(api, names=("p", "later"))):
            assert len(api.refused_at) == 1 and api.asked == [PATH, PATH]
            api.refusing.clear()
            await asyncio.sleep(2.0)
            assert [write.path for write in api.writes] == [f"{PATH}/status", f"{LATER}/status"]

    run_leaping(scenario())


def test_what_is_read_in_another_version_is_written_in_that_one() -> None:
    """v1alpha2 need not be served."""
    path = "/apis/policy.networking.k8s.io/v1beta1/clusternetworkpolicies/p"
    key = (PolicyKind.CLUSTER_NETWORK_POLICY.value, "", "p")

    async def scenario() -> None:
        obj = PolicyObject(key, "policy.networking.k8s.io/v1beta1", "u1", 1, RevisionNumber(7))
        async with writing(Desk(Kept(path), obj=obj)) as desk:
            assert [write.path for write in desk.api.writes] == [f"{path}/status"]
            assert set(desk.api.asked) == {path}
            desk.standing = Standing((Problem(object="p", path="spec", message="required"),), 1, frozenset())
            desk.changed.set()
            await asyncio.sleep(PROMPT_SECONDS)
            [event] = [body for method, _, body in desk.api.sent if method == "POST"]
            assert event["involvedObject"]["apiVersion"] == "policy.networking.k8s.io/v1beta1"

    run_leaping(scenario())


def test_a_kind_without_a_status_has_one_event_and_no_request_else() -> None:
    """Neither read nor written, accepted or refused; what is refused is said once."""

    async def scenario() -> None:
        key = (PolicyKind.NETWORK_POLICY.value, "shop", "p")
        obj = PolicyObject(key, "networking.k8s.io/v1", "u1", 1, RevisionNumber(7))
        async with writing(Desk(Kept(), obj=obj)) as desk:
            assert not desk.api.asked and not desk.api.sent
            desk.standing = Standing((Problem(object="p", path="spec.x", message="unknown field"),), None, frozenset())
            for _ in range(3):
                desk.changed.set()
                await asyncio.sleep(COUNT_SECONDS)
            [(method, path, event)] = desk.api.sent
            assert (method, path) == ("POST", "/api/v1/namespaces/shop/events") and not desk.api.asked
            assert event["message"] == "spec.x: unknown field"
            assert event["involvedObject"] == {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "name": "p",
                "uid": "u1",
                "namespace": "shop",
            }

    run_leaping(scenario())
