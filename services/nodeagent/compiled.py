"""Programs as they were compiled, kept in a folder: a machine compiles one text once, and not at every start.

Compiling takes nearly all of a load's time and memory; what comes out depends on the text, the flags and the compiler
alone, which are the key. What is kept was verified once and is verified again by each kernel that it is given to.

Rules of this module:

* A kept build is used only if its folder and file belong to this user and nobody else may write to them: whoever could
  write there would say what the kernel runs. Whatever cannot be read is compiled anew.
* In kept code a map is its place in ``Compiled.maps``, where the kernel wants a descriptor.

Deliberately absent: compiling (``compiler``), pins (``loader``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from services.common import bpf

KEPT = 64
"""Builds in the folder, about 200 KB each; the oldest go."""
_FORMAT = 1
_INSTRUCTION = struct.Struct("=BBhi")
_LOAD_WIDE = 0x18
_PSEUDO_MAPS = frozenset({1, 2})
"""BPF_PSEUDO_MAP_FD and BPF_PSEUDO_MAP_VALUE, in the source register of a wide load."""


class LoaderError(RuntimeError):
    """Programs could not be made: the message says which step failed, with the compiler's or the verifier's words."""


class VerifierError(LoaderError):
    """The kernel refused a program."""


class CompiledMap(msgspec.Struct, frozen=True):
    """One map of the text. ``key_type``, ``value_type``: the compiler's description of them, as JSON."""

    type: int
    key_bytes: int
    value_bytes: int
    max_entries: int
    flags: int
    name: str
    key_type: str
    value_type: str


class Compiled(msgspec.Struct, frozen=True):
    """One text, compiled."""

    license: str
    maps: tuple[CompiledMap, ...]
    programs: dict[str, bytes]


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


class Build:
    """A kept build brought back: its maps exist, unpinned; programs are loaded when asked for.

    Has what ``compiler.Module`` has for the loader. Raises bpf.BpfError where a map cannot be made. Never freed: the
    process is short-lived.
    """

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        self._maps = [
            bpf.create_map(one.type, one.key_bytes, one.value_bytes, one.max_entries, name=one.name, flags=one.flags)
            for one in compiled.maps
        ]

    def load_program(self, name: str, maps: Mapping[int, int] | None = None) -> int:
        """As ``Module.load_program``; VerifierError with the kernel's last words."""
        own = {place: one.fd for place, one in enumerate(self._maps)}
        code = replace_maps(self._compiled.programs[name], {at: (maps or {}).get(fd, fd) for at, fd in own.items()})
        try:
            return bpf.load_program(code, name, self._compiled.license)
        except bpf.BpfError as error:
            raise VerifierError(f"verify {name}: {error}") from error

    def list_maps(self) -> dict[str, tuple[int, bpf.MapInfo]]:
        """name -> (descriptor, the layout in the text)."""
        return {
            one.name: (
                made.fd,
                bpf.MapInfo(
                    type=one.type,
                    key_bytes=one.key_bytes,
                    value_bytes=one.value_bytes,
                    max_entries=one.max_entries,
                    flags=one.flags,
                    id=0,
                    name=one.name,
                ),
            )
            for one, made in zip(self._compiled.maps, self._maps, strict=True)
        }

    def describe_map(self, name: str) -> tuple[str, str]:
        """The compiler's description of key and value types, as JSON."""
        (one,) = (one for one in self._compiled.maps if one.name == name)
        return one.key_type, one.value_type


# ---------------------------------------------------------------------------------------------------------------------
# The folder


def name_build(text: str, flags: Sequence[str], toolchain: Sequence[str]) -> str:
    """File name of what these give."""
    content = json.dumps([_FORMAT, text, list(flags), list(toolchain)])
    return f"{hashlib.blake2b(content.encode(), digest_size=16).hexdigest()}.programs"


def _is_ours_alone(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    is_plain = stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)
    return is_plain and found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def find_build(folder: Path, name: str) -> Compiled | None:
    """What was kept under that name; None where there is nothing that can be read and trusted."""
    path = folder / name
    if not (_is_ours_alone(folder) and _is_ours_alone(path)):
        return None
    try:
        body = path.read_bytes()
        digest, content = body[:16], body[16:]
        if hashlib.blake2b(content, digest_size=16).digest() != digest:
            return None
        return msgspec.msgpack.decode(content, type=Compiled)
    except (OSError, msgspec.MsgspecError):
        return None


def keep_build(folder: Path, name: str, compiled: Compiled) -> None:
    """Keep it for the next start, and only the ``KEPT`` newest. A folder that cannot be written keeps nothing."""
    content = msgspec.msgpack.encode(compiled)
    beside = folder / f"{name}.{os.getpid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not _is_ours_alone(folder):
            return
        beside.write_bytes(hashlib.blake2b(content, digest_size=16).digest() + content)
        beside.chmod(0o600)
        beside.rename(folder / name)
        _drop_oldest(folder)


def _drop_oldest(folder: Path) -> None:
    kept = sorted(folder.glob("*.programs"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in kept[KEPT:]:
        path.unlink(missing_ok=True)
