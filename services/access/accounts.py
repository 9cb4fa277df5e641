"""The accounts of a NATS server, as the text of its configuration.

Rules: the streams stand in the controller's account, where nobody else has a user. Nodes and readers share another,
without JetStream; they reach the streams by service imports under a prefix, for exactly the calls that reading needs.
The server answers an import through a subject of its own making, so an answer cannot be aimed at a policy subject, as
it can inside one account. What a node says goes out under its own token, and it hears answers under its own inbox.

Permissions alone would not do: NATS does not stamp senders, and in one account the reply to a permitted request lands
on any subject that the requester names. Deliberately absent: Direct Get, which none of our services uses.

Pure: names and public keys in, text out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from schemas import wire
from schemas.terms import NodeName

API_PREFIX = "yett.js"
"""What nodes and readers have in place of ``$JS.API``."""
CONTROLLER_ACCOUNT = "YETT"
NODE_ACCOUNT = "NODES"

_NODE_STREAMS = (wire.STREAM_POLICY, wire.STREAM_RESOLUTION)
_ALL_STREAMS = (*_NODE_STREAMS, wire.STREAM_VERDICT, wire.STREAM_USAGE)
_CALLS = ("STREAM.INFO.{}", "CONSUMER.CREATE.{}.*", "CONSUMER.DELETE.{}.*")
_PULL = "CONSUMER.MSG.NEXT.{}.*"
"""Many answers to one request, where the others have one."""
_STORED = (wire.RESOLUTION_PREFIX + ">", wire.DENIED_PREFIX + ">", wire.NAME_REFUSED_PREFIX + ">")
"""What nodes say that a stream keeps: acknowledged, so a service."""
_USAGE = wire.USAGE_PREFIX + ">"
"""What nodes report to whoever leads, who answers."""
_STATUSES = "yett.status.>"
_FORGET = wire.FORGET_PREFIX + ">"
"""What nodes are to forget; they read it from the stream, and cannot say it."""


def inbox_prefix(kind: str, name: str) -> str:
    """Where the answers to one of the ``nodes`` or ``readers`` go; nobody may publish there."""
    return f"yett.inbox.{kind}.{wire.encode_name(name)}"


def write_accounts(
    controllers: Iterable[str],
    nodes: Mapping[str, str],
    readers: Mapping[str, str],
    operators: Mapping[str, str] | None = None,
) -> str:
    """The ``accounts`` block. ``controllers``: public keys; the others: public key -> name."""
    users = [_user(key, _node_permissions(NodeName(name))) for key, name in nodes.items()]
    users += [_user(key, _reader_permissions(name)) for key, name in readers.items()]
    owners = [_user(key, _operator_permissions(name)) for key, name in (operators or {}).items()]
    lines = [
        "accounts {",
        f"  {CONTROLLER_ACCOUNT} {{",
        "    jetstream: enabled",
        *_block("users", [f"{{ nkey: {key} }}" for key in controllers] + owners),
        *_block("exports", _controller_exports()),
        *_block("imports", [f"{{ stream: {{ account: {NODE_ACCOUNT}, subject: {json.dumps(_STATUSES)} }} }}"]),
        "  }",
        f"  {NODE_ACCOUNT} {{",
        *_block("users", users),
        *_block("exports", [_export("stream", _STATUSES, CONTROLLER_ACCOUNT)]),
        *_block("imports", _node_imports()),
        "  }",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _controller_exports() -> list[str]:
    calls = [_export("service", f"$JS.API.{call}", NODE_ACCOUNT) for call in _single_calls()]
    pulls = [_export("service", f"$JS.API.{call}", NODE_ACCOUNT, "response_type: Stream") for call in _pulls()]
    services = [*_STORED, _USAGE, wire.SUBJECT_STATUS_CONTROLLER_GET]
    spoken = _export("stream", wire.SUBJECT_STATUS_CONTROLLER, NODE_ACCOUNT)
    return [*calls, *pulls, *(_export("service", subject, NODE_ACCOUNT) for subject in services), spoken]


def _node_imports() -> list[str]:
    calls = [_import("service", f"$JS.API.{call}", f"{API_PREFIX}.{call}") for call in [*_single_calls(), *_pulls()]]
    services = [_import("service", subject) for subject in [*_STORED, _USAGE, wire.SUBJECT_STATUS_CONTROLLER_GET]]
    return [*calls, *services, _import("stream", wire.SUBJECT_STATUS_CONTROLLER)]


def _single_calls() -> list[str]:
    return [call.format(stream) for stream in _ALL_STREAMS for call in _CALLS]


def _pulls() -> list[str]:
    return [_PULL.format(stream) for stream in _ALL_STREAMS]


def _reads(streams: Iterable[str]) -> list[str]:
    return [f"{API_PREFIX}.{call.format(stream)}" for stream in streams for call in (*_CALLS, _PULL)]


def _node_permissions(node: NodeName) -> str:
    own = wire.encode_name(node)
    says = [
        f"{wire.RESOLUTION_PREFIX}{own}.>",
        f"{wire.DENIED_PREFIX}{own}.>",
        f"{wire.NAME_REFUSED_PREFIX}{own}.>",
        f"yett.verdict.{own}.>",
        wire.subject_observed(node),
        wire.subject_status(node),
        wire.subject_status_recorder(node),
        wire.subject_usage(node),
    ]
    hears = [f"{inbox_prefix('nodes', node)}.>", wire.RESOLUTION_PREFIX + ">", wire.subject_observed(node)]
    return _permissions([*says, *_reads(_NODE_STREAMS)], hears)


def _operator_permissions(name: str) -> str:
    """A person who may make nodes forget, and see whether they did. In the controller's account, where streams are."""
    calls = [f"$JS.API.{call.format(stream)}" for stream in _NODE_STREAMS for call in (*_CALLS, _PULL)]
    says = [_FORGET, f"$JS.API.STREAM.PURGE.{wire.STREAM_RESOLUTION}", wire.SUBJECT_STATUS_CONTROLLER_GET, *calls]
    return _permissions(says, [_STATUSES, wire.SUBJECT_STATUS_CONTROLLER, f"{inbox_prefix('operators', name)}.>"])


def _reader_permissions(name: str) -> str:
    hears = [
        "yett.verdict.>",
        _STATUSES,
        *_STORED,
        wire.SUBJECT_STATUS_CONTROLLER,
        f"{inbox_prefix('readers', name)}.>",
    ]
    return _permissions([*_reads(_ALL_STREAMS), wire.SUBJECT_STATUS_CONTROLLER_GET], hears)


def _permissions(says: Iterable[str], hears: Iterable[str]) -> str:
    return f"{{ publish: {{ allow: {json.dumps([*says])} }}, subscribe: {{ allow: {json.dumps([*hears])} }} }}"


def _user(key: str, permissions: str) -> str:
    return f"{{ nkey: {key}, permissions: {permissions} }}"


def _export(kind: str, subject: str, to: str, more: str = "") -> str:
    return f"{{ {kind}: {json.dumps(subject)}, accounts: [{to}]{', ' + more if more else ''} }}"


def _import(kind: str, subject: str, under: str = "") -> str:
    mapped = f", to: {json.dumps(under)}" if under else ""
    return f"{{ {kind}: {{ account: {CONTROLLER_ACCOUNT}, subject: {json.dumps(subject)} }}{mapped} }}"


def _block(name: str, entries: Iterable[str]) -> list[str]:
    return [f"    {name}: [", *(f"      {entry}" for entry in entries), "    ]"]
