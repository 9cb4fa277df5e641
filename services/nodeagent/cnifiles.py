"""The folders in which libcni keeps the plugins' answers, as mounted from the host; what is in a file is ``cniresult``.

Rules of this module:

* Every look at the interfaces is one at the files, so a file is read and parsed once as it is: by inode, size and time.
* A file that goes meanwhile is none; one that no answer can be so large as is not read.

Synchronous, used by ``netlink`` in its thread. Only the host's root writes there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.nodeagent.cniresult import RESULT_BYTES_MAX, CniResult, index_results, parse_result


@dataclass(frozen=True, slots=True)
class _Kept:
    """``written``: nanoseconds of the last write, the inode and the size, as they were before it was read."""

    written: tuple[int, int, int]
    results: tuple[CniResult, ...]


class CniFiles:
    """``folders``: one that is not there is empty."""

    def __init__(self, folders: Sequence[str]) -> None:
        self._folders = tuple(Path(one) for one in folders)
        self._kept: dict[Path, _Kept] = {}

    def read(self) -> dict[tuple[str, str], CniResult]:
        """(interface, hardware address) -> the newest answer that names it."""
        found: dict[Path, _Kept] = {}
        for path in self._list():
            with contextlib.suppress(OSError):
                found[path] = self._read_file(path)
        self._kept = found
        newest_first = sorted(found.values(), key=lambda one: one.written, reverse=True)
        return index_results(one.results for one in newest_first)

    def _list(self) -> Iterator[Path]:
        for folder in self._folders:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                yield from folder.iterdir()

    def _read_file(self, path: Path) -> _Kept:
        about = path.stat()
        written = (about.st_mtime_ns, about.st_ino, about.st_size)
        kept = self._kept.get(path)
        if kept is not None and kept.written == written:
            return kept
        return _Kept(written, parse_result(path.read_bytes()) if about.st_size <= RESULT_BYTES_MAX else ())
