"""decode(encode(x)) == x, for every row that a random cluster makes."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas import wire
from services.controller.world import State
from tests.strategies import seeded_scene

NEEDED = ("identity", "namespace", "address", "frontend", "ruleset", "endpoint", "domain", "source", "config")
"""Kinds of rows that random clusters must make, or this says nothing about them."""


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1 << 32))
def test_what_is_encoded_is_decoded(seed: int) -> None:
    """Every row's bytes make the row, and the row the same bytes."""
    for subject, body in _rows_of(seed).items():
        row = wire.decode(subject, body)
        assert wire.encode(row) == body, subject
        assert wire.decode(subject, wire.encode(row)) == row, subject


def test_random_clusters_make_every_kind_of_row() -> None:
    """Within a few seeds."""
    roll = random.Random(0)
    met = {subject.split(".")[2] for _ in range(10) for subject in _rows_of(roll.randrange(1 << 32))}
    assert met >= set(NEEDED), set(NEEDED) - met


def _rows_of(seed: int) -> dict[str, bytes]:
    scene, state = seeded_scene(seed, packets=0), State()
    for obj in scene.cluster + scene.policies:
        state.upsert(obj)
    return state.rows()
