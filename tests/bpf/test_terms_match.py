"""The numbers that Python and the kernel must agree on, read from both."""

from __future__ import annotations

import enum
import re

import pytest

from schemas.terms import RULES_ADMIN, RULES_NETWORK_POLICY, Default, Direction, Reason, Tier, Verdict
from services.nodeagent import judge, mapcodec, tables
from services.nodeagent.loader import DEFAULT_SIZES, TAIL_PROGRAMS, find_sources

TYPES = (find_sources() / "types.h").read_text(encoding="utf-8")
MAPS = (find_sources() / "maps.h").read_text(encoding="utf-8")


def read_enum(name: str, prefix: str) -> dict[str, int]:
    body = re.search(rf"enum {name} {{(.*?)}};", TYPES, re.DOTALL)
    assert body is not None
    return {key.removeprefix(prefix): int(value) for key, value in re.findall(r"(\w+) = (\d+)", body[1])}


def read_define(name: str, text: str = TYPES) -> int:
    found = re.search(rf"#define {name} (\w+)", text)
    assert found is not None, name
    return int(found[1].rstrip("u"), 0)


@pytest.mark.parametrize(
    ("name", "prefix", "ours"),
    [
        ("direction", "", Direction),
        ("verdict", "VERDICT_", Verdict),
        ("tier", "TIER_", Tier),
        ("default_verdict", "DEFAULT_", Default),
        ("reason", "REASON_", Reason),
        ("frontend_kind", "FRONTEND_", judge.FrontendShape),
    ],
)
def test_enums_have_the_same_members_and_values(name: str, prefix: str, ours: type[enum.IntEnum]) -> None:
    """Every member of an enum that both sides know has one name and one value."""
    assert read_enum(name, prefix) == {member.name: int(member) for member in ours}


@pytest.mark.parametrize(
    "name", [name for name in re.findall(r"#define (\w+) [\dx]", TYPES) if hasattr(mapcodec, name)]
)
def test_flags_and_sizes_of_the_codec(name: str) -> None:
    """Flags and sizes that the codec repeats are those of types.h."""
    assert read_define(name) == getattr(mapcodec, name)


def test_classes_and_tiers() -> None:
    """Kinds of class, and where the tiers begin, are the same on both sides."""
    for name in ("CLASS_IDENTITY", "CLASS_CIDR", "CLASS_DOMAIN"):
        assert read_define(name) == getattr(tables, name)
    assert read_define("BIT_NETWORK_POLICY") == RULES_ADMIN
    assert read_define("BIT_BASELINE") == RULES_ADMIN + RULES_NETWORK_POLICY
    assert tables.PORT_CLASS_ENTRIES == 3 * 65536 + 256


def test_reasons_fit_their_counters() -> None:
    """Every reason has a counter of its own."""
    assert max(Reason) < read_define("REASONS")


def test_tail_calls_have_the_indices_that_the_loader_writes() -> None:
    """The loader fills each tail call's place, and no other."""
    names = {
        "judge_packet": "TAIL_JUDGE",
        "finish_packet": "TAIL_FINISH",
        "learn_walk": "TAIL_LEARN_WALK",
        "learn_alias": "TAIL_LEARN_ALIAS",
        "learn_write": "TAIL_LEARN_WRITE",
        "learn_stream": "TAIL_LEARN_STREAM",
        "learn_pieces": "TAIL_LEARN_PIECES",
        "learn_refused": "TAIL_LEARN_REFUSED",
        "handle_from_pod": "TAIL_FROM_POD",
        "handle_to_pod": "TAIL_TO_POD",
        "dns_from_pod": "TAIL_DNS_FROM_POD",
        "dns_to_pod": "TAIL_DNS_TO_POD",
    }
    assert {program: read_define(names[program], MAPS) for program in TAIL_PROGRAMS} == dict(TAIL_PROGRAMS)
    assert len(names) == len(re.findall(r"#define TAIL_", MAPS))


def test_every_size_is_a_setting() -> None:
    """No map has a size that the loader does not know."""
    used = set(re.findall(r"\b[A-Z][A-Z_]{3,}\b", re.sub(r"//[^\n]*|#define.*|\"[^\"]*\"", "", MAPS)))
    known = used & DEFAULT_SIZES.keys()
    assert known == DEFAULT_SIZES.keys()
