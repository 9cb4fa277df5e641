"""What a changed map layout takes over from the one before it: learned names, questions under way, quotas, counters.

Rules of this module:

* A map is copied, entry by entry, only if the compiler describes its keys and values as before; else it starts empty.
* What is copied speaks in the agent's numbers (domain rows, endpoint ids, counters), so nothing is copied unless the
  agent still has the memory in which those numbers were given.
* Flows are not copied: a packet in the middle of a connection is judged both ways round and its flow is adopted anew.

The old layout's programs and maps stay in force until the new ones are filled (``links.release``); afterwards what the
old programs learned meanwhile is added. Deliberately absent: who decides when (``app``), what entries mean.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from services.common.bpf import BpfError, BpfMap
from services.common.log import get_logger
from services.nodeagent import mapcodec
from services.nodeagent.merge import merge_names, merge_queries
from services.nodeagent.occupancy import give_back

LEARNED = ("resolutions", "queries")
"""Written by the old programs up to the moment they are replaced: copied before, and merged after."""
CHARGED = frozenset({"resolutions", "quotas", "credits"})
"""What was charged and what was given back is of names that are there: the two go along with each other and with them,
or begin anew."""
COUNTED = ("seen", "quotas", "credits", "reasons", "rule_counters")
_SHARED = mapcodec.encode_index(mapcodec.SCOPE_SHARED)
_PROGRAM_PIN = "program-from_pod"
_log = get_logger("carry")


def find_former(pin_root: Path, folder: Path) -> Path | None:
    """The folder of the layout in force, where that is not ``folder``: of several the one whose programs are newest."""
    found = [path for path in pin_root.iterdir() if path != folder and (path / _PROGRAM_PIN).exists()]
    return max(found, key=lambda path: (path / _PROGRAM_PIN).stat().st_mtime_ns, default=None)


class Descriptions:
    """One small file a layout in the agent's state folder: the compiler's description of every map, as a hash."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, layout: str) -> Path:
        return self._folder / f"layout-{layout}"

    def write(self, layout: str, found: Mapping[str, str]) -> None:
        """Keep the descriptions of a layout that is in use now."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path(layout).write_bytes(msgspec.json.encode(dict(found)))

    def read(self, layout: str) -> dict[str, str]:
        """Of an earlier layout; empty if nothing readable was kept."""
        try:
            return msgspec.json.decode(self._path(layout).read_bytes(), type=dict[str, str])
        except (OSError, msgspec.DecodeError):
            return {}

    def remove(self, layout: str) -> None:
        """That layout is gone."""
        self._path(layout).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Carrier:
    """Copies maps of equal description from ``former`` to ``maps``."""

    former: Path
    maps: Mapping[str, Path]
    same: frozenset[str]
    """Names of the maps that may be copied."""

    def copy_before(self) -> Counter[str]:
        """Before the new maps are read; entries by map."""
        return self._each((*COUNTED, *LEARNED), self._copy_one)

    def copy_after(self) -> Counter[str]:
        """After the old programs are replaced: what they learned meanwhile comes beside what the new ones did."""
        return self._each(LEARNED, self._merge_one)

    def _each(self, names: tuple[str, ...], carry: Callable[[BpfMap, BpfMap], int]) -> Counter[str]:
        """A map that is full stops its own copy, said in the log."""
        copied: Counter[str] = Counter()
        for name in names:
            if name not in self.same:
                _log.warning("starts empty: its layout changed", map=name)
                continue
            with BpfMap(self.former / name) as source, BpfMap(self.maps[name]) as target:
                try:
                    copied[name] = carry(source, target)
                except BpfError as error:
                    _log.warning("not all of a map was carried over", map=name, problem=str(error))
        return copied

    def _copy_one(self, source: BpfMap, target: BpfMap) -> int:
        """What is in the new map already is newer and stays."""
        present = frozenset(target.keys())
        entries = {key: value for key, value in source.items() if key not in present}
        target.put_many(entries)
        return len(entries)

    def _merge_one(self, source: BpfMap, target: BpfMap) -> int:
        """Of each entry that both sides may have written since it was copied. Only what changes is written, so that
        little of what the programs do meanwhile can be lost, as when a name is withdrawn (``Datapath.unlearn``)."""
        return self._merge_names(source, target) if target.name == "resolutions" else _merge_sets(source, target)

    def _merge_names(self, source: BpfMap, target: BpfMap) -> int:
        """What other nodes told is not among it: that was written by the agent before."""
        now, charged, count = int(time.clock_gettime(time.CLOCK_BOOTTIME)), Counter[int](), 0
        before, known = _group_pages(source), _group_pages(target)
        try:
            for place, pages in before.items():
                if pages == known.get(place) or place.endswith(_SHARED):
                    continue
                present = _read_pages(target, place)
                merged, added = merge_names(present, pages, now)
                count += _write_pages(target, place, present, merged)
                charged.update(added)
        finally:
            self._charge(charged)
        return count

    def _charge(self, charged: Counter[int]) -> None:
        """By giving back less: what was learned is counted by the programs alone, and goes on being counted."""
        with BpfMap(self.maps["credits"]) as credits:
            give_back(credits, {endpoint: -names for endpoint, names in charged.items()})


def _write_pages(
    target: BpfMap, place: bytes, present: list[mapcodec.NamesPage], merged: list[mapcodec.NamesPage]
) -> int:
    """Those that differ, how many; the page before says "more" only when there is more."""
    differ = [page for page in range(len(merged)) if page >= len(present) or merged[page] != present[page]]
    for page in reversed(differ):
        target.put(place + mapcodec.encode_index(page), mapcodec.encode_names(merged[page]))
    return len(differ)


def _merge_sets(source: BpfMap, target: BpfMap) -> int:
    count = 0
    for key, older in source.items():
        newer = target.get(key) or bytes(len(older))
        merged = merge_queries(newer, older)
        if merged != newer:
            target.put(key, merged)
            count += 1
    return count


def _group_pages(names: BpfMap) -> dict[bytes, list[mapcodec.NamesPage]]:
    """Address and scope, as they begin a key -> pages in their order."""
    found: dict[bytes, dict[bytes, mapcodec.NamesPage]] = {}
    for key, value in names.items():
        found.setdefault(key[:-4], {})[key[-4:]] = mapcodec.decode_names(value)
    return {place: [pages[one] for one in sorted(pages)] for place, pages in found.items()}


def _read_pages(names: BpfMap, place: bytes) -> list[mapcodec.NamesPage]:
    """As they are now."""
    keys = (place + mapcodec.encode_index(page) for page in range(mapcodec.NAME_PAGES))
    values = itertools.takewhile(lambda value: value is not None, map(names.get, keys))
    return [mapcodec.decode_names(value) for value in values if value is not None]


def plan_carrier(
    former: Path, maps: Mapping[str, Path], *, now: Mapping[str, str], before: Mapping[str, str]
) -> Carrier:
    """``now`` and ``before``: descriptions of the maps of both layouts."""
    pinned = {name for name in maps if (former / name).exists()}
    same = frozenset(name for name in pinned if before.get(name) and before.get(name) == now.get(name))
    return Carrier(former, maps, same if same >= CHARGED else same - {"quotas", "credits"})
