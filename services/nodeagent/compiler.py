"""The compiler: the only user of bcc, which no daemon could afford to import. Runs in the loader's child.

A text becomes a ``Module``: maps that nothing pins, and programs that are not loaded yet. ``export`` takes what was
made out of the process, to be kept (``compiled``).

Deliberately absent: which programs there are and where anything is pinned (``loader``).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from services.common import bpf
from services.nodeagent.compiled import Compiled, CompiledMap, LoaderError, VerifierError, replace_maps

HEADERS = Path("/usr/include")
FLAGS = ("-O2", "-Wno-unused-function", "-Wno-macro-redefined", "-Wno-address-of-packed-member")


def describe_toolchain(headers: Path = HEADERS) -> tuple[str, ...]:
    """What decides beside text and flags what comes out: processor, compiler, exported headers. Imports no compiler."""
    found = importlib.util.find_spec("bcc")
    version = Path(found.origin).with_name("version.py") if found and found.origin else None
    told = (version, headers / "linux" / "version.h")
    texts = (path.read_text(encoding="utf-8") if path and path.is_file() else "" for path in told)
    return platform.machine(), str(os.sysconf("SC_PAGE_SIZE")), *texts


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
    lib.bpf_module_license.restype = ctypes.c_char_p
    lib.bpf_module_license.argtypes = [ctypes.c_void_p]
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
        code = self._read_code(name)
        patched = ctypes.create_string_buffer(replace_maps(code, maps or {}), len(code))
        with _captured_stderr() as said:
            fd = lib.bcc_func_load(
                module,
                bpf.PROGRAM_SCHED_CLS,
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
            raise VerifierError(f"verify {name}:\n{_shorten(said)}")
        return int(fd)

    def _read_code(self, name: str) -> bytes:
        lib, module, called = self._lib, self._module, name.encode()
        return ctypes.string_at(lib.bpf_function_start(module, called), lib.bpf_function_size(module, called))

    def export(self, programs: Iterable[str]) -> Compiled:
        """What was compiled, apart from this process: maps by their place instead of by a descriptor."""
        found = self.list_maps()
        places = {fd: place for place, (fd, _) in enumerate(found.values())}
        maps = [CompiledMap(*_numbers_of(info), name, *self.describe_map(name)) for name, (_, info) in found.items()]
        code = {name: replace_maps(self._read_code(name), places) for name in programs}
        return Compiled(self._lib.bpf_module_license(self._module).decode(), tuple(maps), code)

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


def _numbers_of(info: bpf.MapInfo) -> tuple[int, int, int, int, int]:
    return info.type, info.key_bytes, info.value_bytes, info.max_entries, info.flags
