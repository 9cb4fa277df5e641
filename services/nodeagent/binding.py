"""Which pod an interface belongs to: decided from the host's side, once, for the life of the interface.

Rules of this module:

* An address proves itself by the host route that leads to the interface, or on a bridge by what the CNI plugin answered
  (``cniresult``); what the pod says of itself is no authority.
* The pod is found by the interface's computed name (prefix + sha1("namespace.pod")[:11]: VPC CNI, Calico), by the
  plugin's answer, or by address.
* Where there are host routes an answer counts only if they lead to all of its addresses: one that a former pod of the
  same interface left behind does not.
* A binding is frozen, unless it is a guess: an interface that was one pod's is never another's. Its addresses follow
  the host's routes.
* A binding by address alone is a guess: a pod's object outlives its sandbox, and the next pod, whose row may come after
  its interface, has the address. So a guess gives way to a name, and the addresses of a pod that was found by name, and
  whose interface is gone, find it no more; others of its row do.
* A name is a guess too where it finds a pod that was known by another interface: a StatefulSet's next pod has the name.
  It gives way to the next row of that name.
* A guess whose pod has no row any more follows its address, if no other interface claims it.
* An address that two interfaces claim is denied on both.

Deliberately absent: netlink, rows' arrival, the kernel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
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
    """One interface and its pod; ``uid`` is empty while no row is known for it.

    ``is_guess``: found by what may be a former pod's. ``is_named``: its name or the plugin's answer says so now.
    """

    link: Link
    uid: str = ""
    claimed_twice: bool = False
    is_guess: bool = False
    is_named: bool = False


@dataclass(frozen=True, slots=True)
class Bound:
    """What earlier bindings were: life -> uid, the lives of which that was a guess, and the pods found by name with the
    addresses that their interfaces had."""

    uids: Mapping[str, str] = field(default_factory=dict)
    guesses: Collection[str] = ()
    named: Mapping[str, Collection[str]] = field(default_factory=dict)


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
    bound: Bound,
) -> dict[int, Binding]:
    """ifindex -> binding."""
    known = tuple(links)
    local = {row.uid: row for row in endpoints}
    by_pod = {f"{row.namespace}/{row.pod}": row.uid for row in local.values()}
    by_suffix = {compute_suffix(row.namespace, row.pod): row.uid for row in local.values()}
    by_address = _index_addresses(local.values(), addresses)
    claims = Counter(address for link in known for address in link.addresses)
    named = {link.ifindex: _find_by_name(link, by_suffix, by_pod) for link in known}
    lives, guesses = {link.life for link in known}, frozenset(bound.guesses)
    firm = {life: uid for life, uid in bound.uids.items() if life in lives and life not in guesses}
    sure = {link.ifindex: firm.get(link.life) or named[link.ifindex] for link in known}
    former = {uid for life, uid in bound.uids.items() if life not in lives}
    again = former.union(bound.named, firm.values())
    gone = frozenset(bound.named).difference(sure.values())
    by_address = {one: uid for one, uid in by_address.items() if uid not in gone or one not in bound.named[uid]}
    found = {}
    for link in known:
        uid, earlier = sure[link.ifindex], bound.uids.get(link.life, "")
        claimed = any(claims[one] > 1 for one in link.addresses)
        is_guess = link.life not in firm and (not uid or uid in again)
        if not uid:
            follows = earlier not in local and not (earlier and claimed)
            uid = (follows and _find_by_address(link, by_address)) or earlier
        is_named = bool(uid) and uid == named[link.ifindex]
        found[link.ifindex] = Binding(link, uid, claimed, bool(uid) and is_guess, is_named)
    return found


def remember_bindings(bindings: Iterable[Binding], bound: Bound, present: Collection[str]) -> Bound:
    """What the next round is to know. ``present``: uids of the node's pods; what was a pod's is forgotten with it."""
    kept = [one for one in bindings if one.uid and one.link.life]
    named = {uid: frozenset(addresses) for uid, addresses in bound.named.items() if uid in present}
    for one in kept:
        if one.is_named:
            named[one.uid] = named.get(one.uid, frozenset()).union(one.link.addresses)
    return Bound(
        {one.link.life: one.uid for one in kept},
        frozenset(one.link.life for one in kept if one.is_guess),
        named,
    )


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


def _find_by_name(link: Link, by_suffix: Mapping[str, str], by_pod: Mapping[str, str]) -> str:
    suffix = link.name[-_HASH_DIGITS:]
    if len(link.name) > _HASH_DIGITS and suffix in by_suffix:
        return by_suffix[suffix]
    return by_pod.get(link.pod, "")


def _find_by_address(link: Link, by_address: Mapping[str, str]) -> str:
    return next((by_address[address] for address in link.addresses if address in by_address), "")
