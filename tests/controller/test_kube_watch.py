"""Which version of a kind is read, and from where a watch goes on; without a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from services.controller import kube
from services.controller.kube_kinds import DEFINITIONS, Item, Kind, decode_item, kinds_read
from services.controller.kube_watch import Definitions, Pace, Watcher
from services.controller.policy.model import PolicyKey
from tests.controller.scripted import Obj, ScriptedApi, line, listed

KINDS = {kind.resource: kind for kind in kinds_read("yett-system")}
PODS, SLICES = KINDS["pods"], KINDS["endpointslices.discovery.k8s.io"]
UPSTREAM = KINDS["clusternetworkpolicies.policy.networking.k8s.io"]
POD_PATH = "/api/v1/pods"
SLICE_PATHS = {version: f"/apis/discovery.k8s.io/{version}/endpointslices" for version in ("v1", "v1beta1")}
POLICY_PATHS = {
    version: f"/apis/policy.networking.k8s.io/{version}/clusternetworkpolicies"
    for version in ("v1alpha2", "v1beta1", "v1")
}


class Told:
    """What a watcher has said: the objects as they stand, and how often each was told."""

    def __init__(self, api: ScriptedApi) -> None:
        self._api = api
        self.standing: dict[PolicyKey, Obj] = {}
        self.news: list[str] = []
        self.times = 0

    def take(self, items: list[Item], gone: list[PolicyKey]) -> None:
        self.standing |= {item.key: item.obj for item in items}
        self.news += [item.key[2] for item in items] + [f"-{key[2]}" for key in gone]
        for key in gone:
            del self.standing[key]
        self.times += 1
        self._api.wake()


@asynccontextmanager
async def watching(
    api: ScriptedApi, kind: Kind, definitions: Definitions | None = None
) -> AsyncIterator[tuple[Watcher, Told]]:
    told = Told(api)
    watcher = Watcher(api, kind, told.take, Pace(), definitions=definitions)
    running = asyncio.create_task(watcher.run())
    try:
        yield watcher, told
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


# ---------------------------------------------------------------------------------------------------------------------
# Versions


@pytest.mark.parametrize(
    ("served", "read"), [(["v1", "v1beta1"], "v1"), (["v1beta1", "v1"], "v1"), (["v1"], "v1"), (["v1beta1"], "v1beta1")]
)
def test_of_several_versions_of_a_kind_the_first_that_is_served_is_read(served: list[str], read: str) -> None:
    """Whatever the server's order."""

    async def scenario() -> None:
        group: Obj = {"versions": [{"groupVersion": f"discovery.k8s.io/{each}", "version": each} for each in served]}
        api = ScriptedApi({"/apis/discovery.k8s.io": group} | {SLICE_PATHS[each]: listed() for each in served})
        async with watching(api, SLICES) as (watcher, _):
            await api.until(lambda: api.watched)
            assert watcher.is_complete and api.watched == [(SLICE_PATHS[read], "1")]
            assert api.asked == ["/apis/discovery.k8s.io", SLICE_PATHS[read]]

    asyncio.run(scenario())


@pytest.mark.parametrize("served", [[], ["v2"]])
def test_a_kind_that_every_server_has_and_this_one_lacks_keeps_the_world_incomplete(served: list[str]) -> None:
    """It says so, and asks again."""

    async def scenario() -> None:
        api = ScriptedApi({"/apis/discovery.k8s.io": {"versions": [{"version": each} for each in served]}})
        async with watching(api, SLICES) as (watcher, told):
            await api.until(lambda: len(api.asked) > 1)
            assert not watcher.is_complete and not told.news and not api.watched
            assert watcher.trouble == "endpointslices.discovery.k8s.io: none of v1, v1beta1 is served"
            assert set(api.asked) == {"/apis/discovery.k8s.io"}

    asyncio.run(scenario())


def defined(kind: Kind, *versions: str, is_established: bool = True) -> Item:
    """A definition that serves these versions."""
    obj = {
        "metadata": {"name": kind.resource},
        "spec": {"versions": [{"name": version, "served": True} for version in versions]},
        "status": {"conditions": [{"type": "Established", "status": str(is_established)}]},
    }
    item = decode_item(DEFINITIONS, "v1", msgspec.json.encode(obj))
    assert item is not None
    return item


def gone(kind: Kind) -> list[PolicyKey]:
    return [("CustomResourceDefinition", "", kind.resource)]


POLICY: Obj = {
    "metadata": {"name": "p", "uid": "u-1"},
    "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}},
}
EVERYWHERE: dict[str, Obj] = {path: listed(POLICY) for path in POLICY_PATHS.values()}


@pytest.mark.parametrize(
    ("served", "read"), [(["v1alpha2"], "v1alpha2"), (["v1beta1"], "v1beta1"), (["v1beta1", "v1alpha2"], "v1alpha2")]
)
def test_the_upstream_kind_is_read_in_either_version(served: list[str], read: str) -> None:
    """In the one that reads all that the other admits where both are served; it comes under that version."""

    async def scenario() -> None:
        api, definitions = ScriptedApi(EVERYWHERE), Definitions()
        definitions.take([defined(UPSTREAM, *served)], [])
        async with watching(api, UPSTREAM, definitions) as (watcher, told):
            await api.until(lambda: api.watched)
            assert [path for path, _ in api.watched] == [POLICY_PATHS[read]] and not watcher.unread
            [policy] = told.standing.values()
            assert policy["apiVersion"] == f"policy.networking.k8s.io/{read}"

    asyncio.run(scenario())


def test_a_custom_kind_in_a_foreign_version_is_no_missing_kind() -> None:
    """No definition, and one that is not established, say nothing; one that serves only what is not read does, keeps
    nobody waiting and asks for nothing; when a version that is read is served too, its objects come."""

    async def scenario() -> None:
        api, definitions = ScriptedApi(EVERYWHERE), Definitions()
        definitions.take([], [])
        async with watching(api, UPSTREAM, definitions) as (watcher, told):
            await api.until(lambda: told.times == 1)
            assert not watcher.unread
            definitions.take([defined(UPSTREAM, "v1", is_established=False)], [])
            await api.until(lambda: told.times == 2)
            assert not watcher.unread
            definitions.take([defined(UPSTREAM, "v1", "v1alpha9")], [])
            await api.until(lambda: told.times == 3)
            assert watcher.unread == "served as v1, v1alpha9 and read as v1alpha2, v1beta1: none of its objects is read"
            assert watcher.is_complete and not watcher.trouble and not api.asked and not told.news
            definitions.take([defined(UPSTREAM, "v1", "v1beta1")], [])
            await api.until(lambda: told.standing)
            assert not watcher.unread and api.asked == [POLICY_PATHS["v1beta1"]]

    asyncio.run(scenario())


@pytest.mark.parametrize(("left", "said"), [(["v1"], "served as v1 and"), ([], "served as nothing and")])
def test_what_was_known_stays_while_there_is_a_definition(left: list[str], said: str) -> None:
    """A definition that no longer serves what is read opens nothing: its policies stay, and it is said; they go with
    the definition."""

    async def scenario() -> None:
        api, definitions = ScriptedApi(EVERYWHERE), Definitions()
        definitions.take([defined(UPSTREAM, "v1alpha2")], [])
        async with watching(api, UPSTREAM, definitions) as (watcher, told):
            await api.until(lambda: api.watched)
            definitions.take([defined(UPSTREAM, *left)], [])
            api.end_watch()
            assert watcher.unread.startswith(said) and watcher.unread.endswith("the 1 last known stay")
            await api.until(lambda: told.times == 2)
            definitions.take([defined(SLICES, "v1")], [])  # another kind's affair
            await api.until(lambda: told.times == 3)
            assert told.news == ["p"] and told.standing
            definitions.take([], gone(UPSTREAM))
            await api.until(lambda: not told.standing)
            assert told.news == ["p", "-p"] and not watcher.unread

    asyncio.run(scenario())


def test_another_version_of_an_object_is_news() -> None:
    """Its status is asked for by the version that is served: told again, under that one."""

    async def scenario() -> None:
        api, definitions = ScriptedApi(EVERYWHERE), Definitions()
        definitions.take([defined(UPSTREAM, "v1alpha2")], [])
        async with watching(api, UPSTREAM, definitions) as (_, told):
            await api.until(lambda: api.watched)
            definitions.take([defined(UPSTREAM, "v1beta1")], [])
            api.end_watch()
            await api.until(lambda: len(api.watched) == 2)
            assert told.news == ["p", "p"]
            [policy] = told.standing.values()
            assert policy["apiVersion"] == "policy.networking.k8s.io/v1beta1"

    asyncio.run(scenario())


def test_the_source_says_which_kinds_it_cannot_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a problem of the source, beside everything that it does read; when it can, the problem goes."""
    monkeypatch.setattr(kube, "LOOK_SECONDS", 0.01)

    def of(*versions: str) -> Obj:
        obj = {**defined(UPSTREAM, *versions).obj}
        return listed({key: obj[key] for key in ("metadata", "spec", "status")})

    async def scenario() -> None:
        answers: dict[str, Obj] = {kind.path(kind.versions[0]): listed() for kind in KINDS.values()} | EVERYWHERE
        answers["/apis/discovery.k8s.io"] = {"versions": [{"version": "v1"}]}
        answers[DEFINITIONS.path("v1")] = of("v1")
        api, said = ScriptedApi(answers), []
        cluster = kube.Cluster(api, "yett-system", Pace())
        async with asyncio.timeout(20):
            async for events in cluster.watch():
                said += [event.problems for event in events if event.problems is not None]
                if said:
                    break
        [problem] = said[0]
        assert problem.object == "Kubernetes API clusternetworkpolicies.policy.networking.k8s.io"
        assert problem.severity == "warning" and problem.message.startswith("served as v1 and read as v1alpha2")

    asyncio.run(scenario())


@pytest.mark.parametrize("is_established", [True, False])
def test_a_kind_is_unread_until_it_has_been_listed_whole(is_established: bool) -> None:
    """From the first look at a definition that serves nothing that is read, be it none yet, to the end of a list; a
    list that fails ends nothing. A kind without a definition is not unread, but empty."""

    async def scenario() -> None:
        api, definitions = ScriptedApi({}), Definitions()
        definitions.take([defined(UPSTREAM, "v1", is_established=is_established)], [])
        async with watching(api, UPSTREAM, definitions) as (watcher, told):
            await api.until(lambda: told.times == 1)
            assert watcher.is_complete and watcher.is_unread
            definitions.take([defined(UPSTREAM, "v1beta1")], [])
            await api.until(lambda: api.asked)
            assert watcher.is_unread and not watcher.unread
            api.answers |= EVERYWHERE
            await api.until(lambda: told.standing)
            assert not watcher.is_unread
            definitions.take([defined(UPSTREAM, "v1")], [])
            api.end_watch()
            await api.until(lambda: watcher.is_unread)
            definitions.take([], gone(UPSTREAM))
            await api.until(lambda: not told.standing)
            assert not watcher.is_unread

    asyncio.run(scenario())


def test_the_first_that_a_source_says_tells_of_unread_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever compiles it must not take what such a kind lacks for gone; when the kind is read, the same batch brings
    its objects."""
    monkeypatch.setattr(kube, "LOOK_SECONDS", 60.0)  # no batch of problems in between

    async def scenario() -> None:
        definition = defined(UPSTREAM, "v1").obj
        answers: dict[str, Obj] = {kind.path(kind.versions[0]): listed() for kind in KINDS.values()}
        answers["/apis/discovery.k8s.io"] = {"versions": [{"version": "v1"}]}
        answers[DEFINITIONS.path("v1")] = listed({key: definition[key] for key in ("metadata", "spec", "status")})
        api = ScriptedApi(answers | {POLICY_PATHS["v1beta1"]: listed(POLICY)})
        cluster = kube.Cluster(api, "yett-system", Pace())
        batches = cluster.watch()
        async with asyncio.timeout(20):
            [unread] = [event.unread for event in await anext(batches) if event.unread is not None]
            assert unread == {"ClusterNetworkPolicy.policy.networking.k8s.io"}
            cluster._definitions.take([defined(UPSTREAM, "v1beta1")], [])
            first, last = await anext(batches)
            assert first.obj is not None and last.unread == frozenset()
        await batches.aclose()  # type: ignore[attr-defined]

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------------------------------------------
# Bookmarks


def bookmark(version: str) -> bytes:
    """As a server writes one: an object of the kind with nothing but its version."""
    return line("BOOKMARK", {"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "spec": {}})


def pod(name: str, version: str) -> Obj:
    return {"metadata": {"name": name, "namespace": "app", "resourceVersion": version}}


@pytest.mark.parametrize(
    ("lines", "resumed"),
    [
        ([], "5"),
        ([bookmark("9")], "9"),
        ([bookmark("7"), bookmark("9")], "9"),
        ([line("ADDED", pod("b", "6")), bookmark("9")], "9"),
        ([bookmark("9"), line("ADDED", pod("b", "11"))], "11"),
        ([bookmark("9"), bookmark("")], "9"),
        ([bookmark("9"), line("BOOKMARK", {"metadata": {}})], "9"),
        ([bookmark("9"), line("BOOKMARK", {"metadata": {"resourceVersion": None}})], "9"),
    ],
)
def test_a_watch_goes_on_from_the_last_bookmark(lines: Sequence[bytes], resumed: str) -> None:
    """No list in between, and a bookmark is no object: nothing is told but what came. One without a version loses
    nothing: the one before it counts."""

    async def scenario() -> None:
        api = ScriptedApi({POD_PATH: listed(pod("a", "2"), version="5")}, [list(lines)])
        async with watching(api, PODS) as (watcher, told):
            await api.until(lambda: len(api.watched) == 2)
            assert [version for _, version in api.watched] == ["5", resumed]
            assert told.news == ["a", *(["b"] if any(b"ADDED" in each for each in lines) else [])]
            assert watcher.lists == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "bad",
    [
        b"{",
        b"",
        line("BOOKMARK", {}),
        line("BOOKMARK", None),
        line("BOOKMARK", {"metadata": {"resourceVersion": 9}}),
        line("BOOKMARK", {"metadata": []}),
    ],
)
def test_an_ill_formed_bookmark_loses_nothing(bad: bytes) -> None:
    """What a line said that cannot be read a list tells: what came and went meanwhile, and nothing twice."""

    async def scenario() -> None:
        answers: dict[str, Any] = {POD_PATH: listed(pod("a", "2"), pod("b", "3"), version="5")}
        api = ScriptedApi(answers, [[bookmark("9"), bad, line("ADDED", pod("never heard", "12"))]])
        async with watching(api, PODS) as (watcher, told):
            await api.until(lambda: told.news)
            answers[POD_PATH] = listed(pod("b", "3"), pod("c", "12"), version="20")
            await api.until(lambda: len(api.watched) == 2)
            assert told.news == ["a", "b", "c", "-a"]
            assert [version for _, version in api.watched] == ["5", "20"] and watcher.lists == 2
            assert not watcher.trouble

    asyncio.run(scenario())
