"""An ApplicationNetworkPolicy from what pods were seen to do: names before addresses, pods by their owners' labels.

Rules of this module:

* It is for all pods that its selector selects, so it is from what all of them did.
* It writes what was seen and nothing wider. What such a policy cannot say (ICMP to one peer) is left out and told.
* A direction in which nothing was seen is left as it is: nothing seen is no proof that nothing is needed.
* It refuses where there is no data, or where what is kept is known not to be all.

Pure. Deliberately absent: applying it, reading the bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from schemas.policy import Labels
from schemas.selectors import NAMESPACE_NAME_LABEL
from schemas.terms import Direction, Protocol
from schemas.usage import Contact, PeerKind, PodUsage
from services.scenario.usage import format_age
from services.scenario.words import format_protocol

_PORTS = frozenset({Protocol.TCP, Protocol.UDP, Protocol.SCTP})
Obj = dict[str, Any]
Port = tuple[str, int]
"""(protocol's name, number)."""


class NotEnough(Exception):
    """There is no policy to recommend; the message says why."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """``notes``: what whoever applies it should know."""

    policy: Obj
    notes: tuple[str, ...]


def recommend_policy(
    pods: Mapping[tuple[str, str], PodUsage], namespace: str, pod: str, *, now: int, is_partial_fine: bool = False
) -> Recommendation:
    """For one pod and those with the same labels. ``is_partial_fine``: also where not all was kept. NotEnough."""
    subject = pods.get((namespace, pod))
    if subject is None:
        raise NotEnough(f"nothing is known of {namespace}/{pod}: no node reported it")
    if not subject.labels:
        why = "it has none" if subject.labels_known else "the controller does not know them"
        raise NotEnough(f"{namespace}/{pod} cannot be selected by its owner's labels: {why}")
    alike = [each for each in pods.values() if each.namespace == namespace and _has(each.labels, subject.labels)]
    contacts = [contact for each in alike for contact in each.contacts]
    if not contacts:
        since = format_age(now - min(each.since for each in alike))
        raise NotEnough(f"nothing was seen of {namespace}/{pod} in {since}: no data, no recommendation")
    missing = _count_missing(alike)
    if missing and not is_partial_fine:
        raise NotEnough(f"{missing} flows or contacts found no room and are not known: what is known is not all")
    notes = [
        f"from {len(alike)} {'pod' if len(alike) == 1 else 'pods'}, {sum(each.flows for each in contacts)} flows, "
        f"watched for {format_age(now - min(each.since for each in alike))}"
    ]
    if missing:
        notes.append(f"NOT ALL: {missing} flows or contacts found no room and are not known")
    spec: Obj = {"podSelector": {"matchLabels": dict(subject.labels)}, "policyTypes": []}
    for direction, field in ((Direction.EGRESS, "egress"), (Direction.INGRESS, "ingress")):
        rules = _make_rules([each for each in contacts if each.direction is direction], direction, namespace, notes)
        if rules:
            spec["policyTypes"].append(field.capitalize())
            spec[field] = rules
        else:
            notes.append(f"{field}: nothing was seen that needs a rule, so it is left as it is")
    if not spec["policyTypes"]:
        raise NotEnough(f"nothing that {namespace}/{pod} did needs a rule")
    policy = {
        "apiVersion": "networking.k8s.aws/v1alpha1",
        "kind": "ApplicationNetworkPolicy",
        "metadata": {"name": f"recommended-{_find_word(subject)}", "namespace": namespace},
        "spec": spec,
    }
    return Recommendation(policy, tuple(notes))


def _has(labels: Labels, wanted: Labels) -> bool:
    return wanted.items() <= labels.items()


def _count_missing(pods: Iterable[PodUsage]) -> int:
    return sum(each.lost_egress + each.lost_ingress + each.dropped for each in pods)


def _find_word(subject: PodUsage) -> str:
    """What the policy is called after: the label that names an application, else the pod."""
    for key in ("app.kubernetes.io/name", "app", "k8s-app", "name"):
        word = subject.labels.get(key, "").lower().replace("_", "-")
        if word:
            return word
    return subject.pod


def _make_rules(contacts: list[Contact], direction: Direction, namespace: str, notes: list[str]) -> list[Obj]:
    """One rule for all peers that have the same ports."""
    has_names = any(each.kind is PeerKind.NAME for each in contacts)
    ports: dict[str, set[Port]] = {}
    peers: dict[str, Obj] = {}
    for contact in contacts:
        if contact.own_node or (contact.implicit and has_names):
            continue
        if contact.protocol not in _PORTS:
            notes.append(
                f"{format_protocol(contact.protocol)} with {contact.peer} was seen and is left out: "
                "no rule can say it and nothing more"
            )
            continue
        peer, port = _make_peer(contact, direction, namespace)
        peers[str(peer)] = peer
        ports.setdefault(str(peer), set()).add((Protocol(contact.protocol).name, port))
    return _group(peers, ports, "to" if direction is Direction.EGRESS else "from")


def _group(peers: Mapping[str, Obj], ports: Mapping[str, set[Port]], field: str) -> list[Obj]:
    by_ports: dict[tuple[Port, ...], list[str]] = {}
    for key in sorted(peers):
        by_ports.setdefault(tuple(sorted(ports[key])), []).append(key)
    return [
        {
            field: _join_names(peers[key] for key in keys),
            "ports": [{"protocol": protocol, "port": number} for protocol, number in numbers],
        }
        for numbers, keys in sorted(by_ports.items())
    ]


def _join_names(peers: Iterable[Obj]) -> list[Obj]:
    """Names in one peer, as people write them."""
    all_peers = list(peers)
    names = sorted(name for peer in all_peers for name in peer.get("domainNames", ()))
    others = [peer for peer in all_peers if "domainNames" not in peer]
    return [*([{"domainNames": names}] if names else []), *others]


def _make_peer(contact: Contact, direction: Direction, namespace: str) -> tuple[Obj, int]:
    if contact.kind is PeerKind.NAME and direction is Direction.EGRESS:
        return {"domainNames": [contact.peer]}, contact.port
    is_service = contact.kind is PeerKind.SERVICE
    if contact.labels and (contact.kind is PeerKind.POD or (is_service and contact.target_port)):
        where, _, _ = contact.peer.partition("/")
        peer: Obj = {"podSelector": {"matchLabels": dict(contact.labels)}}
        if where != namespace:
            peer["namespaceSelector"] = {"matchLabels": {NAMESPACE_NAME_LABEL: where}}
        return peer, contact.target_port if is_service else contact.port
    prefix = f"{contact.address}/{128 if ':' in contact.address else 32}"
    return {"ipBlock": {"cidr": prefix}}, contact.port


def write_yaml(recommendation: Recommendation, dump: Callable[[Obj], str]) -> str:
    """The notes as comments, then the policy."""
    return "".join(f"# {note}\n" for note in recommendation.notes) + dump(recommendation.policy)
