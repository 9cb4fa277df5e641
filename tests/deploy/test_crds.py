"""The files under deploy/crds are what their generator makes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from services.controller.kube_kinds import kinds_read
from services.controller.policy import parse_cluster_policy

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_crds", DEPLOY / "make_crds.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_the_generator_makes(generator: ModuleType) -> None:
    """Nobody changed them by hand, and none was forgotten."""
    made = {name: generator.render(content) for name, content in generator.definitions().items()}
    assert {path.name: path.read_text() for path in (DEPLOY / "crds").iterdir()} == made


def test_limits_are_the_readers(generator: ModuleType) -> None:
    """A number that stands in a schema is the one that the reader refuses by."""
    assert generator.NETWORKS_MAX == parse_cluster_policy.NETWORKS_MAX
    assert generator.CIDR_LENGTH_MAX == parse_cluster_policy.CIDR_TEXT_MAX
    assert generator.RULE_NAME_MAX == parse_cluster_policy.RULE_NAME_MAX
    assert generator.PRIORITY_MAX == parse_cluster_policy.PRIORITY_MAX


def test_each_definition_is_one_that_the_controller_reads(generator: ModuleType) -> None:
    """By the name and the version under which it is watched."""
    read = {kind.resource: kind.versions for kind in kinds_read("yett-system") if kind.is_custom}
    for content in generator.definitions().values():
        assert read[content["metadata"]["name"]] == (content["spec"]["versions"][0]["name"],)
