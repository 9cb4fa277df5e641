"""The copy of the last proven state on disk: written whole or not at all, so that a crash leaves the one before."""

from __future__ import annotations

import os
from pathlib import Path

FILE_NAME = "policy-state"


class StateFile:
    """One file in the agent's state folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME

    def write(self, data: bytes) -> None:
        """Replace the copy atomically; OSError if the disk refuses, and the copy before stays."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".new")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
        _sync_folder(self._path.parent)

    def read(self) -> bytes:
        """The copy, or b"" if there is none."""
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return b""


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
