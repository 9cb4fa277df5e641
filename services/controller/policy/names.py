"""What answers make of names, for the oracle: which addresses may have a name, and until when they do.

The rebinding guard: an address that is a pod's, a node's or a Service's now, or of a range that no name may have, is
never learned; nor is any form that embeds one. A NAT64 or 6to4 form of an address that may have a name may have it
too: a translator carries it there, and IPv6-only clusters know public addresses by no other form.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Network

from schemas.policy import Config
from schemas.selectors import parse_address, parse_network, pattern_covers
from services.controller.policy.model import Answer

NEVER_LEARNED = (
    "0.0.0.0/8",  # this network, unspecified
    "127.0.0.0/8",  # loopback
    "169.254.0.0/16",  # link-local, metadata included
    "224.0.0.0/4",  # multicast
    "255.255.255.255/32",
    "168.63.129.16/32",  # Azure's metadata
    "100.100.100.200/32",  # Alibaba's metadata
    "::/96",  # unspecified, loopback, v4-compatible
    "::ffff:0:0/96",  # v4-mapped
    "64:ff9b:1::/48",  # NAT64 of local use (RFC 8215): where the IPv4 address lies in it is each site's own choice
    "fe80::/10",  # link-local
    "ff00::/8",  # multicast
    "fd00:ec2::254/128",  # AWS's metadata
    "fd00:ec2::23/128",  # AWS's Pod Identity
)
"""Ranges that no answer may give a name to, as the design lists them."""
NAT64 = IPv6Network("64:ff9b::/96")
"""RFC 6052: the IPv4 address is the last 32 bits."""
SIX_TO_FOUR = IPv6Network("2002::/16")
"""RFC 3056: the IPv4 address follows the prefix."""


def forms_of(address: str) -> tuple[str, ...]:
    """The address, and the IPv4 address that it embeds, if it does."""
    parsed = parse_address(address)
    if parsed.version == 6 and parsed in NAT64:
        return address, str(IPv4Address(int(parsed) & 0xFFFFFFFF))
    if parsed.version == 6 and parsed in SIX_TO_FOUR:
        return address, str(IPv4Address(int(parsed) >> 80 & 0xFFFFFFFF))
    return (address,)


def is_learnable(address: str, config: Config) -> bool:
    """Whether an answer may give this address a name, as far as ranges decide it.

    An exception is for the form it names and does not open the range of Services.
    """
    forms = forms_of(address)
    if any(_is_in(form, config.service_cidrs) for form in forms):
        return False
    if _is_in(address, config.learn_anyway_cidrs):
        return True
    return not any(_is_in(form, (*NEVER_LEARNED, *config.never_learn_cidrs)) for form in forms)


def expiry_of(answer: Answer, config: Config) -> float:
    """From when on no new connection may begin under this answer, in seconds on the answer's clock."""
    ttl = min(max(answer.ttl_seconds, config.ttl_min_seconds), config.ttl_max_seconds)
    return answer.at + ttl + config.grace_seconds


def covered(pattern: str, names: frozenset[str]) -> str:
    """The first of the names that a pattern covers, or empty."""
    return next((name for name in sorted(names) if pattern_covers(pattern, name)), "")


def _is_in(address: str, cidrs: tuple[str, ...]) -> bool:
    parsed = parse_address(address)
    return any(
        network.version == parsed.version and parsed in network for network in (parse_network(cidr) for cidr in cidrs)
    )
