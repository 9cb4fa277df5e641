"""Which pod an interface belongs to: decided from the host's side, once, for the life of the interface.

Rules of this module:

* An address proves itself by the host route that leads to the interface, or on a bridge by what the CNI plugin answered
  (``cniresult``); what the pod says of itself is no authority.
* The pod is found by the interface's computed name (prefix + sha1("namespace.pod")[:11]: VPC CNI, Calico), by the
  plugin's answer, or by address.
* Where there are host routes an answer counts only if they lead to all of its addresses: one that a former pod of the
  same interface left behind does not.
* A binding is frozen: an interface that was one pod's is never another's. Its addresses follow the host's routes.
* An address that two interfaces claim is denied on both.

Deliberately absent: netlink, rows' arrival, the kernel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha1

from schemas.policy import AddressRow, EndpointRow
from services.nodeagent.cniresult import CniResult

_HASH_DIGITS = 11


@dataclass(frozen=True, slots=True)
class Link:
    """A pod interface as the host sees it. ``addresses``: of host routes to it, sorted. ``gateways``: its own.

    ``life`` tells it from another one that had, or will have, its number and name. ``pod`` (namespace/name) is what the
    CNI plugin answered, and on a bridge the addresses are; the gateways are the bridge's there. ``is_bridged`` without
    a pod is one whose answer was not written yet. ``disputed``: of an answer that does not count, the addresses to
    which no host route leads.
    """

    ifindex: int
    name: str
    addresses: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    life: str = ""
    pod: str = ""
    is_bridged: bool = False
    disputed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Binding:
    """One interface and its pod; ``uid`` is empty while no row is known for it."""

    link: Link
    uid: str = ""
    claimed_twice: bool = False


def compute_suffix(namespace: str, pod: str) -> str:
    """The part of a host interface's name after its prefix."""
    return sha1(f"{namespace}.{pod}".encode(), usedforsecurity=False).hexdigest()[:_HASH_DIGITS]


def take_answer(link: Link, answer: CniResult | None) -> Link:
    """The interface with the pod that its CNI plugin answered; host routes, where there are, win over the answer."""
    if answer is None:
        return link
    if link.is_bridged:
        return replace(link, addresses=answer.addresses, pod=answer.pod)
    disputed = tuple(one for one in answer.addresses if one not in link.addresses)
    return replace(link, disputed=disputed) if disputed else replace(link, pod=answer.pod)


def bind_links(
    links: Iterable[Link],
    endpoints: Iterable[EndpointRow],
    addresses: Mapping[str, AddressRow],
    frozen: Mapping[str, str],
) -> dict[int, Binding]:
    """ifindex -> binding. ``frozen``: life -> uid of earlier bindings."""
    known = tuple(links)
    local = {row.uid: row for row in endpoints}
    by_pod = {f"{row.namespace}/{row.pod}": row.uid for row in local.values()}
    by_suffix = {compute_suffix(row.namespace, row.pod): row.uid for row in local.values()}
    by_address = _index_addresses(local.values(), addresses)
    claims = Counter(address for link in known for address in link.addresses)
    found = {}
    for link in known:
        uid = frozen.get(link.life) or _find_pod(link, by_suffix, by_address, by_pod)
        found[link.ifindex] = Binding(link, uid, any(claims[one] > 1 for one in link.addresses))
    return found


def _index_addresses(endpoints: Iterable[EndpointRow], addresses: Mapping[str, AddressRow]) -> dict[str, str]:
    """address -> uid of the local pod that owns it; the address row wins over the endpoint's own list."""
    index: dict[str, str] = {}
    rows = tuple(endpoints)
    for row in rows:
        for address in row.addresses:
            owner = addresses.get(address)
            if owner is None or owner.uid == row.uid:
                index[address] = row.uid
    local = {row.uid for row in rows}
    index.update({address: row.uid for address, row in addresses.items() if row.uid in local})
    return index


def _find_pod(
    link: Link, by_suffix: Mapping[str, str], by_address: Mapping[str, str], by_pod: Mapping[str, str]
) -> str:
    suffix = link.name[-_HASH_DIGITS:]
    if len(link.name) > _HASH_DIGITS and suffix in by_suffix:
        return by_suffix[suffix]
    if link.pod in by_pod:
        return by_pod[link.pod]
    return next((by_address[address] for address in link.addresses if address in by_address), "")
