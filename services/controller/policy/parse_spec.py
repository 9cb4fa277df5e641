"""The part of a policy that its ``spec`` says: what every API's reader returns."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.terms import Direction, Tier
from services.controller.policy.model import Rule, Subject


@dataclass(frozen=True, slots=True)
class Spec:
    """See ``model.Policy``, whose fields these become."""

    tier: Tier
    priority: int
    subject: Subject
    isolates: frozenset[Direction]
    egress: tuple[Rule, ...]
    ingress: tuple[Rule, ...]
