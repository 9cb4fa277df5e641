"""Compiled programs that are kept: what is taken back, and what is not trusted."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from services.nodeagent import compiled, loader
from services.nodeagent.compiled import Compiled, CompiledMap
from tests.bpf.prog_run import SIZES

ONE = Compiled("GPL", (CompiledMap(2, 4, 8, 16, 0, "counters", '"int"', '"long"'),), {"from_pod": bytes(16)})
NAME = compiled.name_build("text", ["-O2"], ["x86_64"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    compiled.keep_build(tmp_path / "kept", NAME, ONE)
    return tmp_path / "kept"


def test_what_is_kept_is_found(folder: Path) -> None:
    """Under its name and under no other; only its owner may read or write it."""
    assert compiled.find_build(folder, NAME) == ONE
    assert compiled.find_build(folder, compiled.name_build("text", ["-O1"], ["x86_64"])) is None
    assert folder.stat().st_mode & 0o777 == 0o700 and (folder / NAME).stat().st_mode & 0o777 == 0o600


def test_text_flags_and_compiler_make_the_name() -> None:
    """Any other text, flag, processor or compiler is another build."""
    others = {
        compiled.name_build("text2", ["-O2"], ["x86_64"]),
        compiled.name_build("text", ["-O2", "-DX=1"], ["x86_64"]),
        compiled.name_build("text", ["-O2"], ["aarch64"]),
    }
    assert len(others) == 3 and NAME not in others


@pytest.mark.parametrize("place", ["folder", "file"])
@pytest.mark.parametrize("mode", [0o020, 0o002], ids=["group", "others"])
def test_what_somebody_else_may_write_is_not_used(folder: Path, place: str, mode: int) -> None:
    """Whoever can write a kept program says what the kernel runs."""
    path = folder if place == "folder" else folder / NAME
    path.chmod(path.stat().st_mode | mode)
    assert compiled.find_build(folder, NAME) is None


def test_what_somebody_else_owns_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner may write what he owns."""
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    assert compiled.find_build(folder, NAME) is None


def test_a_link_is_not_followed(folder: Path) -> None:
    """A link has its owner's rights and somebody else's content."""
    (folder / NAME).rename(folder / "elsewhere")
    (folder / NAME).symlink_to(folder / "elsewhere")
    assert compiled.find_build(folder, NAME) is None


@pytest.mark.parametrize("length", [0, 10, 16, 40, -1])
def test_half_a_file_is_no_build(folder: Path, length: int) -> None:
    """A disk that was full, a machine that was switched off."""
    path = folder / NAME
    path.write_bytes(path.read_bytes()[:length])
    assert compiled.find_build(folder, NAME) is None


def test_a_bit_that_fell_over_is_noticed(folder: Path) -> None:
    """What is kept carries a digest."""
    path = folder / NAME
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)
    assert compiled.find_build(folder, NAME) is None


def test_the_oldest_go(folder: Path) -> None:
    """A folder holds so many builds and no more, whatever is tried on the machine."""
    os.utime(folder / NAME, (1, 1))
    for number in range(compiled.KEPT):
        compiled.keep_build(folder, compiled.name_build(str(number), [], []), ONE)
    assert len(list(folder.iterdir())) == compiled.KEPT
    assert compiled.find_build(folder, NAME) is None


def test_a_folder_that_cannot_be_made_keeps_nothing(tmp_path: Path) -> None:
    """An agent starts without it."""
    (tmp_path / "file").write_text("")
    compiled.keep_build(tmp_path / "file" / "kept", NAME, ONE)
    assert compiled.find_build(tmp_path / "file" / "kept", NAME) is None


def test_a_map_is_its_place() -> None:
    """Descriptors become places and places descriptors again, in wide loads of maps and nowhere else."""
    load_map = bytes([0x18, 0x11, 0, 0, 7, 0, 0, 0]) + bytes(8)
    load_number = bytes([0x18, 0x01, 0, 0, 7, 0, 0, 0]) + bytes(8)
    kept = compiled.replace_maps(load_map + load_number, {7: 0})
    assert kept == load_map[:4] + bytes(12) + load_number
    assert compiled.replace_maps(kept, {0: 9}) == load_map[:4] + bytes([9]) + load_map[5:] + load_number


@pytest.mark.kernel
def test_a_kept_build_is_what_the_compiler_makes(
    pin_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled here, on this kernel; what other tests took from elsewhere is the same to the byte."""
    shared = Path(os.environ["YETT_PROGRAMS"])
    loader.load(pin_root, SIZES)
    monkeypatch.setenv("YETT_PROGRAMS", str(tmp_path / "kept"))
    first, second = loader.load(pin_root, SIZES), loader.load(pin_root, SIZES)
    assert (first.is_compiled, second.is_compiled) == (True, False)
    assert second.descriptions == first.descriptions and second.programs == first.programs
    fresh = compiled.find_build(tmp_path / "kept", loader.name_wanted(SIZES))
    assert fresh is not None and fresh == compiled.find_build(shared, loader.name_wanted(SIZES))


@pytest.mark.kernel
def test_a_kept_build_that_the_kernel_refuses_is_compiled_anew(
    pin_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another kernel may want other code; what was refused is replaced."""
    shared, folder = Path(os.environ["YETT_PROGRAMS"]), tmp_path / "kept"
    loader.load(pin_root, SIZES)
    name = loader.name_wanted(SIZES)
    good = compiled.find_build(shared, name)
    assert good is not None
    no_exit = {each: bytes([0xB7, 0, 0, 0, 0, 0, 0, 0]) for each in good.programs}
    compiled.keep_build(folder, name, msgspec.structs.replace(good, programs=no_exit))
    monkeypatch.setenv("YETT_PROGRAMS", str(folder))
    assert loader.load(pin_root, SIZES).is_compiled
    assert compiled.find_build(folder, name) == good
