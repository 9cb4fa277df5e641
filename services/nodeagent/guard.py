"""Which addresses no name may have: the rebinding guard, as prefixes.

Pods' and nodes' own addresses are not listed: the programs look them up in ``ipcache``, which is exact and today's.
v4-mapped IPv6 answers are refused by the programs themselves, because their 128-bit form is that of the IPv4 address.
Sources: RFC 1122 3.2.1.3, 3927, 4291, 6052 (NAT64), 3056 (6to4); metadata services of AWS, Azure and Alibaba Cloud.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network

from schemas.policy import Config
from schemas.selectors import parse_network
from services.nodeagent.prefixes import close_prefixes

NEVER_LEARNED_IPV4 = (
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "100.100.100.200/32",
    "168.63.129.16/32",
)
NEVER_LEARNED_IPV6 = (
    "::/96",  # unspecified, loopback and every v4-compatible form
    "64:ff9b:1::/48",  # NAT64 of local use (RFC 8215): where the IPv4 address lies in it is each site's own choice
    "fe80::/10",
    "ff00::/8",
    "fd00:ec2::254/128",
    "fd00:ec2::23/128",
)
NAT64 = IPv6Network("64:ff9b::/96")
SIX_TO_FOUR = IPv6Network("2002::/16")


def build_guard(config: Config, frontends: Iterable[str]) -> dict[str, bool]:
    """prefix -> True: refused, False: an exception. Longest match decides. ``frontends``: addresses of Services."""
    services = [*config.service_cidrs, *(host_prefix(address) for address in frontends)]
    listed = [*NEVER_LEARNED_IPV4, *NEVER_LEARNED_IPV6, *config.never_learn_cidrs]
    firm = set(_with_embedded(services))
    contents: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {}
    contents.update({("service", one): (one, ()) for one in firm})
    contents.update({("listed", one): (one, ()) for one in _with_embedded(listed)})
    contents.update({("exception", one): (one, ()) for one in config.learn_anyway_cidrs})
    return {node: _is_refused({kind for kind, _ in covering}) for node, covering in close_prefixes(contents).items()}


def _is_refused(kinds: set[str]) -> bool:
    """A Service's address always; a listed one unless an exception covers it."""
    return "service" in kinds or ("listed" in kinds and "exception" not in kinds)


def host_prefix(address: str) -> str:
    """``address/32`` or ``/128``."""
    return f"{address}/128" if ":" in address else f"{address}/32"


def _with_embedded(prefixes: Iterable[str]) -> Iterator[str]:
    """Each prefix and, for IPv4, its NAT64 and 6to4 forms: an IPv6 packet to those reaches the IPv4 address."""
    for prefix in prefixes:
        yield prefix
        network = parse_network(prefix)
        if isinstance(network, IPv4Network):
            yield _embed(network, NAT64, shift=0)
            yield _embed(network, SIX_TO_FOUR, shift=80)


def _embed(network: IPv4Network, into: IPv6Network, *, shift: int) -> str:
    start = int(into.network_address) | int(network.network_address) << shift
    return str(IPv6Network((start, into.prefixlen + network.prefixlen)))
