"""Folders of pins that a test may fill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

BPFFS = Path("/sys/fs/bpf")


@pytest.fixture
def pin_root(request: pytest.FixtureRequest) -> Iterator[Path]:
    root = BPFFS / f"yett-loader-{Path('/proc/self').readlink().name}"
    yield root
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
    if root.exists():
        root.rmdir()
