"""Random clusters, policies of every kind as Kubernetes objects, answers, and packets between them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hypothesis import strategies as st

from services.controller.policy.model import Answer, Packet
from tests.strategies.clusters import make_cluster, make_pod
from tests.strategies.dice import Dice, DrawnDice, Obj, RandomDice
from tests.strategies.policies import make_cluster_policy, make_policies, put_under_audit
from tests.strategies.pools import AT
from tests.strategies.traffic import make_answers, make_packet

__all__ = [
    "AT",
    "Dice",
    "RandomDice",
    "Scene",
    "make_cluster_policy",
    "make_pod",
    "make_policies",
    "make_scene",
    "put_under_audit",
    "scenes",
    "seeded_scene",
]


@dataclass(frozen=True)
class Scene:
    """Everything that one question needs."""

    cluster: list[Obj]
    policies: list[Obj]
    answers: list[Answer]
    packets: list[Packet]


def make_scene(dice: Dice, *, packets: int) -> Scene:
    scene = Scene(
        cluster=make_cluster(dice),
        policies=make_policies(dice),
        answers=make_answers(dice),
        packets=[make_packet(dice) for _ in range(packets)],
    )
    put_under_audit(dice, scene.policies)
    return scene


@st.composite
def scenes(draw: st.DrawFn, *, packets: int = 20) -> Scene:
    """For ``@given``."""
    return make_scene(DrawnDice(draw), packets=packets)


def seeded_scene(seed: int, *, packets: int = 100) -> Scene:
    """The same scene for the same seed."""
    return make_scene(RandomDice(random.Random(seed)), packets=packets)
