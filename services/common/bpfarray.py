"""A pinned array mapped into this process: read where it is, without a system call an entry.

Only for arrays made with BPF_F_MMAPABLE. Words are read and written whole (eight bytes, aligned), as the programs do.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Self

from services.common.bpf import open_object, read_map_info

_MMAPABLE = 1024


class MappedArray:
    """``words``: the entries as 64-bit words, ``stride`` of them an entry. Writable: what is written is in force."""

    def __init__(self, path: Path) -> None:
        fd = open_object(path)
        try:
            info = read_map_info(fd, path.name)
            if not info.flags & _MMAPABLE or info.value_bytes % 8:
                raise ValueError(f"{path.name}: not an array of words that can be mapped")
            self.stride, self.entries = info.value_bytes // 8, info.max_entries
            length = -(-info.value_bytes * info.max_entries // mmap.PAGESIZE) * mmap.PAGESIZE
            self._memory = mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        finally:
            os.close(fd)
        self.words = memoryview(self._memory).cast("Q")

    def close(self) -> None:
        """Unmap; the pin stays."""
        self.words.release()
        self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
