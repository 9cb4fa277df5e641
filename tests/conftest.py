"""Which rings can run on this machine, and what happens where one cannot.

A ring that lacks something is skipped test by test, with the reason; a ring named in ``YETT_REQUIRE`` (comma-separated)
fails instead, and so does every test in it that skips itself: a required ring that did not run is not green.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from services.common.cache import PROGRAMS, find_cache

# Programs are compiled once, by whichever test comes first, and kept where the other one-time builds are.
os.environ.setdefault("YETT_PROGRAMS", str(find_cache() / PROGRAMS))

RINGS = ("kernel", "nats", "e2e", "kube")
BPFFS = Path("/sys/fs/bpf")
KUBE_ASSETS = Path(__file__).parent / "kube" / "assets.sh"
E2E_TOOLS = ("ip", "nft", "ping", "curl", "dig", "knotd", "knotc", "unbound", "nsenter")

# A property holds or not, however long an example takes on a busy machine; too many examples refused is still a fault.
hypothesis.settings.register_profile("yett", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("yett")


def _required() -> frozenset[str]:
    return frozenset(ring for ring in os.environ.get("YETT_REQUIRE", "").replace(" ", "").split(",") if ring)


def _find_nats_server() -> Path:
    return Path(sys.prefix) / "bin" / "nats-server"


def _is_bpffs_mounted() -> bool:
    return any(line.split()[1:3] == [str(BPFFS), "bpf"] for line in Path("/proc/mounts").read_text().splitlines())


def _missing_kernel() -> Iterator[str]:
    if os.geteuid() != 0:
        yield "not root"
    if not _is_bpffs_mounted():
        yield f"no bpffs at {BPFFS}"


def _missing_nats() -> Iterator[str]:
    if not _find_nats_server().exists():
        yield f"no {_find_nats_server()}"


def _missing_e2e() -> Iterator[str]:
    yield from _missing_kernel()
    yield from _missing_nats()
    yield from (f"no {tool}" for tool in E2E_TOOLS if shutil.which(tool) is None)


def _missing_kube() -> Iterator[str]:
    yield from _missing_nats()
    if shutil.which("openssl") is None:
        yield "no openssl"
    found = subprocess.run([KUBE_ASSETS, "--find"], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        yield found.stderr.strip()


MISSING = {"kernel": _missing_kernel, "nats": _missing_nats, "e2e": _missing_e2e, "kube": _missing_kube}


@functools.cache
def missing_for(ring: str) -> str:
    """What this machine lacks for a ring, as one line; empty if it can run."""
    return ", ".join(MISSING[ring]())


def _rings_of(item: pytest.Item) -> list[str]:
    return [ring for ring in RINGS if item.get_closest_marker(ring)]


def pytest_report_header() -> list[str]:
    """Says at the top which rings cannot run here, and why."""
    return [f"ring {ring}: skipped here: {missing_for(ring)}" for ring in RINGS if missing_for(ring)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what cannot run here; under ``YETT_REQUIRE`` the report below turns that into a failure."""
    for item in items:
        for ring in _rings_of(item):
            if missing := missing_for(ring):
                item.add_marker(pytest.mark.skip(reason=f"ring {ring}: {missing}"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A skip inside a required ring is a failure."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]  # pluggy's Result; the hook wrapper protocol is untyped
    if report.skipped and not hasattr(report, "wasxfail") and _required().intersection(_rings_of(item)):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"YETT_REQUIRE={os.environ['YETT_REQUIRE']}: this test must run, but: {reason}"
