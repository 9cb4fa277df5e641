"""Like is compared with like, turn by turn, and a bound from below is held from below."""

from __future__ import annotations

import pytest

from bench.bounds import Measured
from bench.pairs import BARE, CONTROL, ENFORCED, compare, judge_pairs, take_turns
from bench.traffic import read_turns


def test_every_measure_has_its_turn_and_none_is_always_first() -> None:
    """Who comes second finds warm caches; over the turns everyone does."""
    order: list[str] = []

    def note(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = take_turns(3, {name: lambda name=name: note(name) for name in "abc"})  # type: ignore[misc]
    assert order == list("abcbcacab")
    assert found == {"a": [1, 6, 8], "b": [2, 4, 9], "c": [3, 5, 7]}


def test_a_machine_that_slows_down_for_a_turn_changes_no_ratio() -> None:
    """Samples are compared within their turn; a tenth of the speed for one turn is nobody's loss."""
    found = {ENFORCED: [9.0, 0.9, 9.0], BARE: [10.0, 1.0, 10.0]}
    assert [round(one, 6) for one in compare(found, ENFORCED, BARE).values] == [0.9, 0.9, 0.9]


def test_the_ratio_is_held_from_below_with_the_controls_beside_it() -> None:
    """0.97 of the bare rate is enough, 0.96 is not; the control's spread is printed in either case."""
    found = {ENFORCED: [97.0] * 3, BARE: [100.0] * 3, CONTROL: [101.0] * 3}
    assert judge_pairs("x", found, 0.97, "q/s").met
    missed = judge_pairs("x", {**found, ENFORCED: [96.0] * 3}, 0.97, "q/s")
    assert not missed.met
    assert "control 1.010 (1.010 to 1.010)" in missed.spread


def test_floors_are_printed_beside_what_they_are_floors_of() -> None:
    """With their quartiles, in words."""
    found = {ENFORCED: [96.0] * 3, BARE: [100.0] * 3, CONTROL: [100.0] * 3, "nothing": [98.0] * 3}
    judged = judge_pairs("x", found, 0.97, "a second", {"filters that do nothing": compare(found, "nothing", BARE)})
    assert "; filters that do nothing 0.980 (0.980 to 0.980); 3 pairs" in judged.spread


def test_nanoseconds_become_rates() -> None:
    """Two turns of two pairs; what is incomplete is refused."""
    assert read_turns(["a", "b"], "1000 2000\n3000 4000\n", 12) == {"a": [1.2e7, 4e6], "b": [6e6, 3e6]}
    for said in ("", "1000\n", "1000 2000\n3000\n"):
        with pytest.raises(ValueError, match="not every turn has 2 figures"):
            read_turns(["a", "b"], said, 12)


def test_the_file_has_the_promised_columns() -> None:
    """Whether a bound is one from below is for the judge alone."""
    shown = Measured("x", 1.0, "x bare", 0.97, at_least=True).to_json()
    assert shown.keys() == {"what", "value", "unit", "bound", "met", "spread"}
