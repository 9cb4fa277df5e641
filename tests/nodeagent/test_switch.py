"""The switch ``enforce``: what the tables mean when it is off, and that turning it is as safe as any change."""

from __future__ import annotations

import msgspec

from schemas.policy import AnyPeer, CidrPeer, Config, DomainPeer
from schemas.terms import Direction, RulesetHash
from services.nodeagent.numbers import make_spaces
from services.nodeagent.switch import OPEN_HASH, apply_switch
from services.nodeagent.wanted import Wanted
from tests.nodeagent.test_datapath import state_with
from tests.nodeagent.worlds import BINDINGS, EXTRA_ADDRESSES, NODE

OFF = Config(enforce=False, pod_cidrs=("10.0.0.0/8",))
ON = msgspec.structs.replace(OFF, enforce=True)


def hashes(wanted: Wanted) -> set[str]:
    """Of the rulesets that some endpoint points at."""
    entries = wanted.tables.endpoints.values()
    handles = {handle for one in entries for handle in (one.egress, one.ingress, one.egress_shadow, one.ingress_shadow)}
    return {wanted.tables.rulesets[handle].hash for handle in handles - {0}}


def test_on_is_the_state_as_it_is() -> None:
    """The same object: the switch costs nothing where it is on, and a state without a word of it is on."""
    state = state_with(AnyPeer())
    assert apply_switch(state) is state and state.config.enforce


def test_off_points_every_endpoint_at_rulesets_that_allow_all() -> None:
    """No rule, no prefix, no name, no Service and no pod range is left in the tables."""
    wanted = Wanted(NODE, make_spaces())
    state = state_with(CidrPeer(cidr="192.0.2.0/24"), DomainPeer(pattern="*.example.com"), config=OFF)
    wanted.prepare(state, None, BINDINGS, EXTRA_ADDRESSES)
    wanted.finish(state)
    tables = wanted.tables
    assert tables.endpoints and hashes(wanted) == set(OPEN_HASH.values()) and len(tables.rulesets) == 2
    assert not (tables.cidrs or tables.domains or tables.peers or tables.frontends or tables.mixed)


def test_turning_it_builds_beside_and_flips() -> None:
    """Both ways: what is new stands while the old one still does; between the two no endpoint is without a ruleset, and
    in the end the tables are those of a node that never knew the switch was off."""
    peers = (CidrPeer(cidr="192.0.2.0/24"), DomainPeer(pattern="*.example.com"))
    on, off = state_with(*peers, config=ON), state_with(*peers, config=OFF, number=2)
    fresh = Wanted(NODE, make_spaces())
    fresh.prepare(on, None, BINDINGS, EXTRA_ADDRESSES)
    fresh.finish(on)
    policy = hashes(fresh)
    wanted = Wanted(NODE, make_spaces())
    wanted.prepare(on, None, BINDINGS, EXTRA_ADDRESSES)
    wanted.finish(on)
    wanted.settle()
    for state, want in ((off, set(OPEN_HASH.values())), (on, policy)):
        wanted.prepare(state, {"config": frozenset({""})}, BINDINGS, EXTRA_ADDRESSES)
        assert hashes(wanted) == want
        assert {one.hash for one in wanted.tables.rulesets.values()} == policy | set(OPEN_HASH.values())
        wanted.finish(state)
        wanted.settle()
        assert {one.hash for one in wanted.tables.rulesets.values()} == want
    assert (
        wanted.tables.cidrs.keys() == fresh.tables.cidrs.keys()
        and wanted.tables.domains.keys() == fresh.tables.domains.keys()
    )
    assert RulesetHash("") not in OPEN_HASH.values() and len(OPEN_HASH) == len(Direction)
