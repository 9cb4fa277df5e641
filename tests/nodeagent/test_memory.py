"""The agent's memory on disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from schemas.policy import IdentityRow, Ruleset
from schemas.terms import Default, Direction, IdentityId
from services.nodeagent.binding import Link, compute_suffix
from services.nodeagent.datapath import Datapath
from services.nodeagent.enforcer import Enforcer, Place
from services.nodeagent.links import PodLink, Snapshot
from services.nodeagent.memory import Memory, MemoryFile, read_scene, recall
from services.nodeagent.numbers import Capacities, make_spaces
from services.nodeagent.policystate import PolicyState
from tests.nodeagent.worlds import NODE, make_state, with_rulesets


def make_memory(layout: str) -> Memory:
    return Memory(
        layout=layout,
        scene=read_scene(),
        spaces=make_spaces(),
        bindings={"life-7": "uid-7"},
        guesses=["life-7"],
        named_at={"uid-8": ["10.0.0.8"]},
    )


class NoMaps:
    """A datapath in which nothing is and nothing stays."""

    written = 0

    def __getattr__(self, name: str) -> Callable[..., dict[str, Any]]:
        return lambda *_: {}


NO_MAPS = cast(Datapath, NoMaps())


def bind_after_start(folder: Path, state: PolicyState, *links: Link) -> dict[int, str]:
    """An agent that starts with this folder, and is given this state and these interfaces: whose they are."""

    async def prepared(*_: object) -> None: ...

    enforcer = Enforcer(Place(NODE, "one", folder), NO_MAPS, Capacities())
    assert asyncio.run(enforcer.enforce(state, None, Snapshot(tuple(map(PodLink, links))), prepared))
    return {index: one.uid for index, one in enforcer.bindings.items()}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """Numbers, bindings, rulesets come back as they were, and a second write replaces the first."""
    MemoryFile(tmp_path).write(make_memory("one"))
    MemoryFile(tmp_path).write(make_memory("two"))
    assert MemoryFile(tmp_path).read() == make_memory("two")


@pytest.mark.parametrize("died", ["while writing beside", "before the rename", "never written"])
def test_a_process_that_dies_in_a_write_leaves_a_whole_memory(tmp_path: Path, died: str) -> None:
    """At every point either the file or the one beside it is complete."""
    MemoryFile(tmp_path).write(make_memory("one"))
    path, beside = tmp_path / "numbers", tmp_path / "numbers.new"
    if died == "while writing beside":
        beside.write_bytes(path.read_bytes()[:20])
    elif died == "before the rename":
        path.rename(beside)
    else:
        path.unlink()
    found = MemoryFile(tmp_path).read()
    assert found == (None if died == "never written" else make_memory("one"))


def test_a_memory_that_is_none_is_left_aside(tmp_path: Path) -> None:
    """Garbage is said to be garbage; the agent then starts above everything present."""
    (tmp_path / "numbers").write_bytes(b"\xc1garbage")
    assert MemoryFile(tmp_path).read() is None


ADDRESS = "10.1.2.200"


def make_pods(*names: str) -> PolicyState:
    """Local pods; the first lists the address."""
    rules = (Ruleset(direction=one, default=Default.DENY) for one in (Direction.EGRESS, Direction.INGRESS))
    known = make_state(identities={IdentityId(256): IdentityRow(id=IdentityId(256), namespace="red")})
    state = with_rulesets(known, *rules)
    (row,) = state.endpoints.values()
    made = {
        (row.namespace, name): msgspec.structs.replace(row, pod=name, uid=f"uid-{name}", addresses=listed)
        for name, listed in zip(names, ((ADDRESS,), ()), strict=False)
    }
    return make_state(state, endpoints={**dict.fromkeys(state.endpoints), **made})


def test_a_restarted_agent_knows_what_was_a_guess(tmp_path: Path) -> None:
    """An interface that was found by address alone gives way to the plugin's answer also in the next process."""
    link = Link(7, "veth7", (ADDRESS,), life="one")
    assert bind_after_start(tmp_path, make_pods("old"), link) == {7: "uid-old"}
    answered = replace(link, pod="red/new")
    assert bind_after_start(tmp_path, make_pods("old", "new"), answered) == {7: "uid-new"}


def test_a_restarted_agent_knows_what_addresses_a_named_pod_had(tmp_path: Path) -> None:
    """Whose interface went while no agent ran: the next one with its address is not its."""
    former = Link(7, "eni" + compute_suffix("red", "old"), (ADDRESS,), life="one")
    assert bind_after_start(tmp_path, make_pods("old"), former) == {7: "uid-old"}
    assert bind_after_start(tmp_path, make_pods("old"), Link(8, "veth8", (ADDRESS,), life="two")) == {8: ""}


def test_what_was_bound_in_another_scene_is_forgotten() -> None:
    """After a boot, or in another network namespace, no interface is one that was known, and no pod had one."""
    found = make_memory("one")
    kept = recall(msgspec.structs.replace(found), NO_MAPS, layout="one", capacities=Capacities())
    assert (kept.bindings, kept.guesses, kept.named_at) == (found.bindings, found.guesses, found.named_at)
    moved = msgspec.structs.replace(found, scene="elsewhere")
    fresh = recall(moved, NO_MAPS, layout="one", capacities=Capacities())
    assert (fresh.scene, fresh.bindings, fresh.guesses, fresh.named_at) == (read_scene(), {}, [], {})
    assert fresh.spaces == found.spaces


@pytest.mark.parametrize("build", ["released", "later"])
def test_the_memory_of_another_build_is_read(tmp_path: Path, build: str) -> None:
    """One without guesses, and one with a field that is unknown here: its numbers count, and its bindings."""
    written = msgspec.to_builtins(make_memory("one"))
    for name in ("guesses", "named_at"):
        del written[name]
    if build == "later":
        written["named"] = ["uid-8"]
    (tmp_path / "numbers").write_bytes(msgspec.msgpack.encode(written))
    found = MemoryFile(tmp_path).read()
    assert found == msgspec.structs.replace(make_memory("one"), guesses=[], named_at={})
