"""What a node's agent would know of a cluster: the controller's rows, published and followed, without a bus between.

Pure. The rows go through the publisher's ledger and the agent's replica, digests included, so that nothing is believed
here which an agent would not believe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from schemas import wire
from schemas.terms import NodeName
from services.common.messages import Message
from services.controller.ledger import Ledger, Outgoing, Snapshot
from services.controller.policy.diff import diff
from services.nodeagent.policystate import PolicyState
from services.nodeagent.replica import Replica

_EPOCH = "0" * 32


class ReplayError(RuntimeError):
    """An agent does not believe what the controller says: one of the two is wrong."""


def publish(rows: Mapping[str, bytes]) -> list[Message]:
    """The messages of a stream that holds these rows, the revision last."""
    ledger = Ledger(Snapshot({}, {}), epoch=_EPOCH)
    outgoing = ledger.plan_rows(diff({}, rows), trace="")
    planned = ledger.plan_revision(trace="", now_seconds=0.0)
    if planned is not None:
        outgoing.append(planned[1])
    return [_as_message(each, sequence) for sequence, each in enumerate(outgoing, 1)]


def _as_message(outgoing: Outgoing, sequence: int) -> Message:
    schema = outgoing.headers.get(wire.HEADER_SCHEMA, "")
    return Message(outgoing.subject, outgoing.body, False, sequence, schema=schema)


def follow(messages: Sequence[Message], node: NodeName) -> PolicyState:
    """The state that the node's agent proves from them. ReplayError if it does not."""
    replica = Replica(node)
    for message in messages:
        applied = replica.feed(message, 0.0)
        if applied is not None:
            return applied.state
    told = "; ".join(f"{problem.object}: {problem.message}" for problem in replica.problems)
    raise ReplayError(f"node {node} proves no state: {told or replica.doubt}")
