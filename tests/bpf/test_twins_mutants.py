"""The proof proved: break one side deliberately, and it must find, shrink and print what is broken."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.internal.conjecture import engine as shrinking
from typer.testing import CliRunner

from schemas.policy import PeersetRow, Ruleset
from services.cli.__main__ import app
from services.nodeagent import loader, rules, wanted
from services.nodeagent.datapath import Datapath
from services.nodeagent.plan import Op
from services.scenario.kernel_engine import KernelEngine, open_kernel
from tests.strategies import Scene, scenes
from tests.twins.document import make_document
from tests.twins.volume import Outcome, differs, prove_scene, prove_seed, write_scenario

pytestmark = pytest.mark.kernel
SEEDS = 40
"""A proof that needs more clusters than this to see one of these mutants sees nothing."""
SMALL = 12
"""Objects of a shrunk scenario; a random one has about 25."""
Patch = pytest.MonkeyPatch


def lose_deny_bits(patch: Patch) -> None:
    """A fault of the compiler: a Deny becomes an Accept."""

    def take_apart(ruleset: Ruleset, peersets: Mapping[str, PeersetRow]) -> rules.Parts:
        return replace(rules.take_apart(ruleset, peersets), deny=0)

    patch.setattr(wanted, "take_apart", take_apart)


def forget_excepts(patch: Patch) -> None:
    """A fault of the classes: ``except`` takes nothing away."""
    close_prefixes = wanted.close_prefixes

    def close(contents: dict[str, tuple[str, tuple[str, ...]]]) -> Any:
        return close_prefixes({name: (cidr, ()) for name, (cidr, _) in contents.items()})

    patch.setattr(wanted, "close_prefixes", close)


def shift_ports(patch: Patch) -> None:
    """A fault of the port table: a range ends one port early."""
    cut_ranges = wanted.cut_ranges

    def cut(contents: Any) -> Iterator[tuple[range, Any]]:
        for segment, members in cut_ranges(contents):
            yield (segment[:-1] if len(segment) > 1 else segment), members

    patch.setattr(wanted, "cut_ranges", cut)


def corrupt_a_row(patch: Patch) -> None:
    """One map row goes bad on its way: the last mask of every batch of ``peers`` is written empty."""
    apply_one = Datapath._apply_one

    def apply(self: Datapath, op: Op) -> None:
        entries = dict(op.entries)
        if op.map == "peers" and any(entries.values()):
            entries[max(entries)] = bytes(len(entries[max(entries)]))
        apply_one(self, replace(op, entries=entries))

    patch.setattr(Datapath, "_apply_one", apply)


SHADOW_OF_STEP = "!ep->ruleset[2 + (s->question.direction & 1)]"
SOURCE_MUTANTS = {
    "no_shadow_is_asked": (SHADOW_OF_STEP, "1"),
    "a_shadow_opens": (
        "q->ruleset = ep->ruleset[direction & 1];",
        "q->ruleset = ep->ruleset[2 + (direction & 1)] ?: ep->ruleset[direction & 1];",
    ),
}
"""Faults of the programs: what stands in ``pod_tc.c`` once, and what stands there instead."""
MUTANTS = (lose_deny_bits, forget_excepts, shift_ports, corrupt_a_row)
Mutant = Callable[[Patch], None]


@pytest.fixture
def broken(engine: KernelEngine, monkeypatch: Patch) -> Iterator[KernelEngine]:
    """The engine, to be broken; afterwards everything it wrote is compared again."""
    yield engine
    monkeypatch.undo()
    engine._tables = None


def ask(path: Path, engine: str) -> int:
    """``yett test`` on a printed scenario -> exit code: 0 as the oracle says, 1 not so."""
    return CliRunner().invoke(app, ["test", str(path), "--engine", engine, "-o", "json"]).exit_code


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_mutant_is_found_made_small_and_printed(
    mutant: Mutant, broken: KernelEngine, tmp_path: Path, monkeypatch: Patch
) -> None:
    """By a few seeds; the file that is printed replays the difference, and shows none once the fault is gone."""
    mutant(monkeypatch)
    failures = (prove_seed(seed, broken, tmp_path).failure for seed in range(SEEDS))
    failure = next(filter(None, failures), "")
    assert "the smallest scenario that differs" in failure, failure
    (path,) = tmp_path.glob("*.yaml")
    document = yaml.safe_load(path.read_text())
    assert path.read_text() in failure
    assert len(document["probes"]) == 1 and len(document["objects"]) <= SMALL
    assert differs(document, broken)
    monkeypatch.undo()
    broken._tables = None
    assert not differs(document, broken)


@pytest.mark.parametrize("name", SOURCE_MUTANTS)
def test_a_mutant_of_the_programs_is_found_and_made_small(
    name: str, engine: KernelEngine, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Programs compiled with the fault differ from the oracle on a small scenario, on which the right ones do not."""
    folder, (old, new) = tmp_path / "bpf", SOURCE_MUTANTS[name]
    shutil.copytree(loader.find_sources(), folder)
    text = (folder / "pod_tc.c").read_text()
    assert text.count(old) == 1, f"{text.count(old)} places like {old}"
    (folder / "pod_tc.c").write_text(text.replace(old, new))
    monkeypatch.setenv("YETT_BPF_SOURCES", str(folder))
    with open_kernel() as mutant:
        failures = (prove_seed(seed, mutant, tmp_path).failure for seed in range(SEEDS))
        assert "the smallest scenario that differs" in next(filter(None, failures), "")
        document = yaml.safe_load(next(tmp_path.glob("*.yaml")).read_text())
        assert differs(document, mutant)
    assert len(document["probes"]) == 1 and len(document["objects"]) <= SMALL
    assert not differs(document, engine)


def test_what_is_printed_fails_where_the_fault_is(broken: KernelEngine, tmp_path: Path, monkeypatch: Patch) -> None:
    """``yett test --engine kernel`` on the file exits 1 as long as the kernel's side is broken, the oracle 0."""
    lose_deny_bits(monkeypatch)
    next(seed for seed in range(SEEDS) if prove_seed(seed, broken, tmp_path).failure)
    (path,) = tmp_path.glob("*.yaml")
    assert ask(path, "evaluate") == 0
    assert ask(path, "kernel") == 1


def test_hypothesis_finds_and_shrinks_a_mutant(broken: KernelEngine, tmp_path: Path, monkeypatch: Patch) -> None:
    """Scenes drawn by hypothesis shrink by themselves; what is left is written as a scenario that differs."""
    lose_deny_bits(monkeypatch)
    # How small it gets is a matter of steps, not of time: an emulated processor needs more than the five minutes given.
    monkeypatch.setattr(shrinking, "MAX_SHRINKING_SECONDS", 3600)

    @settings(
        max_examples=60,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(scene=scenes(packets=8))
    def prove(scene: Scene) -> None:
        if any(each.probe is not None for each in prove_scene(scene, broken, "shrunk", Outcome())):
            write_scenario(make_document(scene, "shrunk"), tmp_path)
            raise AssertionError("they differ")

    with pytest.raises(AssertionError, match="they differ"):
        prove()
    document = yaml.safe_load((tmp_path / "shrunk.yaml").read_text())
    assert differs(document, broken)
    policies = [obj for obj in document["objects"] if "Policy" in obj["kind"]]
    assert len(policies) <= 2, policies
