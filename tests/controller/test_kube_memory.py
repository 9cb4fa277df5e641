"""What a source remembers of a kind: lists and watches say the difference, and nothing twice."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from services.controller.kube_kinds import DEFINITIONS, Item, Kind, decode_item, kinds_read
from services.controller.kube_memory import Memory

KINDS = {kind.resource: kind for kind in kinds_read("yett-system")}
POD = KINDS["pods"]


def item(name: str, *, version: str = "1", kind: Kind = POD, **fields: Any) -> Item:
    """An object as a server sends it."""
    metadata = {"name": name, "namespace": "shop", "resourceVersion": version, "managedFields": [{"manager": "x"}]}
    raw = msgspec.json.encode({"metadata": metadata | fields.pop("metadata", {}), **fields})
    decoded = decode_item(kind, kind.versions[0], raw)
    assert decoded is not None
    return decoded


def test_an_object_is_cut_down_to_what_counts() -> None:
    """apiVersion and kind are added, which lists leave out; resourceVersion, foreign annotations, managed fields and
    everything of a pod that no policy can ask for are dropped; null is absent."""
    annotations = {"yett.dev/default": "deny", "kubectl.kubernetes.io/last-applied-configuration": "{}" * 1000}
    spec = {"nodeName": "a", "volumes": [{"name": "v"}], "containers": [{"image": "i", "ports": None}]}
    found = item("web", metadata={"annotations": annotations}, spec=spec, status={"podIP": "10.0.0.1", "phase": None})
    assert found.obj == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", "annotations": {"yett.dev/default": "deny"}},
        "spec": {"nodeName": "a", "containers": [{}]},
        "status": {"podIP": "10.0.0.1"},
    }


def test_a_policys_spec_is_kept_whole() -> None:
    """Fields that are not known too: they are refused by who reads it, not lost here."""
    spec = {"podSelector": {"matchLabels": {"a": "b"}}, "surprise": [1, {"x": None}]}
    assert item("p", kind=KINDS["networkpolicies.networking.k8s.io"], spec=spec).obj["spec"] == spec


def test_two_objects_differ_where_their_content_does() -> None:
    """Another resourceVersion alone makes no difference; a label does."""
    assert item("web", version="1").fingerprint == item("web", version="2").fingerprint
    assert item("web", metadata={"labels": {"a": "b"}}).fingerprint != item("web").fingerprint


def test_a_definition_serves_nothing_before_it_is_established() -> None:
    """Nor the versions that it keeps but does not serve."""
    versions = [{"name": "v1", "served": True}, {"name": "v0", "served": False}]
    for status, served in (("True", {"v1"}), ("False", set())):
        conditions = [{"type": "Established", "status": status}]
        found = item("x.y", kind=DEFINITIONS, spec={"versions": versions}, status={"conditions": conditions})
        assert found.served == served
    assert item("x.y", kind=DEFINITIONS, spec={"versions": versions}).served == frozenset()


Contents = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 3))


@given(st.lists(Contents, max_size=6), st.integers(1, 3))
def test_whatever_is_listed_its_differences_add_up_to_it(lists: list[dict[str, int]], page: int) -> None:
    """Lists in pages of any size: applying what each is told to have changed and to be gone gives the list itself, and
    an object that did not change is not told."""
    memory, held = Memory(), {}
    for listed in lists:
        before = dict(held)
        items = [item(name, metadata={"labels": {"v": str(value)}}) for name, value in listed.items()]
        memory.begin_list()
        for first in range(0, len(items), page):
            for changed in memory.take_page(items[first : first + page]):
                held[changed.key[2]] = int(changed.obj["metadata"]["labels"]["v"])
                assert before.get(changed.key[2]) != held[changed.key[2]]
        for key in memory.end_list():
            del held[key[2]]
        assert held == listed and len(memory) == len(listed)


def test_a_list_that_is_broken_off_leaves_everything_as_it_was() -> None:
    """What was known stays known, what it said is said again by the next, and that one says what went."""
    memory = Memory()
    memory.begin_list()
    assert len(memory.take_page([item("a"), item("b")])) == 2
    assert memory.end_list() == []
    memory.begin_list()
    memory.take_page([item("c")])
    memory.begin_list()
    assert [each.key[2] for each in memory.take_page([item("a"), item("c")])] == ["c"]
    assert memory.end_list() == [("Pod", "shop", "b")]
    assert memory.drop(("Pod", "shop", "a")) and not memory.drop(("Pod", "shop", "a"))
