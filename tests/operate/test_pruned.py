"""What was applied and is not stored, by its path."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.operate.pruned import APPLIED, find_pruned


def stored(applied: Any, spec: Any) -> dict[str, Any]:
    text = json.dumps({"spec": applied})
    metadata = {"name": "p", "namespace": "a", "annotations": {APPLIED: text}}
    return {"kind": "ClusterNetworkPolicy", "metadata": metadata, "spec": spec}


@pytest.mark.parametrize(
    ("applied", "spec", "paths"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 2, "c": 3}}, []),
        ({"a": {"b": 1}}, {"a": {}}, ["spec.a.b"]),
        ({"a": None}, {}, []),
        ({"a": [{"b": 1, "c": 1}, {}]}, {"a": [{"b": 1}]}, ["spec.a[0].c", "spec.a[1]"]),
        ({"a": {"b": 1}}, {}, ["spec.a"]),
    ],
)
def test_a_field_is_missed_where_the_stored_spec_lacks_it(applied: Any, spec: Any, paths: list[str]) -> None:
    """Another value is an edit, one more a default, null says nothing; whole items of lists count too."""
    found = find_pruned(stored(applied, spec))
    assert [each.path for each in found] == paths and {each.object for each in found} <= {"ClusterNetworkPolicy a/p"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"spec": 5}'])
def test_without_a_readable_annotation_there_is_nothing_to_say(text: str) -> None:
    """Nobody applied it, or somebody wrote nonsense there."""
    obj = stored({}, {"a": 1})
    obj["metadata"]["annotations"][APPLIED] = text
    assert find_pruned(obj) == []
