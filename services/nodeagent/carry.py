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

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from services.common.bpf import BpfError, BpfMap
from services.common.log import get_logger

LEARNED = ("resolutions", "queries")
"""Written by the old programs up to the moment they are replaced: copied before, and again after."""
CHARGED = frozenset({"resolutions", "quotas", "credits"})
"""What was charged and what was given back is of names that are there: the two go along with each other and with them,
or begin anew."""
COUNTED = ("seen", "quotas", "credits", "reasons", "rule_counters")
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
        return self._copy((*COUNTED, *LEARNED))

    def copy_after(self) -> Counter[str]:
        """After the old programs are replaced: what they learned meanwhile."""
        return self._copy(LEARNED)

    def _copy(self, names: tuple[str, ...]) -> Counter[str]:
        copied: Counter[str] = Counter()
        for name in names:
            if name in self.same:
                copied[name] = self._copy_one(name)
            else:
                _log.warning("starts empty: its layout changed", map=name)
        return copied

    def _copy_one(self, name: str) -> int:
        """What is in the new map already is newer and stays. A map that is full stops the copy, said in the log."""
        with BpfMap(self.former / name) as source, BpfMap(self.maps[name]) as target:
            present = frozenset(target.keys())
            entries = {key: value for key, value in source.items() if key not in present}
            try:
                target.put_many(entries)
            except BpfError as error:
                _log.warning("not all of a map was carried over", map=name, problem=str(error))
            return len(entries)


def plan_carrier(
    former: Path, maps: Mapping[str, Path], *, now: Mapping[str, str], before: Mapping[str, str]
) -> Carrier:
    """``now`` and ``before``: descriptions of the maps of both layouts."""
    pinned = {name for name in maps if (former / name).exists()}
    same = frozenset(name for name in pinned if before.get(name) and before.get(name) == now.get(name))
    return Carrier(former, maps, same if same >= CHARGED else same - {"quotas", "credits"})
