"""The short-lived child that makes programs and maps: the only user of bcc, which no daemon could afford to import.

``python -m services.nodeagent.loader --pin-root DIR [--sizes JSON]`` joins ``bpf/*``, compiles, pins everything under
``DIR/<layout hash>/`` and prints one line of JSON. The agent calls ``load``, which runs that as a child.

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
import ctypes
import dataclasses
import hashlib
import json
import os
import platform
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.common import bpf

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
    "established.h",
    "pod_tc.c",
)
LAYOUT_SOURCES = ("types.h", "maps.h")
ENTRY_PROGRAMS = ("from_pod", "to_pod")
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
    "FRONTENDS": 65_536,
    "MIXED": 65_536,
    "DOMAINS": 16_384,
    "RESOLVERS": 4_096,
    "RESOLUTIONS": 131_072,
    "SEEN": 65_536,  # power of two; 64 bytes each; shared out as flows are
    "FLOWS": 262_144,  # 32 bytes each, and 192 while there is a flow; shared out among endpoints (regions)
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
        *("VERDICT_PAGES", "RESOLUTION_PAGES", "HANDOVER_PAGES"),
    )
)

_COMPILER_FLAGS = ("-O2", "-Wno-unused-function", "-Wno-macro-redefined", "-Wno-address-of-packed-member")
_INSTRUCTION = struct.Struct("=BBhi")
_LOAD_WIDE = 0x18
_PSEUDO_MAPS = frozenset({1, 2})
"""BPF_PSEUDO_MAP_FD and BPF_PSEUDO_MAP_VALUE, in the source register of a wide load."""
_LOAD_SECONDS = 120
"""``YETT_LOADER_SECONDS`` overrides it: an emulated processor compiles thirty times slower than its host."""


class LoaderError(RuntimeError):
    """Programs could not be made: the message says which step failed, with the compiler's or the verifier's words."""


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


def load(pin_root: Path, sizes: Mapping[str, int] | None = None) -> Loaded:
    """Run the loader as a child and wait for it. Raises LoaderError with what it said."""
    command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, "--pin-root", str(pin_root)]
    if sizes:
        command += ["--sizes", json.dumps(dict(sizes))]
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


_KCONFIG = """
#define CONFIG_BPF_SYSCALL 1
#ifndef YETT_KERNEL_TYPES
#define YETT_KERNEL_TYPES
typedef signed char s8;
typedef unsigned char u8;
typedef short s16;
typedef unsigned short u16;
typedef int s32;
typedef unsigned int u32;
typedef long long s64;
typedef unsigned long long u64;
typedef _Bool bool;
typedef unsigned long size_t;
typedef unsigned long uintptr_t;
#define true 1
#define false 0
#define __user
#define __percpu
#define __force
#endif
"""
_ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}
_MULTIARCH = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}


HEADERS = Path("/usr/include")


@contextlib.contextmanager
def make_kernel_tree(headers: Path = HEADERS) -> Iterator[Path]:
    """The few files that bcc asks of a kernel source tree, over the exported headers of linux-libc-dev."""
    with tempfile.TemporaryDirectory(prefix="yett-bpf-") as folder:
        _fill_kernel_tree(Path(folder), headers)
        yield Path(folder)


def _fill_kernel_tree(root: Path, headers: Path) -> None:
    machine = platform.machine()
    if not (headers / "linux" / "bpf.h").is_file():
        raise LoaderError(f"no linux/bpf.h in {headers}: install linux-libc-dev")
    files = {
        "include/linux/kconfig.h": _KCONFIG,
        "include/linux/version.h": (headers / "linux" / "version.h").read_text(encoding="utf-8"),
        "include/linux/log2.h": "",
        "include/asm/page.h": f"#define PAGE_SIZE {os.sysconf('SC_PAGE_SIZE')}\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    exported = root / "include/uapi/linux"
    exported.mkdir(parents=True)
    for header in (headers / "linux").iterdir():
        if header.name != "bpf.h":
            (exported / header.name).symlink_to(header)
    (exported / "bpf.h").write_text("", encoding="utf-8")  # bcc brings its own
    architecture = root / f"arch/{_ARCHITECTURES.get(machine, machine)}/include/uapi"
    architecture.mkdir(parents=True)
    own = headers / _MULTIARCH.get(machine, "") / "asm"
    (architecture / "asm").symlink_to(own if own.is_dir() else headers / "asm")
    (root / "include/asm-generic").symlink_to(headers / "asm-generic")


# ---------------------------------------------------------------------------------------------------------------------
# The child


@contextlib.contextmanager
def _captured_stderr() -> Iterator[list[str]]:
    """The compiler and the verifier write to descriptor 2; keep what they say for the error."""
    said: list[str] = []
    with tempfile.TemporaryFile() as kept:
        saved = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            kept.seek(0)
            said.append(kept.read().decode(errors="replace"))


_KEPT_LINES = 60
_PROGRAM_TYPE_SCHED_CLS = 3


def _shorten(said: list[str]) -> str:
    lines = "".join(said).strip().splitlines()
    errors = [line for line in lines if "error:" in line]
    kept = errors[:_KEPT_LINES] or lines[-_KEPT_LINES:]
    return "\n".join(kept)


def _open_bcc() -> Any:
    """bcc's C library with the prototypes that its Python module leaves out."""
    from bcc import lib

    for name in ("bpf_table_name", "bpf_table_key_desc_id", "bpf_table_leaf_desc_id"):
        getattr(lib, name).restype = ctypes.c_char_p
        getattr(lib, name).argtypes = [ctypes.c_void_p, ctypes.c_ulonglong]
    for name in ("bpf_table_key_size_id", "bpf_table_leaf_size_id"):
        getattr(lib, name).restype = ctypes.c_size_t
        getattr(lib, name).argtypes = [ctypes.c_void_p, ctypes.c_ulonglong]
    lib.bpf_table_fd_id.restype = ctypes.c_int
    lib.bpf_table_fd_id.argtypes = [ctypes.c_void_p, ctypes.c_ulonglong]
    lib.bpf_num_tables.restype = ctypes.c_size_t
    lib.bpf_num_tables.argtypes = [ctypes.c_void_p]
    return lib


class Module:
    """A compiled text; its maps exist, unpinned, its programs are not loaded yet. Never freed: the process is
    short-lived.
    """

    def __init__(self, text: str, flags: list[str]) -> None:
        self._lib = _open_bcc()
        lib = self._lib
        array = (ctypes.c_char_p * len(flags))(*[flag.encode() for flag in flags])
        with make_kernel_tree() as tree, _captured_stderr() as said:
            os.environ["BCC_KERNEL_SOURCE"] = str(tree)
            self._module = lib.bpf_module_create_c_from_string(text.encode(), 0, array, len(flags), True, None)
        if not self._module:
            raise LoaderError(f"compile:\n{_shorten(said)}")

    def load_program(self, name: str, maps: Mapping[int, int] | None = None) -> int:
        """File descriptor of a verified TC program; LoaderError with the verifier's last lines.

        ``maps``: descriptor of a map of this module -> of the one that the program is to use in its place.
        """
        lib, module, called = self._lib, self._module, name.encode()
        code = ctypes.string_at(lib.bpf_function_start(module, called), lib.bpf_function_size(module, called))
        patched = ctypes.create_string_buffer(replace_maps(code, maps or {}), len(code))
        with _captured_stderr() as said:
            fd = lib.bcc_func_load(
                module,
                _PROGRAM_TYPE_SCHED_CLS,
                called,
                patched,
                len(code),
                lib.bpf_module_license(module),
                lib.bpf_module_kern_version(module),
                0,
                None,
                0,
                None,
                0,
            )
        if fd < 0:
            raise LoaderError(f"verify {name}:\n{_shorten(said)}")
        return int(fd)

    def list_maps(self) -> dict[str, tuple[int, bpf.MapInfo]]:
        """name -> (descriptor, the layout in the text)."""
        lib, module = self._lib, self._module
        found = {}
        for index in range(lib.bpf_num_tables(module)):
            name = lib.bpf_table_name(module, index).decode()
            info = bpf.MapInfo(
                type=lib.bpf_table_type_id(module, index),
                key_bytes=lib.bpf_table_key_size_id(module, index),
                value_bytes=lib.bpf_table_leaf_size_id(module, index),
                max_entries=lib.bpf_table_max_entries_id(module, index),
                flags=lib.bpf_table_flags_id(module, index),
                id=0,
                name=name,
            )
            found[name] = (lib.bpf_table_fd_id(module, index), info)
        return found

    def describe_map(self, name: str) -> tuple[str, str]:
        """The compiler's description of key and value types, as JSON: for the test of layouts."""
        lib, module, called = self._lib, self._module, name.encode()
        return lib.bpf_table_key_desc(module, called).decode(), lib.bpf_table_leaf_desc(module, called).decode()


def replace_maps(code: bytes, maps: Mapping[int, int]) -> bytes:
    """The program with other descriptors of maps in it. Source: BPF_PSEUDO_MAP_FD, linux/bpf.h."""
    changed, wide = bytearray(code), False
    for offset in range(0, len(code), _INSTRUCTION.size):
        opcode, registers, jump, value = _INSTRUCTION.unpack_from(code, offset)
        if wide:  # the upper half of the one before
            wide = False
            continue
        wide = opcode == _LOAD_WIDE
        if wide and registers >> 4 in _PSEUDO_MAPS and value in maps:
            _INSTRUCTION.pack_into(changed, offset, opcode, registers, jump, maps[value])
    return bytes(changed)


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
    return [*_COMPILER_FLAGS, *(f"-D{name}={size}" for name, size in sorted(sizes.items()))]


UNPINNED = frozenset({"scratch"})


def make(pin_root: Path, given: Mapping[str, int]) -> Loaded:
    """Compile, verify and pin, in this process. Leaves nothing behind where there was nothing and it fails."""
    began = time.monotonic()
    sources, sizes = find_sources(), complete_sizes(given)
    text = join_sources(sources)
    layout = hash_layout(sources, sizes)
    tails = f"tails-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}-{os.urandom(4).hex()}"
    folder = pin_root / layout
    present = frozenset(folder.iterdir()) if folder.is_dir() else None
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as undo:
        undo.callback(_remove_new, folder, present)
        maps, programs, descriptions = _make_pins(folder, tails, text, sizes)
        undo.pop_all()
    stale = tuple(sorted(path for path in folder.glob("tails-*") if path.name != tails))
    return Loaded(layout, folder, maps, programs, stale, round(time.monotonic() - began, 3), descriptions)


def _make_pins(
    folder: Path, tails_name: str, text: str, sizes: Mapping[str, int]
) -> tuple[dict[str, Path], dict[str, Path], dict[str, str]]:
    module = Module(text, make_flags(sizes))
    maps = module.list_maps()
    pins = {name: folder / (tails_name if name == "tails" else name) for name in maps if name not in UNPINNED}
    in_force = _take_pinned({name: (path, *maps[name]) for name, path in pins.items()})
    tails = bpf.BpfMap(pins["tails"])
    for name, index in TAIL_PROGRAMS.items():
        fd = module.load_program(name, in_force)
        tails.put(index.to_bytes(4, sys.byteorder), fd.to_bytes(4, sys.byteorder))
    programs = {name: module.load_program(name, in_force) for name in ENTRY_PROGRAMS}
    for name, fd in programs.items():
        _pin_over(fd, folder / f"program-{name}")
    pinned = {name: path for name, path in pins.items() if name != "tails"}
    described = {name: _hash_texts(str(maps[name][1].type), *module.describe_map(name)) for name in pinned}
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
        }
    )


def main(arguments: list[str] | None = None) -> int:
    """Exit 0 with JSON on stdout, or 1 with a readable error on stderr."""
    parser = argparse.ArgumentParser(description="Compile Yett's programs and pin them.")
    parser.add_argument("--pin-root", type=Path, required=True)
    parser.add_argument("--sizes", type=json.loads, default={}, help="JSON: entries by the names of DEFAULT_SIZES")
    told = parser.parse_args(arguments)
    try:
        loaded = make(told.pin_root, told.sizes)
    except (LoaderError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(format_loaded(loaded))
    return 0


if __name__ == "__main__":
    sys.exit(main())
