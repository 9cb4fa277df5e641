"""What an agent must remember to go on where it stopped: numbers, frozen bindings, the rulesets in the kernel.

Written before its numbers reach the kernel, so it is never behind the maps. The policy state is ``replica``'s affair.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from schemas.policy import PeersetRow, Ruleset
from services.common.log import get_logger
from services.nodeagent.datapath import Datapath
from services.nodeagent.numbers import Capacities, Spaces, find_misfits, make_spaces, resize

FILE_NAME = "numbers"
_log = get_logger("memory")


class Memory(msgspec.Struct, kw_only=True):
    """``layout``: the pin folder the numbers belong to. ``scene``: boot and network namespace of the interfaces.

    ``former``: the layout before it, whose numbers these are too; empty if there was none or its memory was lost.
    """

    layout: str
    former: str = ""
    scene: str
    spaces: Spaces
    bindings: dict[str, str] = {}
    """Life of an interface -> uid."""
    guesses: list[str] = []
    """Lives of which the binding is a guess."""
    named_at: dict[str, list[str]] = {}
    """Uid of a pod that was found by name -> the addresses that its interfaces had."""
    rulesets: dict[str, Ruleset] = {}
    peersets: dict[str, PeersetRow] = {}


class MemoryFile:
    """One file in the agent's state folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._beside = self._path.with_suffix(".new")
        self._written = b""

    def read(self) -> Memory | None:
        """What was written last; None if there is nothing, or nothing that can be read (said in the log)."""
        try:
            data = (self._path if self._path.exists() else self._beside).read_bytes()
            return msgspec.msgpack.decode(data, type=Memory)
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            _log.warning("memory not readable, starting above what is present", problem=str(error))
            return None

    def write(self, memory: Memory) -> None:
        """Replace the file if the content differs. A process that dies leaves the one or the other, whole.

        Unlinked and then renamed: a rename over a file makes ext4 write the data out first, milliseconds in the way of
        every revision, for a file that no reboot needs. Where the file is missing, the one beside it is complete.
        """
        data = msgspec.msgpack.encode(memory)
        if data == self._written:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._beside.write_bytes(data)
        self._path.unlink(missing_ok=True)
        self._beside.rename(self._path)
        self._written = data


def read_scene() -> str:
    """Tells one life of interface numbers from another: the boot and the network namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}/{Path('/proc/self/ns/net').readlink()}"


def take_over(found: Memory | None, *, layout: str, former: str, capacities: Capacities) -> Memory | None:
    """The memory of the layout before as that of this one; None if it is another's, or does not fit the new sizes."""
    if found is None or former not in (found.layout, found.former):
        return None
    if not find_misfits(found.spaces, capacities):
        spaces = resize(found.spaces, capacities)
        return msgspec.structs.replace(found, layout=layout, former=former, spaces=spaces)
    _log.warning("numbers of the layout before do not fit the new sizes: names start empty")
    return None


def recall(found: Memory | None, datapath: Datapath, *, layout: str, capacities: Capacities) -> Memory:
    """A memory that fits the maps: what was read, if it is theirs. Nothing present is given a second meaning."""
    scene = read_scene()
    if found is None or found.layout != layout:
        found = Memory(layout=layout, scene=scene, spaces=make_spaces(capacities))
        found.spaces.domain_rows.avoid(datapath.rows_of_flows())
    if found.scene != scene:
        found = msgspec.structs.replace(found, scene=scene, bindings={}, guesses=[], named_at={})
    found.spaces.handles.learn(datapath.present_rulesets())
    found.spaces.domain_rows.learn(datapath.present_patterns())
    spaces = found.spaces.all_numbers()
    for name, numbers in datapath.present_numbers().items():
        spaces[name].avoid(numbers)
    return found


def keep_present(rulesets: Mapping[str, Ruleset], present: Mapping[str, int]) -> dict[str, Ruleset]:
    """Of the remembered rulesets those that the kernel has."""
    return {name: one for name, one in rulesets.items() if name in present}
