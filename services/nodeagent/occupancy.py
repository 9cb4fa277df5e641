"""How full the maps are that the programs write, how near to its quota the fullest pod is, and what rings did not take.

``places`` is read where it is, 32 bytes for each flow that there is room for: now and then, never at a scrape.
Arrays with a fixed part for each pod (``seen``, ``queries``, ``fragments``, ``reached``) are never full: the oldest
entry gives way, so there is nothing to count.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from schemas.terms import RULES_ADMIN, RULES_BASELINE, RULES_NETWORK_POLICY
from services.common.bpf import BpfMap
from services.common.bpfarray import MappedArray
from services.nodeagent.mapcodec import encode_index
from services.nodeagent.regions import Region
from services.nodeagent.rowmap import RowMap
from services.nodeagent.tables import RulesetEntry

Entries = Iterable[tuple[bytes, bytes]]
"""Of an array: index and value, those that are not zero."""
RINGS = ("verdicts", "answers", "handovers")
"""As ``enum ring``."""
QUOTA = struct.Struct("=8I I 3I 3I 4x 2Q")
_LEARNED, _LOST = 8, slice(12, 15)
_WORDS_A_PLACE, _IFINDEX = 8, 4
"""``struct flow_key`` in words, and which of them says whose place it is."""


@dataclass(frozen=True, slots=True)
class Fill:
    """``maps``: name -> (entries, capacity). ``quotas``: name -> (most that one uses, limit). ``lost``: by ring."""

    maps: Mapping[str, tuple[int, int]]
    quotas: Mapping[str, tuple[int, int]]
    lost: Mapping[str, int]


class Occupancy:
    """Handles of its own, for a thread of its own."""

    def __init__(self, maps: Mapping[str, Path]) -> None:
        self._places = MappedArray(maps["places"])
        self._quotas = BpfMap(maps["quotas"])
        self._credits = BpfMap(maps["credits"])

    def close(self) -> None:
        self._places.close()
        self._quotas.close()
        self._credits.close()

    def read(self, regions: Mapping[int, Region], rulesets: Mapping[int, RulesetEntry], names_limit: int) -> Fill:
        """Now. ``regions``: by ifindex."""
        flows = self.count_flows()
        quotas = [QUOTA.unpack(value) for _, value in self._quotas.items()]
        lost = zip(*(quota[_LOST] for quota in quotas), strict=True) if quotas else ((), (), ())
        sizes = [region.size for region in regions.values() if region.size]
        fullest = max((flows[one] for one in regions), default=0)
        return Fill(
            maps={"flows": (flows.total(), self._places.entries)},
            quotas={
                "flows": (fullest, min(sizes, default=0)),
                "names": (max(self._count_names().values(), default=0), names_limit),
                **count_rules(rulesets),
            },
            lost=dict(zip(RINGS, map(sum, lost), strict=True)),
        )

    def count_flows(self) -> Counter[int]:
        """Ifindex -> places taken; a flow that is over keeps its place until another wants it."""
        whose = self._places.words.cast("B").cast("I")[_IFINDEX::_WORDS_A_PLACE]
        return Counter(filter(None, whose.tolist()))

    def _count_names(self) -> dict[int, int]:
        return count_charged(self._quotas.items(), self._credits.items())


def count_charged(quotas: Entries, credits: Entries) -> dict[int, int]:
    """Of each endpoint that ever learned: the addresses charged to it and not given back, as the kernel counts them."""
    back = {key: int.from_bytes(value, "little") for key, value in credits}
    learned = {key: QUOTA.unpack(value)[_LEARNED] for key, value in quotas}
    held = {key: _signed(learned.get(key, 0) - back.get(key, 0)) for key in learned.keys() | back.keys()}
    return {int.from_bytes(key, "little"): count for key, count in held.items() if count >= 0}


def give_back(credits: BpfMap | RowMap, counts: Mapping[int, int]) -> None:
    """So many addresses to each endpoint; what is less than nothing is charged."""
    for endpoint, count in counts.items():
        key = encode_index(endpoint % credits.info.max_entries)
        before = int.from_bytes(credits.get(key) or bytes(4), "little")
        credits.put(key, ((before + count) & 0xFFFFFFFF).to_bytes(4, "little"))


def _signed(word: int) -> int:
    """As the kernel compares them: 32 bits, and more may be given back than was charged, or less than nothing."""
    return ((word + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)


def count_rules(rulesets: Mapping[int, RulesetEntry]) -> dict[str, tuple[int, int]]:
    """The most rules of one ruleset in each tier, and what fits."""
    entries = rulesets.values()
    return {
        "rules_admin": (max((one.admin_rules for one in entries), default=0), RULES_ADMIN),
        "rules_network_policy": (max((one.network_policy_rules for one in entries), default=0), RULES_NETWORK_POLICY),
        "rules_baseline": (max((one.baseline_rules for one in entries), default=0), RULES_BASELINE),
    }
