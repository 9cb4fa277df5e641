"""Fields that were applied and are not stored: a definition that prunes drops what it does not know, without a word.

kubectl keeps what it was given in an annotation; what that has and the stored spec lacks was dropped by the server, or
taken out by somebody who did not apply. Either way the object says less than its file. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_CONSEQUENCES = (
    (".subject.namespaces.", "without it the policy governs every namespace"),
    (".namespaces.", "without it every namespace is selected"),
    (".ports[", "without it the rule is for every port"),
)
"""Part of a path -> what becomes of a policy of the managed service's kinds there."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """``object``: kind and name, as problems have it; ``path``: of the field that is gone."""

    object: str
    path: str

    @property
    def message(self) -> str:
        """For people."""
        more = next((said for part, said in _CONSEQUENCES if part in f"{self.path}."), "")
        return "applied, but not stored: the server's definition drops it" + (f"; {more}" if more else "")


def find_pruned(obj: Mapping[str, Any]) -> list[Pruned]:
    """Of one stored object; nothing where nobody applied it, or the annotation cannot be read."""
    metadata = obj.get("metadata") or {}
    text = (metadata.get("annotations") or {}).get(APPLIED, "")
    try:
        applied = json.loads(text) if text else {}
    except ValueError:
        return []
    name = "/".join(filter(None, (metadata.get("namespace"), metadata.get("name"))))
    spec = applied.get("spec") if isinstance(applied, dict) else None
    return [Pruned(f"{obj.get('kind', '')} {name}", path) for path in _missing(spec, obj.get("spec"), "spec")]


def _missing(applied: Any, stored: Any, path: str) -> Iterator[str]:
    """Paths below ``path`` that are only in ``applied``; null says nothing, as absent does."""
    if isinstance(applied, dict) and isinstance(stored, dict):
        for key, value in applied.items():
            if value is not None and key not in stored:
                yield f"{path}.{key}"
            else:
                yield from _missing(value, stored.get(key), f"{path}.{key}")
    elif isinstance(applied, list) and isinstance(stored, list):
        for index, value in enumerate(applied):
            if index >= len(stored):
                yield f"{path}[{index}]"
            else:
                yield from _missing(value, stored[index], f"{path}[{index}]")
