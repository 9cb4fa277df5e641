"""YAML that would be too much once read: nested too deeply, blown up by aliases, or part of itself.

The C loader composes by recursion and dies of a deep document; a few aliases of aliases are small in memory and endless
to whoever walks, compares or encodes them. Both are told before, or right after, the document is read.

Pure.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

DEPTH_MAX = 200
"""Levels of nesting; Kubernetes objects have some twenty, schemas of custom resources some sixty."""
NODES_MAX = 1_000_000
"""Nodes of a document once its aliases are written out."""

BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_BRACKET = re.compile(r"[\[\]{}]")
_FAR_IN = re.compile(rf"^[ \-?:]{{{DEPTH_MAX // 2}}}", re.MULTILINE)
"""A block needs a column for every two levels: a list may stand at the column of its key."""
_OPENING = (yaml.SequenceStartEvent, yaml.MappingStartEvent)
_CLOSING = (yaml.SequenceEndEvent, yaml.MappingEndEvent)


def is_too_deep(text: str) -> bool:
    """Whether a document of this text is nested deeper than ``DEPTH_MAX``. yaml.YAMLError if it is no YAML."""
    if not _looks_deep(text):
        return False
    depth = 0
    for event in yaml.parse(text, Loader=BaseLoader):
        if isinstance(event, _OPENING):
            depth += 1
        elif isinstance(event, _CLOSING):
            depth -= 1
        if depth > DEPTH_MAX:
            return True
    return False


def _looks_deep(text: str) -> bool:
    """A cheap guess that may err on one side: brackets in strings count, so the events have the last word."""
    if _FAR_IN.search(text):
        return True
    depth = 0
    for match in _BRACKET.finditer(text):
        depth += 1 if match[0] in "[{" else -1
        if depth > DEPTH_MAX // 2:
            return True
    return False


def find_excess(document: Any) -> str:
    """What is wrong with the size of a document that was read, in words; empty if nothing is."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()
    stack = [(document, False)]
    while stack:
        node, is_done = stack.pop()
        if id(node) in sizes or not isinstance(node, dict | list):
            continue
        if is_done:
            open_nodes.discard(id(node))
            sizes[id(node)] = 1 + sum(sizes.get(id(child), 1) for child in _children(node))
            continue
        if id(node) in open_nodes:
            return "it is part of itself by an alias"
        open_nodes.add(id(node))
        stack.append((node, True))
        stack += [(child, False) for child in _children(node)]
    if sizes.get(id(document), 1) > NODES_MAX:
        return f"its aliases blow it up to more than {NODES_MAX} nodes"
    return ""


def _children(node: dict[Any, Any] | list[Any]) -> list[Any]:
    return list(node.values()) if isinstance(node, dict) else node
