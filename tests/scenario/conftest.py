"""One load of the programs for all kernel tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.scenario.kernel_engine import KernelEngine, open_kernel


@pytest.fixture(scope="session")
def kernel() -> Iterator[KernelEngine]:
    with open_kernel() as engine:
        yield engine
