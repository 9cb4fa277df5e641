"""Random answers and packets."""

from __future__ import annotations

from services.controller.policy.model import Answer, Packet
from tests.strategies.dice import Dice, is_rare
from tests.strategies.pools import (
    BALANCER,
    CROWD,
    DNS_PLACES,
    DNS_SERVICE,
    DOMAINS,
    EXTERNAL,
    HOST_PORT,
    NODE_ADDRESSES,
    NODE_PORT,
    OTHER_RESOLVER,
    OUTSIDE,
    OUTSIDE_6,
    POD_ADDRESSES,
    POD_ADDRESSES_6,
    PORTS,
    SERVICES,
    SERVICES_6,
    SLICED,
)

SENDERS = 6
"""Packets are between the first pods, so that all of a small cluster's and some of a large one's are met."""


def make_answers(dice: Dice) -> list[Answer]:
    """What pods were told: live, in grace, expired and not yet told at ``AT``."""
    pool = (
        OUTSIDE[:3] * 4
        + OUTSIDE[3:]
        + OUTSIDE_6[:1] * 4
        + OUTSIDE_6
        + POD_ADDRESSES[:2]
        + (DNS_SERVICE, EXTERNAL, NODE_ADDRESSES[1])
    )
    return [
        Answer(
            name=dice.pick(DOMAINS),
            addresses=tuple(sorted({dice.pick(pool) for _ in range(dice.pick((1, 2, 3)))})),
            ttl_seconds=dice.pick((0, 60, 300)),
            at=dice.pick((990.0, 650.0, 990.0, 600.0, 0.0, 1200.0)),
        )
        for _ in range(dice.pick((4, 8, 2, 0, 12, 12)))
    ]


def make_packet(dice: Dice) -> Packet:
    """Between anything and anything of one family."""
    return _make_packet_6(dice) if dice.pick((False, False, False, True)) else _make_packet_4(dice)


def _make_packet_4(dice: Dice) -> Packet:
    pods = POD_ADDRESSES[:SENDERS]
    place = dice.pick(("pod", "outside", "service", "face", "node", "outside"))
    if place in ("service", "face"):
        destination, protocol, port = _pick_service(dice) if place == "service" else _pick_face(dice)
        return Packet(dice.pick(pods), destination, protocol, port)
    chosen = {"pod": pods, "outside": OUTSIDE[:3] * 2 + OUTSIDE, "node": NODE_ADDRESSES}[place]
    return _between(dice, pods, chosen, dice.pick((6, 6, 6, 6, 17, 17, 132, 1, 47)))


def _make_packet_6(dice: Dice) -> Packet:
    pods = POD_ADDRESSES_6[:SENDERS]
    chosen = dice.pick((pods, OUTSIDE_6, tuple(SERVICES_6), ("fd01::1",)))
    return _between(dice, pods, chosen, dice.pick((6, 6, 6, 6, 17, 17, 132, 58, 47)))


def _between(dice: Dice, pods: tuple[str, ...], others: tuple[str, ...], protocol: int) -> Packet:
    is_outbound = others[0] in SERVICES_6 or dice.pick((True, True, False))
    pod = dice.pick(pods)
    can_be_itself = is_rare(dice, 8)
    other = dice.pick([each for each in others if each != pod or can_be_itself])
    return Packet(
        source=pod if is_outbound else other,
        destination=other if is_outbound else pod,
        protocol=protocol,
        port=dice.pick((*PORTS, 80, 22)) if protocol in (6, 17, 132) else 0,
        from_own_node=is_rare(dice, 10),
    )


def _pick_service(dice: Dice) -> tuple[str, int, int]:
    """Mostly where it listens."""
    protocol = dice.pick((6, 6, 6, 6, 17, 132, 1))
    address = dice.pick((*SERVICES, "10.100.0.1", SLICED, SLICED, CROWD))
    if protocol not in (6, 17, 132):
        return address, protocol, 0
    listening = {DNS_SERVICE: 53, SLICED: 443}.get(address, 53 if protocol == 17 else 80)
    return address, protocol, dice.pick((listening, listening, listening, dice.pick(PORTS)))


def _pick_face(dice: Dice) -> tuple[str, int, int]:
    """Faces of Services besides their cluster addresses, resolvers of a setting, what answers behind DNS."""
    return dice.pick(
        (
            (EXTERNAL, 6, 80),
            (BALANCER, 6, 80),
            (EXTERNAL, 17, 53),
            (OTHER_RESOLVER, 17, dice.pick((53, 5353))),
            *DNS_PLACES,
            (dice.pick(NODE_ADDRESSES), 6, NODE_PORT),
            (dice.pick(NODE_ADDRESSES), 6, HOST_PORT),
        )
    )
