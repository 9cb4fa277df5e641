"""What counts as a kernel that passed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import run_kernels
from tests.run_kernels import KernelError, Outcome, boot, find_package, read_junit

NAMES = (
    "linux-image-6.1.0-9-amd64",
    "linux-image-6.1.0-56-amd64",
    "linux-image-6.1.0-60-cloud-amd64",
    "linux-image-6.1.0-61-amd64-unsigned",
    "linux-image-6.12.9+deb12-amd64",
    "linux-image-6.12.117+deb12-amd64",
    "linux-image-6.12.118+deb12-rt-amd64",
    "linux-image-6.12-amd64",
)


@pytest.mark.parametrize(
    ("version", "package"),
    [("6.1", "linux-image-6.1.0-56-amd64"), ("6.12", "linux-image-6.12.117+deb12-amd64")],
)
def test_the_newest_plain_package_of_a_version_is_taken(version: str, package: str) -> None:
    """By number and not by letter; neither cloud nor realtime nor unsigned kernels, and no metapackage."""
    assert find_package(version, NAMES) == package


def test_a_version_that_apt_does_not_know_is_an_error() -> None:
    """Not a kernel that was left out."""
    with pytest.raises(KernelError, match=r"linux-image-6\.6"):
        find_package("6.6", NAMES)


@pytest.mark.parametrize(
    ("outcome", "green"),
    [
        (Outcome("6.1", "6.1.0-56-amd64", "kvm", 1.0, tests=5, is_complete=True), True),
        (Outcome("6.1", "6.12.117+deb12-amd64", "kvm", 1.0, tests=5, is_complete=True), False),
        (Outcome("6.1", "", "kvm", 1.0, is_complete=True), False),
        (Outcome("6.1", "6.1.0-56-amd64", "kvm", 1.0, is_complete=True), False),
        (Outcome("6.1", "6.1.0-56-amd64", "kvm", 1.0, tests=5, failed=1, is_complete=True), False),
        (Outcome("6.1", "6.1.0-56-amd64", "kvm", 1.0, tests=5, skipped=1, is_complete=True), False),
        (Outcome("6.1", "6.1.0-56-amd64", "kvm", 1.0, tests=5), False),
    ],
    ids=["green", "another kernel", "did not come up", "no test ran", "one failed", "one was skipped", "stopped"],
)
def test_a_kernel_passes_only_if_it_ran_and_all_passed(outcome: Outcome, green: bool) -> None:
    """The guest says which kernel it is; nothing run is nothing proven."""
    assert outcome.is_green == green


def test_errors_are_failures(tmp_path: Path) -> None:
    """A test whose fixture fails is counted with those that fail themselves."""
    report = tmp_path / "junit.xml"
    suite = '<testsuite tests="9" failures="1" errors="2" skipped="3"/>'
    report.write_text(f"<testsuites>{suite}</testsuites>")
    assert read_junit(report) == (9, 3, 3)


@pytest.fixture
def kernel_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kernel's package, unpacked; ``vng`` is the script that a test writes to ``bin/vng`` beside it."""
    (tmp_path / "lib" / "modules" / "6.1.0").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(run_kernels.sys, "prefix", str(tmp_path))
    monkeypatch.setattr(run_kernels, "RESULTS", tmp_path)
    return tmp_path


def write_vng(folder: Path, text: str) -> None:
    program = folder / "bin" / "vng"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)


def test_a_script_of_any_length_reaches_the_guest(kernel_folder: Path) -> None:
    """On a kernel's command line, where vng puts what it is given, 2,048 characters are all there is."""
    write_vng(kernel_folder, f'echo "$*" >{kernel_folder}/given; for last; do :; done; $last')
    sign = kernel_folder / "sign"
    boot(kernel_folder, f"echo up >{sign}\n" + "#" * 10_000, sign, kvm=False, seconds=60)
    assert sign.read_text() == "up\n"
    assert len((kernel_folder / "given").read_text()) < 1_000 + len(str(kernel_folder)) * 4


def test_a_guest_that_says_nothing_is_given_up(kernel_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long before its ring's time is over, and with all its processes."""
    write_vng(kernel_folder, f"echo $$ >{kernel_folder}/pid; sleep 3600")
    monkeypatch.setattr(run_kernels, "BOOT_SECONDS", 0.5)
    boot(kernel_folder, "true", kernel_folder / "sign", kvm=False, seconds=3_000)
    pid = int((kernel_folder / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_guest_that_is_up_has_its_rings_time(kernel_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be silent for as long as it likes, once it has said that it is there."""
    sign, done = kernel_folder / "sign", kernel_folder / "done"
    write_vng(kernel_folder, f"echo >{sign}; sleep 1; echo >{done}")
    monkeypatch.setattr(run_kernels, "BOOT_SECONDS", 0.5)
    boot(kernel_folder, "true", sign, kvm=False, seconds=3_000)
    assert done.exists()
