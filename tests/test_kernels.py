"""What counts as a kernel that passed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.run_kernels import KernelError, Outcome, find_package, read_junit

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
