"""Plans: make before break, safe at every prefix, nothing to do the second time."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.terms import Direction
from services.nodeagent.judge import Conclusion, Packet, judge
from services.nodeagent.numbers import make_spaces
from services.nodeagent.plan import ORDER, Kind, Op, format_plan, order_changes, plan_changes
from services.nodeagent.policystate import PolicyState
from services.nodeagent.portranges import index_of
from services.nodeagent.tables import FrontendEntry, Tables
from services.nodeagent.wanted import Wanted
from tests.nodeagent.worlds import (
    ADDRESSES,
    BINDINGS,
    EXTRA_ADDRESSES,
    NODE,
    NODE_ADDRESS,
    RESOLVER,
    SERVICE,
    facts,
    make_state,
    rulesets,
    with_rulesets,
)

PACKETS = [
    Packet(direction, remote, protocol, port)
    for remote in (*ADDRESSES[:6], NODE_ADDRESS, SERVICE, RESOLVER.address)
    for protocol, port in ((6, 80), (6, 443), (17, 53), (1, 0))
    for direction in Direction
]
CIDRS = {"cidrs4": False, "cidrs6": True}

PROBED = {pickle.dumps(index_of(packet.protocol, packet.port), protocol=5) for packet in PACKETS}

Present = dict[str, dict[bytes, bytes]]


def encode(tables: Tables) -> Present:
    """A stand-in for mapcodec: every map of the order, keys and values pickled."""
    maps: Present = {name: {} for name in ORDER}
    for one in fields(Tables):
        content = getattr(tables, one.name)
        if one.name == "cidrs":
            for name, is_six in CIDRS.items():
                maps[name] = {_dump(key): _dump(value) for key, value in content.items() if (":" in key) is is_six}
        elif one.name == "config":
            maps["config"] = {b"0": _dump(content)}
        elif one.name in ("ipcache", "own_addresses"):
            maps["ipcache"] = _encode_known(tables)
        else:
            maps[one.name] = {_dump(key): _dump(value) for key, value in content.items()}
    return maps


def _encode_known(tables: Tables) -> dict[bytes, bytes]:
    """An address -> its identity, and whether it is the own node's, and whether it has frontends."""
    fronts = {address for address, _, _ in tables.frontends}
    return {
        _dump(one): _dump((tables.ipcache.get(one, 0), one in tables.own_addresses, one in fronts))
        for one in {*tables.ipcache, *tables.own_addresses, *fronts}
    }


class Flagged(dict[tuple[str, int, int], FrontendEntry]):
    """Frontends as the programs see them: not at all where ``ipcache`` does not say that the address has any."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: set[str] = set()

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get(key, default) if key[0] in self.addresses else default


def make_seen_tables() -> Tables:
    """Empty tables, to be filled by the ops of plans and judged by at every stop."""
    return Tables(frontends=Flagged())


def _apply_known(tables: Tables, op: Op) -> None:
    assert isinstance(tables.frontends, Flagged)
    for key, value in op.entries.items():
        address = pickle.loads(key)
        identity, is_own, is_front = pickle.loads(value) if op.kind is Kind.PUT else (0, False, False)
        for table, content in ((tables.ipcache, identity), (tables.own_addresses, int(is_own))):
            table.pop(address, None)
            if content:
                table[address] = content
        (tables.frontends.addresses.add if is_front else tables.frontends.addresses.discard)(address)


def apply_decoded(tables: Tables, op: Op) -> None:
    if op.map in ("config", "endpoints_far"):
        return
    if op.map == "ipcache":
        _apply_known(tables, op)
        return
    table = getattr(tables, "cidrs" if op.map in CIDRS else op.map)
    for key, value in op.entries.items():
        if op.kind is Kind.PUT:
            table[pickle.loads(key)] = pickle.loads(value)
        else:
            del table[pickle.loads(key)]


def _dump(value: object) -> bytes:
    return pickle.dumps(value, protocol=5)


def apply(present: Present, op: Op) -> None:
    if op.kind is Kind.PUT:
        present.setdefault(op.map, {}).update(op.entries)
    elif op.kind is Kind.DELETE:
        for key in op.entries:
            del present[op.map][key]


def single_steps(ops: list[Op]) -> Iterator[Op]:
    """The finest grain at which a plan can be stopped: one entry; ports that no packet here has go together."""
    for op in ops:
        if op.kind is Kind.BUMP:
            continue
        seen = {key: value for key, value in op.entries.items() if op.map != "port_classes" or key in PROBED}
        unseen = {key: value for key, value in op.entries.items() if key not in seen}
        if unseen:
            yield Op(op.kind, op.map, unseen)
        for key, value in seen.items():
            yield Op(op.kind, op.map, {key: value})


def verdicts(tables: Tables) -> list[Conclusion | None]:
    endpoint = tables.endpoints.get(7)
    if endpoint is None:
        return [None for _ in PACKETS]
    handles = (endpoint.egress, endpoint.ingress)
    return [_without_bit(judge(tables, handles[packet.direction], packet)) for packet in PACKETS]


def _without_bit(found: Conclusion) -> Conclusion:
    """Bits are told apart by ruleset; across a flip only verdict, reason and tier compare."""
    return Conclusion(found.verdict, found.reason, found.tier)


@settings(max_examples=40, deadline=None)
@given(
    state=facts(),
    old=st.tuples(rulesets(), rulesets(direction=Direction.INGRESS)),
    new=st.tuples(rulesets(), rulesets(direction=Direction.INGRESS)),
)
def test_every_prefix_of_a_policy_edit_is_old_or_new(state, old, new) -> None:
    """Stopped after any single write, a plan for other rulesets judges every packet as before or as after."""
    assert_old_or_new(with_rulesets(state, *old), with_rulesets(state, *new, number=2))


def run_to(wanted: Wanted, state: PolicyState, present: Present, tables: Tables | None = None) -> Iterator[None]:
    """Apply both steps entry by entry, to the bytes and to ``tables``; stops after each entry."""
    wanted.prepare(state, None, BINDINGS, EXTRA_ADDRESSES)
    for last in (False, True):
        if last:
            wanted.finish(state)
        for step in single_steps(plan_changes(encode(wanted.tables), present)):
            apply(present, step)
            if tables is not None:
                apply_decoded(tables, step)
            yield
    wanted.settle()


def run(wanted: Wanted, state: PolicyState, present: Present, tables: Tables | None = None) -> None:
    """``run_to`` without stopping."""
    for _ in run_to(wanted, state, present, tables):
        pass


def assert_old_or_new(before: PolicyState, after: PolicyState) -> None:
    wanted = Wanted(NODE, make_spaces())
    present: Present = {}
    tables = make_seen_tables()
    run(wanted, before, present, tables)
    first, snapshots = verdicts(tables), []
    for _ in run_to(wanted, after, present, tables):
        snapshots.append(verdicts(tables))
    last = verdicts(tables)
    for now in snapshots:
        for packet, found, one, other in zip(PACKETS, now, first, last, strict=True):
            assert found in (one, other), packet


@settings(max_examples=40, deadline=None)
@given(state=facts(), other=facts(), pair=st.tuples(rulesets(), rulesets(direction=Direction.INGRESS)), data=st.data())
def test_every_prefix_of_a_changed_fact_is_old_or_new(state, other, pair, data) -> None:
    """Stopped after any single write, a plan for one changed row of facts judges every packet as before or as after."""
    before = with_rulesets(state, *pair)
    after = make_state(before, number=2, **data.draw(st.sampled_from(_single_changes(before, other))))
    assert_old_or_new(before, after)


def _single_changes(state: PolicyState, other: PolicyState) -> list[dict[str, object]]:
    """One address, frontend or the configuration of another world; one row gone."""
    changes: list[dict[str, object]] = [{"config": other.config}]
    for name in ("addresses", "frontends"):
        now, then = dict(getattr(state, name)), dict(getattr(other, name))
        for key, row in then.items():
            identities = [row.identity] if name == "addresses" else [one.identity for one in row.backends]
            if all(one in state.identities for one in identities):
                changes.append({name: {**now, key: row}})
        changes += [{name: {one: now[one] for one in now if one != key}} for key in now]
    return changes


@settings(max_examples=60, deadline=None)
@given(state=facts(), other=facts(), one=rulesets(), two=rulesets(direction=Direction.INGRESS), three=rulesets())
def test_following_equals_starting_over(state, other, one, two, three) -> None:
    """Tables that followed changes row by row hold what tables made from nothing hold, up to numbers."""
    first, second = with_rulesets(state, one, two), with_rulesets(other, three, two, number=2)
    followed = Wanted(NODE, make_spaces())
    run(followed, first, {})
    keys = {
        name: frozenset({*getattr(first, name), *getattr(second, name)})
        for name in ("namespaces", "identities", "addresses", "frontends")
    }
    followed.prepare(second, keys, BINDINGS, EXTRA_ADDRESSES)
    followed.finish(second)
    fresh = Wanted(NODE, make_spaces())
    fresh.prepare(second, None, BINDINGS, EXTRA_ADDRESSES)
    fresh.finish(second)
    assert verdicts(followed.tables) == verdicts(fresh.tables)
    for name in ("ipcache", "guard", "own_addresses", "resolvers", "config"):
        assert getattr(followed.tables, name) == getattr(fresh.tables, name), name
    for name in ("cidrs", "classes", "frontends", "domains", "rulesets", "endpoints", "port_classes"):
        assert getattr(followed.tables, name).keys() == getattr(fresh.tables, name).keys() or name == "rulesets", name
    for name in ("peers", "ports", "mixed", "rulesets"):
        assert len(getattr(followed.tables, name)) >= len(getattr(fresh.tables, name)), name


@settings(max_examples=40, deadline=None)
@given(state=facts(), one=rulesets(), two=rulesets(direction=Direction.INGRESS), three=rulesets())
def test_touched_keys_are_enough(state, one, two, three) -> None:
    """Keys that were not touched have the value they had: comparing the touched ones finds the whole difference."""
    wanted = Wanted(NODE, make_spaces())
    run(wanted, with_rulesets(state, one, two), {})
    before = {name.name: dict(getattr(wanted.tables, name.name)) for name in fields(Tables) if name.name != "config"}
    wanted.take_touched()
    wanted.prepare(with_rulesets(state, three, two, number=2), {}, BINDINGS, EXTRA_ADDRESSES)
    touched = wanted.take_touched()
    for name, old in before.items():
        new = getattr(wanted.tables, name)
        differing = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
        assert differing <= touched.get(name, set()), name


@settings(max_examples=40, deadline=None)
@given(state=facts(), one=rulesets(), two=rulesets(direction=Direction.INGRESS))
def test_a_plan_applied_twice_is_a_no_op(state, one, two) -> None:
    """After a plan there is nothing left to do, and a restarted agent with the same numbers wants the same bytes."""
    state = with_rulesets(state, one, two)
    wanted = Wanted(NODE, make_spaces())
    present: Present = {}
    run(wanted, state, present)
    assert plan_changes(encode(wanted.tables), present) == []
    again = Wanted(NODE, wanted.spaces)
    again.resume(wanted.rulesets(), {})
    again.prepare(state, None, BINDINGS, EXTRA_ADDRESSES)
    assert plan_changes(encode(again.tables), present) == []


def test_writes_flip_bump_deletes_bump() -> None:
    """Masks come before lookups, lookups before endpoints, then an epoch; deletes come in reverse, then an epoch."""
    puts = {name: {b"k": b"v"} for name in ORDER}
    plan = format_plan(order_changes(puts, {"peers": {b"x", b"y"}, "endpoints": {b"z"}, "guard": {b"g"}}))
    assert plan.split("\n") == [
        "put guard 1",
        "put peers 1",
        "put ports 1",
        "put mixed 1",
        "put rulesets 1",
        "put classes 1",
        "put cidrs4 1",
        "put cidrs6 1",
        "put port_classes 1",
        "put frontends 1",
        "put ipcache 1",
        "put domains 1",
        "put resolvers 1",
        "put config 1",
        "put endpoint_addresses 1",
        "put endpoints_far 1",
        "put endpoints 1",
        "bump",
        "delete endpoints 1",
        "delete peers 2",
        "delete guard 1",
        "bump",
    ]


def test_what_no_verdict_reads_bumps_no_epoch() -> None:
    """A new pattern or revision number alone leaves live flows as they are."""
    plan = order_changes({"domains": {b"a": b"b"}, "config": {b"0": b"1"}}, {"guard": {b"x"}})
    assert [op.kind for op in plan] == [Kind.PUT, Kind.PUT, Kind.DELETE]
