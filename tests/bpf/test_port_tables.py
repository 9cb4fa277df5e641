"""The kernel's port tables are closed: for every protocol and port they say what the rules say, read one by one."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable

import pytest

from schemas.policy import AnyPeer, IdentityRow, PortRange, Ruleset, RulesetRule, RuleSource
from schemas.terms import ANY_PROTOCOL, FIRST_BIT, Action, Default, Direction, IdentityId, Tier
from services.nodeagent import mapcodec
from services.nodeagent.numbers import make_spaces
from services.nodeagent.portranges import index_of
from services.nodeagent.wanted import Wanted
from tests.bpf.prog_run import Kernel
from tests.nodeagent.worlds import BINDINGS, NODE, with_rulesets
from tests.nodeagent.worlds import make_state as make_policy_state

pytestmark = pytest.mark.kernel
TABLES = int(os.environ.get("YETT_PORT_TABLES", "6"))
SEED = int(os.environ.get("YETT_SEED", "0"))
WITH_PORTS = (6, 17, 132)
EDGES = (0, 1, 53, 79, 80, 81, 443, 8080, 32767, 32768, 65534, 65535)
FACTS = make_policy_state(identities={IdentityId(256): IdentityRow(id=IdentityId(256))})
SOURCES = (RuleSource(kind="NetworkPolicy", namespace="app", name="p", rule="r"),)


def make_range(roll: random.Random) -> PortRange:
    protocol = roll.choice((*WITH_PORTS * 4, 1, 58, 47, 0, 255, ANY_PROTOCOL))
    if protocol not in WITH_PORTS:
        return PortRange(protocol=protocol)
    first, last = sorted(roll.choice((*EDGES, roll.randrange(65536))) for _ in range(2))
    return PortRange(protocol=protocol, first=first, last=roll.choice((first, last)))


def make_rules(roll: random.Random, count: int) -> tuple[RulesetRule, ...]:
    return tuple(
        RulesetRule(
            action=Action.ACCEPT,
            peers=(AnyPeer(),),
            ports=tuple(make_range(roll) for _ in range(roll.randrange(1, 4))),
            sources=SOURCES,
        )
        for _ in range(count)
    )


def make_ruleset(roll: random.Random, direction: Direction) -> Ruleset:
    tiers = {tier: make_rules(roll, roll.randrange(6)) for tier in ("admin", "network_policy", "baseline")}
    return Ruleset(direction=direction, default=Default.DENY, **tiers)


def by_rule(ruleset: Ruleset) -> tuple[dict[int, list[int]], int]:
    """(protocol -> the mask of each port, the mask everywhere), from the rules alone."""
    everywhere = 0
    masks = {number: [0] * (65536 if number in WITH_PORTS else 1) for number in range(256)}
    for tier, first in FIRST_BIT.items():
        for place, rule in enumerate(ruleset.tier(Tier(tier))):
            bit = 1 << (first + place)
            for one in rule.ports:
                if one.protocol == ANY_PROTOCOL:
                    everywhere |= bit
                elif one.protocol in WITH_PORTS:
                    for port in range(one.first, one.last + 1):
                        masks[one.protocol][port] |= bit
                else:
                    masks[one.protocol][0] |= bit
    return masks, everywhere


def in_kernel(kernel: Kernel, handle: int) -> tuple[dict[int, int], dict[int, int]]:
    """(index -> class, class -> mask), as the programs would find them."""
    classes = {
        int.from_bytes(key, "little"): int.from_bytes(value, "little")
        for key, value in kernel.maps["port_classes"].items()
    }
    rows = {key: mapcodec.decode_mask(value) for key, value in kernel.maps["ports"].items()}
    own = {
        int.from_bytes(key[4:], "little"): mask for key, mask in rows.items() if key[:4] == handle.to_bytes(4, "little")
    }
    return classes, own


def find_wrong(kernel: Kernel, handle: int, ruleset: Ruleset) -> Iterable[tuple[int, int, int, int]]:
    """(protocol, port, mask in the kernel, mask by rule) wherever the two differ."""
    classes, rows = in_kernel(kernel, handle)
    masks, everywhere = by_rule(ruleset)
    for protocol, ports in masks.items():
        for port, mask in enumerate(ports):
            found = rows.get(classes.get(index_of(protocol, port), 0), 0)
            if found != mask | everywhere:
                yield protocol, port, found, mask | everywhere


def test_every_port_has_the_mask_of_its_rules(kernel: Kernel) -> None:
    """All 65,536 ports of TCP, UDP and SCTP and every other protocol, in both rulesets of a pod, edit after edit."""
    wanted = Wanted(NODE, make_spaces())
    for number in range(1, TABLES + 1):
        roll = random.Random(SEED + number)
        pair = [make_ruleset(roll, direction) for direction in Direction]
        state = with_rulesets(FACTS, *pair, number=number)
        wanted.prepare(state, None, BINDINGS)
        kernel.fill(wanted.tables)
        wanted.finish(state)
        kernel.fill(wanted.tables)
        wanted.settle()
        for ruleset in pair:
            (handle,) = [each for each in wanted.tables.rulesets if wanted.find_ruleset(each) == ruleset]
            wrong = next(iter(find_wrong(kernel, handle, ruleset)), None)
            assert wrong is None, (SEED + number, ruleset.direction, wrong)
