"""Runs the kernel ring on Debian's older kernels, each booted by qemu over this machine's own file system.

``python tests/run_kernels.py [VERSION ...]``: all of ``KERNELS`` by default. What is missing is fetched once: qemu by
apt, the kernels' packages by ``apt-get download`` into ``$XDG_CACHE_HOME/yett/kernels``, unpacked there and not
installed. KVM is used where a probe boots under it, else the processor is emulated, which is some thirty times slower.

What the programs are compiled to does not depend on the kernel that runs. So where the processor is emulated the ring
is first run on this machine, which keeps what it compiles (``services.nodeagent.compiled``), and each guest takes it
from there; one test compiles in the guest all the same and compares. Emulated guests run at once.

A kernel counts as passed only if the guest says that it is that kernel, at least one test ran, and none failed or was
skipped. Exit code 0: all of them passed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from services.common.cache import PROGRAMS, find_cache

KERNELS = ("6.1", "6.12")
"""What docs/kernels.md claims: tests/docs holds the page to this line."""
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "build" / "kernels"
TOOLS = {"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static", "depmod": "kmod"}
"""Command -> the apt package that has it."""
PROBE_SECONDS = 30
BOOT_SECONDS = 300
"""Of an emulated machine, with much to spare: it takes ten. A guest that has said nothing by then is given up."""
RING_SECONDS = int(os.environ.get("YETT_KERNEL_SECONDS", "5400"))
"""What one kernel may take; a ring that is not through by then has failed."""
EMULATED = {
    "YETT_LEARNER_MESSAGES": "2000",
    "YETT_TWIN_CLUSTERS": "10",
    "YETT_TWIN_EXAMPLES": "5",
    "YETT_PORT_TABLES": "1",
    "YETT_LOADER_SECONDS": "1200",
}
"""The long proofs' settings on an emulated processor: the same tests, smaller. Printed before they run."""
RING = "kernel and not e2e and not nats and not kube"
GUEST = """
mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
uname -r > {results}/release
cd {root} && timeout --signal=INT --kill-after=60 {seconds} {python} -m pytest -q -m {ring} \\
    -p no:cacheprovider --timeout={seconds} --durations=10 --junitxml={results}/junit.xml {tests} \\
    > {results}/output 2>&1
echo $? > {results}/code
"""


class KernelError(RuntimeError):
    """Something that is needed cannot be had: the message says what."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One kernel's ring. ``release``: what the guest's uname said; empty if it did not come up.

    ``is_complete``: pytest came to its end and said that all was well; one that was stopped leaves a report too.
    """

    version: str
    release: str
    machine: str
    seconds: float
    tests: int = 0
    failed: int = 0
    skipped: int = 0
    is_complete: bool = False

    @property
    def is_green(self) -> bool:
        ran = self.release.startswith(self.version + ".") and self.tests > 0 and self.is_complete
        return ran and not self.failed and not self.skipped


def run(*command: str | Path, cwd: Path | None = None, seconds: float = 600) -> str:
    """Output of a command that has to succeed."""
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=seconds, check=False
    )
    if done.returncode:
        raise KernelError(f"{' '.join(str(word) for word in command)}: {done.stderr.strip()[-400:]}")
    return done.stdout


# ---------------------------------------------------------------------------------------------------------------------
# What is needed


def install_tools() -> None:
    """qemu and its helpers by apt, where they are missing."""
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if not missing:
        return
    if os.geteuid() != 0:
        raise KernelError(f"not root, and {' '.join(missing)} missing")
    print(f"test-kernels: apt-get install {' '.join(missing)}", flush=True)
    run("apt-get", "-qq", "update")
    run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "install", "-y", "--no-install-recommends", *missing)


def find_package(version: str, names: Sequence[str]) -> str:
    """The newest of Debian's plain kernels of that version among the packages' names; KernelError if there is none."""
    plain = re.compile(rf"linux-image-{re.escape(version)}\.\d+(-\d+)?(\+deb\d+)?-amd64")
    found = [name for name in names if plain.fullmatch(name)]
    if not found:
        raise KernelError(f"apt knows no linux-image-{version}.*-amd64")
    return max(found, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])


def fetch_kernel(version: str, cache: Path) -> Path:
    """The unpacked package: ``boot/vmlinuz-*`` and ``lib/modules/*``. Fetched once, then found."""
    names = run("apt-cache", "pkgnames", f"linux-image-{version}.").split()
    package = find_package(version, names)
    folder = cache / package
    if folder.is_dir():
        return folder
    print(f"test-kernels: fetching {package}", flush=True)
    beside = cache / f"{package}.new"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    run("apt-get", "-qq", "download", package, cwd=beside)
    (archive,) = beside.glob("*.deb")
    run("dpkg", "-x", archive, beside)
    archive.unlink()
    run("depmod", "-b", beside, read_release(beside))
    beside.rename(folder)
    return folder


def read_release(folder: Path) -> str:
    """What uname says on the kernel unpacked there."""
    (modules,) = (folder / "lib" / "modules").iterdir()
    return modules.name


@contextmanager
def linked_modules(folder: Path) -> Iterator[None]:
    """The kernel's modules where its guest looks for them; gone afterwards if they were not there before."""
    release = read_release(folder)
    place = Path("/lib/modules") / release
    if place.exists():
        yield
        return
    made = not place.parent.exists()
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)  # a link to a cache that is gone
    place.symlink_to(folder / "lib" / "modules" / release)
    try:
        yield
    finally:
        place.unlink(missing_ok=True)
        if made:
            place.parent.rmdir()


# ---------------------------------------------------------------------------------------------------------------------
# Booting


def boot(folder: Path, script: str, sign: Path, *, kvm: bool, seconds: float) -> None:
    """Run a script in a guest over this file system, writable in ``RESULTS`` alone; returns when it is off or late.

    ``sign``: the file that the script writes first. The script goes by a file, too: vng's way for it is the kernel's
    command line, of which more than 2,048 characters are cut off, and a guest without its end waits for ever.
    """
    sign.unlink(missing_ok=True)
    written = RESULTS / f"script-{read_release(folder)}"
    written.write_text(script)
    image = folder / "boot" / f"vmlinuz-{read_release(folder)}"
    command = [str(Path(sys.prefix) / "bin" / "vng"), "-r", str(image), "--user", "root", "--cpus", "2"]
    command += ["--memory", "3G", "--force-9p", f"--rwdir={RESULTS}", "--", f"bash {shlex.quote(str(written))}"]
    if not kvm:
        command.insert(1, "--disable-kvm")
    path = f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"
    with (
        (RESULTS / f"console-{read_release(folder)}").open("wb") as console,
        subprocess.Popen(
            command,
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            with suppress(subprocess.TimeoutExpired):
                process.wait(min(BOOT_SECONDS, seconds))
            process.wait(max(seconds - BOOT_SECONDS, 0) if sign.exists() else 0)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)


def has_kvm(folder: Path) -> bool:
    """Whether a guest comes up under KVM: the device alone says little where this machine is a guest itself."""
    if os.environ.get("YETT_KVM") == "0" or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    said = RESULTS / "probe"
    boot(folder, f"uname -r > {said}", said, kvm=True, seconds=PROBE_SECONDS)
    return said.exists()


def read_junit(path: Path) -> tuple[int, int, int]:
    """(tests, failed, skipped)."""
    suites = ElementTree.parse(path).getroot().iter("testsuite")
    counts = [[int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")] for suite in suites]
    tests, failures, errors, skipped = (sum(column) for column in zip(*counts, strict=True))
    return tests, failures + errors, skipped


def collect_files(tests: Sequence[str]) -> list[str]:
    """The files that hold tests of the ring: a guest that imported all others would be busy for minutes."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", RING, *tests]
    listed = run(*command, cwd=ROOT).splitlines()
    return sorted({line.partition("::")[0] for line in listed if "::" in line})


def run_here(tests: Sequence[str]) -> bool:
    """The ring on this machine, as an emulated guest runs it. What it compiles is kept for the guests."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", RING, *tests]
    environment = {**os.environ, **EMULATED, "YETT_RING": "kernel", "YETT_REQUIRE": "kernel"}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0


def run_ring(version: str, folder: Path, tests: Sequence[str], *, kvm: bool) -> Outcome:
    """The kernel ring on one kernel."""
    results = RESULTS / version
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    guest = {"YETT_RING": "kernel", "YETT_REQUIRE": "kernel", "PYTHONDONTWRITEBYTECODE": "1"}
    guest |= {"HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis", "TMPDIR": "/tmp"}
    guest["YETT_PROGRAMS"] = os.environ.get("YETT_PROGRAMS") or str(find_cache() / PROGRAMS)
    if not kvm:
        guest |= EMULATED
    if "YETT_SEED" in os.environ:
        guest["YETT_SEED"] = os.environ["YETT_SEED"]
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in guest.items())
    script = exports + GUEST.format(
        results=results,
        root=ROOT,
        python=Path(sys.prefix) / "bin" / "python",
        ring=shlex.quote(RING),
        seconds=RING_SECONDS,
        tests=" ".join(shlex.quote(test) for test in tests),
    )
    started = time.monotonic()
    boot(folder, script, results / "release", kvm=kvm, seconds=RING_SECONDS + BOOT_SECONDS)
    seconds = time.monotonic() - started
    release = (results / "release").read_text().strip() if (results / "release").exists() else ""
    machine = "kvm" if kvm else "emulated"
    if not (results / "junit.xml").exists():
        return Outcome(version, release, machine, seconds)
    code = results / "code"
    is_complete = code.exists() and code.read_text().strip() == "0"
    return Outcome(version, release, machine, seconds, *read_junit(results / "junit.xml"), is_complete)


# ---------------------------------------------------------------------------------------------------------------------


def show(outcomes: Sequence[Outcome]) -> None:
    """The table, and the last words of a ring that is not green."""
    for outcome in outcomes:
        said = RESULTS / outcome.version / "output"
        if not outcome.is_green and said.exists():
            print(f"\n=== {outcome.version}: {said}\n" + "\n".join(said.read_text().splitlines()[-40:]))
    print(f"\n{'kernel':32} {'machine':9} {'seconds':>8} {'passed':>7} {'failed':>7} {'skipped':>8} ended")
    for one in outcomes:
        passed = one.tests - one.failed - one.skipped
        name = f"{one.version} ({one.release or 'did not come up'})"
        ended = "by itself" if one.is_complete else "with an error, or was stopped"
        counted = f"{one.seconds:8.0f} {passed:7} {one.failed:7} {one.skipped:8}"
        print(f"{name:32} {one.machine:9} {counted} {ended}", flush=True)


def run_kernels(versions: Sequence[str], tests: Sequence[str]) -> list[Outcome]:
    """One outcome a kernel. KernelError where the ring fails on this machine already, or something is missing."""
    install_tools()
    folders = {version: fetch_kernel(version, find_cache() / "kernels") for version in versions}
    tests = tests or collect_files(tests)
    with ExitStack() as stack:
        for folder in folders.values():
            stack.enter_context(linked_modules(folder))
        kvm = {version: has_kvm(folder) for version, folder in folders.items()}
        for version, folder in folders.items():
            machine = "KVM" if kvm[version] else "emulated processor"
            print(f"test-kernels: {read_release(folder)}, {machine}", flush=True)
        if not all(kvm.values()):
            print("test-kernels: " + " ".join(f"{name}={value}" for name, value in EMULATED.items()), flush=True)
            print("test-kernels: the ring on this machine, which compiles for the guests", flush=True)
            if not run_here(tests):
                raise KernelError("the ring fails on this machine, so no other kernel was tried")
        workers = 1 if all(kvm.values()) else os.cpu_count() or 1
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(lambda each: run_ring(each, folders[each], tests, kvm=kvm[each]), versions))


def main(arguments: Sequence[str]) -> int:
    """Versions and, after ``--``, what pytest shall run instead of everything."""
    versions = [word for word in arguments if re.fullmatch(r"\d+\.\d+", word)] or list(KERNELS)
    tests = [word for word in arguments if word not in versions and word != "--"]
    RESULTS.mkdir(parents=True, exist_ok=True)
    try:
        outcomes = run_kernels(versions, tests)
    except KernelError as error:
        print(f"test-kernels: {error}", file=sys.stderr)
        return 1
    show(outcomes)
    return 0 if all(outcome.is_green for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
