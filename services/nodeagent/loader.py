"""The short-lived child that makes programs and maps.

``python -m services.nodeagent.loader --pin-root DIR [--sizes JSON] [--kept DIR]`` joins ``bpf/*``, compiles it or takes
what was compiled before, pins everything under ``DIR/<layout hash>/`` and prints one line of JSON. The agent calls
``load``, which runs that as a child.

Rules of this module:

* The folder is named by the hash of all that makes a layout (types, maps, sizes), so two layouts never share a map.
  What is pinned there already is compared with what was compiled and refused if it differs.
* Maps are made without pins, and programs are pointed at those that are pinned already before they are loaded: bcc's
  own pins take CAP_SYS_ADMIN where there is one already (bpf_map_get_fd_by_id).
* A program is pinned beside the old one and renamed over it: there is no moment without one.
* The tail calls of every load are pinned under a name of its own: programs in force keep theirs until their filters are
  swapped. Entries of one load called by programs of another would meet an empty scratch, even of the same build.

Deliberately absent: attaching (``links``), filling (``datapath``), and removal of older builds' pins (``stale`` names
them; the agent unlinks them after its filters are swapped).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.common import bpf
from services.nodeagent.compiled import Build, Compiled, LoaderError, VerifierError, find_build, keep_build, name_build
from services.nodeagent.compiler import FLAGS, Module, describe_toolchain

SOURCES = (
    "types.h",
    "maps.h",
    "parse.h",
    "scratch.h",
    "kept.h",
    "flow.h",
    "events.h",
    "lookup.h",
    "names.h",
    "judge.h",
    "reach.h",
    "learn.h",
    "learn_walk.h",
    "learn_write.h",
    "learn_stream.h",
    "established.h",
    "move.h",
    "pod_tc.c",
)
LAYOUT_SOURCES = ("types.h", "maps.h")
ENTRY_PROGRAMS = ("from_pod", "to_pod", "move_flow")
"""Those that are pinned: two for interfaces, and the one that the agent runs itself when regions change."""
TAIL_PROGRAMS: Mapping[str, int] = {
    "judge_packet": 0,
    "finish_packet": 1,
    "learn_walk": 3,
    "learn_alias": 4,
    "learn_write": 5,
    "learn_stream": 8,
    "learn_pieces": 9,
    "learn_refused": 10,
    "handle_from_pod": 6,
    "handle_to_pod": 7,
    "dns_from_pod": 11,
    "dns_to_pod": 12,
}
"""Program -> index in ``tails``: TAIL_* of bpf/maps.h."""

DEFAULT_SIZES: Mapping[str, int] = {
    "ENDPOINT_SLOTS": 1024,  # power of two; endpoints of one node, and ids below it
    "QUERY_SETS": 256,  # power of two; of 8 queries, for each endpoint; 32 KiB an endpoint
    "REACH_SETS": 8,  # power of two; of 8 peers, for each endpoint and direction; 5.1 KiB an endpoint
    "RULESETS": 1024,
    "ADDRESSES": 131_072,
    "PREFIXES": 262_144,
    "IDENTITIES": 65_536,
    "PEERS": 262_144,
    "PORTS": 65_536,
    "PEER_ROWS": 65_536,  # power of two; 72 bytes each: rows of ``peers`` that cost no hash lookup, see rowmap
    "PORT_ROWS": 32_768,  # the same of ``ports``
    "FRONTENDS": 65_536,
    "MIXED": 65_536,
    "DOMAINS": 16_384,
    "RESOLVERS": 4_096,
    "RESOLUTIONS": 131_072,
    "SEEN": 65_536,  # power of two; 64 bytes each; shared out as flows are
    "FLOWS": 262_144,  # 32 bytes each, and 256 while there is a flow; shared out among endpoints (regions)
    "FRAGMENTS": 8_192,  # the same
    "RULE_COUNTERS": 65_536,
    "VERDICT_PAGES": 512,  # power of two; 2 MiB
    "RESOLUTION_PAGES": 1_024,  # power of two; 4 MiB
    "HANDOVER_PAGES": 1_024,  # power of two; 4 MiB
}
"""Entries a map; each is a setting. Sparse hashes and tries cost memory for what they hold only."""
POWERS_OF_TWO = frozenset(
    (
        *("ENDPOINT_SLOTS", "QUERY_SETS", "REACH_SETS", "FLOWS", "SEEN", "FRAGMENTS"),
        *("PEER_ROWS", "PORT_ROWS"),
        *("VERDICT_PAGES", "RESOLUTION_PAGES", "HANDOVER_PAGES"),
    )
)

_LOAD_SECONDS = 120
"""``YETT_LOADER_SECONDS`` overrides it: an emulated processor compiles thirty times slower than its host."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is pinned now. ``stale``: pins of older builds, to be unlinked once nothing runs them.

    ``descriptions``: map -> hash of what the compiler says of its type, key and value; equal ones can be copied.
    """

    layout: str
    folder: Path
    maps: Mapping[str, Path]
    programs: Mapping[str, Path]
    stale: tuple[Path, ...]
    seconds: float
    descriptions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    is_compiled: bool = True
    """Compiled for this load, not taken from what was kept."""


def load(pin_root: Path, sizes: Mapping[str, int] | None = None, kept: Path | None = None) -> Loaded:
    """Run the loader as a child and wait for it. Raises LoaderError with what it said.

    ``kept``: folder of what was compiled before; ``YETT_PROGRAMS`` goes before it.
    """
    command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, "--pin-root", str(pin_root)]
    if sizes:
        command += ["--sizes", json.dumps(dict(sizes))]
    if folder := os.environ.get("YETT_PROGRAMS") or kept:
        command += ["--kept", str(folder)]
    seconds = float(os.environ.get("YETT_LOADER_SECONDS", _LOAD_SECONDS))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise LoaderError(f"loader took more than {seconds:.0f} s") from error
    if done.returncode:
        raise LoaderError(done.stderr.strip() or f"loader ended with {done.returncode}")
    return parse_loaded(done.stdout)


def parse_loaded(line: str) -> Loaded:
    """The loader's line of JSON; LoaderError if it is not one."""
    try:
        found = json.loads(line)
    except ValueError as error:
        raise LoaderError(f"loader printed {line[:200]!r} instead of JSON") from error
    return Loaded(
        layout=found["layout"],
        folder=Path(found["folder"]),
        maps={name: Path(path) for name, path in found["maps"].items()},
        programs={name: Path(path) for name, path in found["programs"].items()},
        stale=tuple(Path(path) for path in found["stale"]),
        seconds=found["seconds"],
        descriptions=found["descriptions"],
        is_compiled=found["is_compiled"],
    )


# ---------------------------------------------------------------------------------------------------------------------
# What is compiled


def find_sources() -> Path:
    """The folder of ``bpf/``: ``YETT_BPF_SOURCES``, else beside the package (a checkout, an image)."""
    told = os.environ.get("YETT_BPF_SOURCES")
    folder = Path(told) if told else Path(__file__).resolve().parents[2] / "bpf"
    if not (folder / SOURCES[-1]).is_file():
        raise LoaderError(f"no {SOURCES[-1]} in {folder}: set YETT_BPF_SOURCES to the folder of the programs' sources")
    return folder


def join_sources(folder: Path, names: tuple[str, ...] = SOURCES) -> str:
    """One text: bcc rewrites map calls in the main file alone. ``#line`` keeps errors readable."""
    return "\n".join(f'#line 1 "bpf/{name}"\n{(folder / name).read_text(encoding="utf-8")}' for name in names)


def hash_layout(folder: Path, sizes: Mapping[str, int]) -> str:
    """16 hex digits over types, maps and sizes; comments and white space do not count."""
    text = "\n".join((folder / name).read_text(encoding="utf-8") for name in LAYOUT_SOURCES)
    plain = re.sub(r"\s+", " ", re.sub(r"//[^\n]*", "", text))
    content = json.dumps([plain, sorted(sizes.items())])
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def complete_sizes(given: Mapping[str, int]) -> dict[str, int]:
    """Defaults with the given sizes put in; LoaderError on an unknown name or an impossible number."""
    unknown = sorted(given.keys() - DEFAULT_SIZES.keys())
    if unknown:
        raise LoaderError(f"unknown sizes: {', '.join(unknown)}")
    sizes = {**DEFAULT_SIZES, **given}
    for name, size in sizes.items():
        if size < 1 or (name in POWERS_OF_TWO and size & (size - 1)):
            raise LoaderError(f"{name} is {size}: must be {'a power of two' if name in POWERS_OF_TWO else 'positive'}")
    return sizes


# ---------------------------------------------------------------------------------------------------------------------
# The child


def check_layouts(maps: Mapping[str, tuple[int, bpf.MapInfo]]) -> None:
    """LoaderError if a map that was pinned before is not what the text says."""
    for name, (fd, wanted) in maps.items():
        present = bpf.read_map_info(fd, name)
        if present.type == bpf.TYPE_RING_BUFFER:  # the text says keys and values that a ring has not
            same = present.type == wanted.type and present.max_entries == wanted.max_entries
        else:
            same = dataclasses.replace(wanted, id=present.id, name=present.name) == present
        if not same:
            raise LoaderError(f"map {name} is pinned with another layout: {present}, wanted {wanted}")


def make_flags(sizes: Mapping[str, int]) -> list[str]:
    """What the compiler is told."""
    return [*FLAGS, *(f"-D{name}={size}" for name, size in sorted(sizes.items()))]


def name_wanted(given: Mapping[str, int]) -> str:
    """Under what name a build of today's sources with these sizes is kept."""
    return name_build(join_sources(find_sources()), make_flags(complete_sizes(given)), describe_toolchain())


UNPINNED = frozenset({"scratch"})


def make(pin_root: Path, given: Mapping[str, int], kept: Path | None = None) -> Loaded:
    """Compile or take what was compiled, verify and pin, in this process. Leaves nothing behind where there was nothing
    and it fails.
    """
    began = time.monotonic()
    sources, sizes = find_sources(), complete_sizes(given)
    text, flags = join_sources(sources), make_flags(sizes)
    folder = pin_root / hash_layout(sources, sizes)
    tails = f"tails-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}-{os.urandom(4).hex()}"
    name = name_wanted(given)
    found = find_build(kept, name) if kept else None
    pins = _pin_kept(folder, tails, found) if found else None
    if is_compiled := pins is None:
        module = Module(text, flags)
        pins = _pin_build(folder, tails, module)
        if kept:
            keep_build(kept, name, module.export((*TAIL_PROGRAMS, *ENTRY_PROGRAMS)))
    maps, programs, descriptions = pins
    stale = tuple(sorted(path for path in folder.glob("tails-*") if path.name != tails))
    seconds = round(time.monotonic() - began, 3)
    return Loaded(folder.name, folder, maps, programs, stale, seconds, descriptions, is_compiled)


_Pins = tuple[dict[str, Path], dict[str, Path], dict[str, str]]


def _pin_kept(folder: Path, tails: str, found: Compiled) -> _Pins | None:
    """None where this kernel refuses it: the compiler's own load has the better words for why."""
    try:
        return _pin_build(folder, tails, Build(found))
    except (VerifierError, bpf.BpfError):
        return None


def _pin_build(folder: Path, tails: str, build: Module | Build) -> _Pins:
    present = frozenset(folder.iterdir()) if folder.is_dir() else None
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as undo:
        undo.callback(_remove_new, folder, present)
        pins = _make_pins(folder, tails, build)
        undo.pop_all()
    return pins


def _make_pins(folder: Path, tails_name: str, build: Module | Build) -> _Pins:
    maps = build.list_maps()
    pins = {name: folder / (tails_name if name == "tails" else name) for name in maps if name not in UNPINNED}
    in_force = _take_pinned({name: (path, *maps[name]) for name, path in pins.items()})
    tails = bpf.BpfMap(pins["tails"])
    for name, index in TAIL_PROGRAMS.items():
        fd = build.load_program(name, in_force)
        tails.put(index.to_bytes(4, sys.byteorder), fd.to_bytes(4, sys.byteorder))
    programs = {name: build.load_program(name, in_force) for name in ENTRY_PROGRAMS}
    for name, fd in programs.items():
        _pin_over(fd, folder / f"program-{name}")
    pinned = {name: path for name, path in pins.items() if name != "tails"}
    described = {name: _hash_texts(str(maps[name][1].type), *build.describe_map(name)) for name in pinned}
    return pinned, {name: folder / f"program-{name}" for name in programs}, described


def _take_pinned(maps: Mapping[str, tuple[Path, int, bpf.MapInfo]]) -> dict[int, int]:
    """Pin each map, or find the one that is pinned there already: descriptor of the new one -> of that one.

    bcc would do both, but it opens by its id what it has found by its pin, and that takes CAP_SYS_ADMIN.
    """
    found = {name: bpf.open_object(path) for name, (path, _, _) in maps.items() if path.exists()}
    check_layouts({name: (fd, maps[name][2]) for name, fd in found.items()})
    for name, (path, fd, _) in maps.items():
        if name in found:
            os.close(fd)  # its memory is needed for nothing
        else:
            bpf.pin_object(fd, path)
    return {maps[name][1]: fd for name, fd in found.items()}


def _hash_texts(*texts: str) -> str:
    return hashlib.blake2b(json.dumps(texts).encode(), digest_size=8).hexdigest()


def _pin_over(fd: int, path: Path) -> None:
    beside = path.with_name(f"{path.name}-new")
    beside.unlink(missing_ok=True)
    bpf.pin_object(fd, beside)
    beside.rename(path)


def _remove_new(folder: Path, present: frozenset[Path] | None) -> None:
    for path in folder.iterdir():
        if present is None or path not in present:
            path.unlink()
    if present is None:
        folder.rmdir()


def format_loaded(loaded: Loaded) -> str:
    """Inverse of ``parse_loaded``."""
    return json.dumps(
        {
            "layout": loaded.layout,
            "folder": str(loaded.folder),
            "maps": {name: str(path) for name, path in sorted(loaded.maps.items())},
            "programs": {name: str(path) for name, path in sorted(loaded.programs.items())},
            "stale": [str(path) for path in loaded.stale],
            "seconds": loaded.seconds,
            "descriptions": dict(loaded.descriptions),
            "is_compiled": loaded.is_compiled,
        }
    )


def main(arguments: list[str] | None = None) -> int:
    """Exit 0 with JSON on stdout, or 1 with a readable error on stderr."""
    parser = argparse.ArgumentParser(description="Compile Yett's programs and pin them.")
    parser.add_argument("--pin-root", type=Path, required=True)
    parser.add_argument("--sizes", type=json.loads, default={}, help="JSON: entries by the names of DEFAULT_SIZES")
    parser.add_argument("--kept", type=Path, help="folder of what was compiled before, and will be found again")
    told = parser.parse_args(arguments)
    try:
        loaded = make(told.pin_root, told.sizes, told.kept)
    except (LoaderError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(format_loaded(loaded))
    return 0


if __name__ == "__main__":
    sys.exit(main())
