"""The switch ``enforce``: off, every pod of the node is governed by one ruleset that allows all, in each direction.

Rules of this module:

* It stands behind everything that policies say, so they are compiled, proven and followed all the same, and neither the
  oracle nor a ruleset knows of it. Turning it is a flip of this node's endpoints, made before it breaks, as any other.
* A state without the switch in it enforces.
* What policy alone asks about is not told either: Services, whose backends may be too many to judge, and pod ranges, in
  which an unknown address is denied.
* What is no policy stays: a spoofed source, a malformed packet, an interface of a pod that nobody has told of yet.

Pure.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec

from schemas import wire
from schemas.policy import EndpointRow, Ruleset
from schemas.status import Problem
from schemas.terms import Default, Direction, RulesetHash
from services.nodeagent.policystate import PolicyState, Table

OPEN = {direction: Ruleset(direction=direction, default=Default.ALLOW) for direction in Direction}
OPEN_HASH = {direction: RulesetHash(wire.hash_content(ruleset)) for direction, ruleset in OPEN.items()}
SWITCHED_OFF = Problem(
    object="ConfigMap yett",
    path="data.enforce",
    message="NOTHING IS ENFORCED: enforce is false, every packet that policy would deny passes",
)


def apply_switch(state: PolicyState) -> PolicyState:
    """The state as it is to be enforced."""
    if state.config.enforce:
        return state
    endpoints = state.endpoints.with_changes({key: _open(row) for key, row in state.endpoints.items()})
    rulesets = state.rulesets.with_changes({OPEN_HASH[one]: OPEN[one] for one in Direction})
    config = msgspec.structs.replace(state.config, pod_cidrs=())
    return replace(state, config=config, endpoints=endpoints, rulesets=rulesets, frontends=Table())


def _open(row: EndpointRow) -> EndpointRow:
    return msgspec.structs.replace(
        row,
        egress=OPEN_HASH[Direction.EGRESS],
        ingress=OPEN_HASH[Direction.INGRESS],
        egress_shadow=RulesetHash(""),
        ingress_shadow=RulesetHash(""),
    )
