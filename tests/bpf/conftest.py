"""One load of the programs for all tests of this folder; each test starts from empty state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bpf.prog_run import Kernel


@pytest.fixture(scope="session")
def loaded_kernel() -> Iterator[Kernel]:
    kernel = Kernel(Path("/sys/fs/bpf"))
    yield kernel
    kernel.close()


@pytest.fixture
def kernel(loaded_kernel: Kernel) -> Kernel:
    """Programs without endpoint, flows or names."""
    from services.nodeagent.tables import Tables

    loaded_kernel.fill(Tables())
    loaded_kernel.forget()
    return loaded_kernel
