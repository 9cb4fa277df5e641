"""One load of the programs for all tests of this folder; each test starts from empty state."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.scenario.kernel_engine import KernelEngine, open_kernel
from tests.bpf.prog_run import Kernel


@pytest.fixture(scope="session")
def loaded_kernel() -> Iterator[Kernel]:
    kernel = Kernel(Path("/sys/fs/bpf"))
    yield kernel
    kernel.close()


@pytest.fixture(scope="module")
def interface() -> Iterator[int]:
    """A second interface of this namespace."""
    name = f"yb{os.getpid()}"
    subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"], check=True)
    yield socket.if_nametoindex(name)
    subprocess.run(["ip", "link", "delete", name], check=True)


@pytest.fixture(scope="session")
def engine() -> Iterator[KernelEngine]:
    """Programs and maps that an agent's own path fills."""
    with open_kernel() as opened:
        yield opened


@pytest.fixture
def kernel(loaded_kernel: Kernel) -> Kernel:
    """Programs without endpoint, flows or names."""
    from services.nodeagent.tables import Tables

    loaded_kernel.fill(Tables())
    loaded_kernel.forget()
    return loaded_kernel
