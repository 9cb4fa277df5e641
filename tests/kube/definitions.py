"""The definitions that are shipped, as a server of 1.20 takes them: it knows no validation expressions.

The expressions are evaluated here, by a CEL interpreter of its own, as a newer server would.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celpy
import yaml

FOLDER = Path(__file__).parents[2] / "deploy" / "crds"
EXPRESSIONS = "x-kubernetes-validations"


def shipped(kind: str) -> dict[str, Any]:
    """The definition of a kind of the AWS group, as it is in ``deploy/crds``."""
    found = [each for path in FOLDER.glob("*.yaml") if (each := yaml.safe_load(path.read_text()))["kind"]]
    (one,) = [each for each in found if each["spec"]["names"]["kind"] == kind]
    return dict(one)


def definition(kind: str) -> dict[str, Any]:
    """The same without its expressions."""
    stripped: dict[str, Any] = _strip(shipped(kind))
    return stripped


def _strip(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strip(each) for key, each in value.items() if key != EXPRESSIONS}
    return [_strip(each) for each in value] if isinstance(value, list) else value


def schema_of(kind: str) -> dict[str, Any]:
    """The whole object's schema."""
    found: dict[str, Any] = shipped(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def broken_rules(schema: dict[str, Any], value: Any) -> list[str]:
    """The messages of the expressions that an object breaks; defaults are filled in first, as a server does."""
    return list(_broken(schema, fill_defaults(schema, value)))


def fill_defaults(schema: dict[str, Any], value: Any) -> Any:
    if isinstance(value, dict):
        known = schema.get("properties", {})
        given = {key: each["default"] for key, each in known.items() if "default" in each}
        return given | {key: fill_defaults(known.get(key, {}), each) for key, each in value.items()}
    return [fill_defaults(schema.get("items", {}), each) for each in value] if isinstance(value, list) else value


def _broken(schema: dict[str, Any], value: Any) -> Iterator[str]:
    for rule in schema.get(EXPRESSIONS, ()):
        if not is_kept(rule["rule"], value):
            yield rule["message"]
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _broken(schema.get("properties", {}).get(key, {}), each)
    elif isinstance(value, list):
        for each in value:
            yield from _broken(schema.get("items", {}), each)


def is_kept(expression: str, value: Any) -> bool:
    """Whether a value keeps a rule; an expression that fails counts as broken, as on a server."""
    environment = celpy.Environment()
    program = environment.program(environment.compile(expression))
    try:
        return bool(program.evaluate({"self": celpy.json_to_cel(value)}))
    except celpy.CELEvalError:
        return False


def open_definition(group: str, version: str, kind: str, plural: str, *, scope: str) -> dict[str, Any]:
    """A definition that takes anything: of kinds that others define."""
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "metadata": {
            "name": f"{plural}.{group}",
            # Groups under k8s.io are the project's own; a server wants to be told who approved a definition of one.
            "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
        },
        "spec": {
            "group": group,
            "scope": scope,
            "names": {"plural": plural, "kind": kind, "listKind": f"{kind}List", "singular": kind.lower()},
            "versions": [
                {"name": version, "served": True, "storage": True, "schema": schema, "subresources": {"status": {}}}
            ],
        },
    }
