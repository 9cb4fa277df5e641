"""The loader: what it compiles, where it pins it, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from services.common import bpf
from services.demo.pipeline import confine
from services.nodeagent import loader
from tests.bpf.prog_run import SIZES


def test_the_layout_ignores_comments_and_white_space(tmp_path: Path) -> None:
    """Only what makes a layout names its folder: fields, maps, sizes."""
    for name in loader.LAYOUT_SOURCES:
        (tmp_path / name).write_text((loader.find_sources() / name).read_text(), encoding="utf-8")
    before = loader.hash_layout(tmp_path, SIZES)
    types = tmp_path / "types.h"
    types.write_text("// a remark\n" + types.read_text().replace("    ", "  "), encoding="utf-8")
    assert loader.hash_layout(tmp_path, SIZES) == before
    assert loader.hash_layout(tmp_path, {**SIZES, "RULESETS": 512}) != before
    types.write_text(types.read_text().replace("__u32 identity;", "__u64 identity;"), encoding="utf-8")
    assert loader.hash_layout(tmp_path, SIZES) != before


@pytest.mark.parametrize("sizes", [{"NONSENSE": 1}, {"RULESETS": 0}, {"ENDPOINT_SLOTS": 100}])
def test_impossible_sizes_are_refused(sizes: dict[str, int]) -> None:
    """An unknown size, none, or no power of two where one is needed."""
    with pytest.raises(loader.LoaderError):
        loader.complete_sizes(sizes)


def test_what_is_no_json_is_an_error() -> None:
    """A child that prints anything else is told as such."""
    with pytest.raises(loader.LoaderError, match="instead of JSON"):
        loader.parse_loaded("Segmentation fault")


@pytest.mark.kernel
def test_loading_twice_keeps_the_maps_and_swaps_the_programs(pin_root: Path) -> None:
    """A second load finds the maps with their content, pins programs over the old ones, and names what is stale."""
    first = loader.load(pin_root, SIZES)
    with bpf.BpfMap(first.maps["endpoint_addresses"]) as own:
        own.put(bytes(24), bytes(4))
        before = own.info.id
    second = loader.load(pin_root, SIZES)
    assert second.folder == first.folder == pin_root / first.layout
    with bpf.BpfMap(second.maps["endpoint_addresses"]) as own:
        assert own.info.id == before and own.get(bytes(24)) == bytes(4)
    with bpf.RingBuffer(second.maps["verdicts"]) as ring:
        assert ring.consume(1) == []
    assert all(path.exists() for path in (*second.maps.values(), *second.programs.values()))
    assert first.stale == () and len(second.stale) == 1
    assert second.stale[0].exists() and second.stale[0].name.startswith("tails-")


@pytest.mark.kernel
def test_an_installation_s_capabilities_suffice_to_load_and_to_load_again(pin_root: Path) -> None:
    """The first load makes the maps, the second finds them: what bcc does then by itself takes CAP_SYS_ADMIN."""
    command = [sys.executable, "-m", "services.nodeagent.loader", "--pin-root", str(pin_root)]
    for _ in range(2):
        said = subprocess.run(
            confine(*command, "--sizes", json.dumps(SIZES)), capture_output=True, text=True, timeout=300, check=False
        )
        assert said.returncode == 0, said.stderr
    assert len(loader.parse_loaded(said.stdout).stale) == 1


@pytest.mark.kernel
def test_a_foreign_map_in_the_folder_is_refused(pin_root: Path) -> None:
    """bcc would take a pinned map of another layout without a word: the loader does not."""
    sizes = loader.complete_sizes(SIZES)
    folder = pin_root / loader.hash_layout(loader.find_sources(), sizes)
    folder.mkdir(parents=True)
    with bpf.create_map(bpf.TYPE_HASH, 24, 8, 4096, name="endpoint_addresses", flags=1) as foreign:
        bpf.pin_object(foreign.fd, folder / "endpoint_addresses")
    with pytest.raises(loader.LoaderError, match="map endpoint_addresses is pinned with another layout"):
        loader.load(pin_root, SIZES)
    assert [path.name for path in folder.iterdir()] == ["endpoint_addresses"]


@pytest.mark.kernel
def test_a_compile_error_is_readable_and_leaves_nothing(
    pin_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler's words, with file and line of the source; no folder is left behind."""
    for source in loader.find_sources().iterdir():
        if source.is_file():
            (tmp_path / source.name).write_text(source.read_text(), encoding="utf-8")
    broken = tmp_path / "judge.h"
    broken.write_text("int broken(\n" + broken.read_text(), encoding="utf-8")
    monkeypatch.setenv("YETT_BPF_SOURCES", str(tmp_path))
    with pytest.raises(loader.LoaderError, match=r"bpf/judge\.h:\d+"):
        loader.load(pin_root, SIZES)
    assert not list(pin_root.rglob("*"))


@pytest.mark.kernel
def test_a_program_that_the_verifier_refuses_is_named(
    pin_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verifier's last words, and whose they are."""
    for source in loader.find_sources().iterdir():
        if source.is_file():
            (tmp_path / source.name).write_text(source.read_text(), encoding="utf-8")
    code = tmp_path / "pod_tc.c"
    text = code.read_text().replace("action = handle_plain(skb, EGRESS)", "action = *(int *)(long)skb->data")
    code.write_text(text, encoding="utf-8")
    monkeypatch.setenv("YETT_BPF_SOURCES", str(tmp_path))
    with pytest.raises(loader.LoaderError, match="verify from_pod"):
        loader.load(pin_root, SIZES)
    assert not list(pin_root.rglob("*"))


@pytest.mark.kernel
def test_the_command_prints_one_line_of_json(pin_root: Path) -> None:
    """Nothing but JSON on standard output, and nothing on standard error."""
    command = [sys.executable, "-m", "services.nodeagent.loader", "--pin-root", str(pin_root)]
    done = subprocess.run([*command, "--sizes", json.dumps(SIZES)], capture_output=True, text=True, check=True)
    assert done.stderr == "" and done.stdout.count("\n") == 1
    assert json.loads(done.stdout).keys() == {
        "layout",
        "folder",
        "maps",
        "programs",
        "stale",
        "seconds",
        "descriptions",
        "is_compiled",
    }
