"""Rules in words: what a person reads of peers, ports and selectors. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from schemas.policy import (
    AnyPeer,
    CidrPeer,
    DomainPeer,
    NodePeer,
    Peer,
    PeersetPeer,
    PortRange,
    Requirement,
    RuleSource,
    Selector,
)
from schemas.selectors import DOES_NOT_EXIST, EXISTS, IN, NAMESPACE_NAME_LABEL
from schemas.terms import ANY_PROTOCOL, Action, Protocol
from services.controller.policy.model import NamedPort, PortSpec

SHOWN_MAX = 4
"""Peers or ports of one rule that are spelled out; the rest are counted."""


def format_source(source: RuleSource | None) -> str:
    """``kind namespace/name`` of a policy, the namespace only where it has one."""
    if source is None:
        return ""
    return f"{source.kind} {source.namespace + '/' if source.namespace else ''}{source.name}"


def format_protocol(protocol: int) -> str:
    """``TCP``, or ``protocol 47``."""
    return Protocol(protocol).name if protocol in Protocol.__members__.values() else f"protocol {protocol}"


def format_port(port: PortSpec) -> str:
    if isinstance(port, NamedPort):
        return f"{format_protocol(port.protocol)} {port.name}"
    if port.protocol == ANY_PROTOCOL:
        return "every protocol"
    if port == PortRange(protocol=port.protocol):
        return format_protocol(port.protocol)
    span = str(port.first) if port.first == port.last else f"{port.first}-{port.last}"
    return f"{format_protocol(port.protocol)} {span}"


def format_requirement(requirement: Requirement) -> str:
    values = ",".join(requirement.values)
    if requirement.operator == IN:
        return f"{requirement.key}={values}" if len(requirement.values) == 1 else f"{requirement.key} in ({values})"
    if requirement.operator == EXISTS:
        return f"has {requirement.key}"
    return f"no {requirement.key}" if requirement.operator == DOES_NOT_EXIST else f"{requirement.key} not in ({values})"


def format_selector(selector: Selector) -> str:
    return " and ".join(format_requirement(each) for each in selector.requirements)


def format_namespaces(selector: Selector) -> str:
    """A namespace by its name, where that is what is selected."""
    if len(selector.requirements) == 1:
        only = selector.requirements[0]
        if only.key == NAMESPACE_NAME_LABEL and only.operator == IN and len(only.values) == 1:
            return f"namespace {only.values[0]}"
    return f"namespaces with {format_selector(selector)}"


def format_peer(peer: Peer) -> str:
    if isinstance(peer, AnyPeer):
        return "anyone"
    if isinstance(peer, CidrPeer):
        return peer.cidr + (f" except {', '.join(peer.excepts)}" if peer.excepts else "")
    if isinstance(peer, DomainPeer):
        return peer.pattern
    if isinstance(peer, PeersetPeer):
        return "a large set of peers"
    if isinstance(peer, NodePeer):
        return f"nodes with {format_selector(peer.nodes)}" if peer.nodes.requirements else "nodes"
    pods = f"pods with {format_selector(peer.pods)}" if peer.pods.requirements else "pods"
    return f"{pods} in {format_namespaces(peer.namespaces)}" if peer.namespaces.requirements else f"{pods} anywhere"


def format_list(words: Iterable[str]) -> str:
    """The first few, and how many more."""
    all_words = list(words)
    shown = ", ".join(all_words[:SHOWN_MAX])
    return f"{shown} and {len(all_words) - SHOWN_MAX} more" if len(all_words) > SHOWN_MAX else shown


def format_rule(action: Action, peers: Sequence[Peer], ports: Sequence[PortSpec], *, is_egress: bool) -> str:
    """``Accept to api.example.com on TCP 443``."""
    whom = format_list(format_peer(peer) for peer in peers) or "nobody"
    what = format_list(format_port(port) for port in ports) or "no port"
    return f"{action.name.capitalize()} {'to' if is_egress else 'from'} {whom} on {what}"


def format_address(address: str, protocol: int, port: int) -> str:
    """``10.0.0.1:443 TCP``, IPv6 in brackets; without a port where there is none."""
    shown = f"[{address}]" if ":" in address and port else address
    return f"{shown}:{port} {format_protocol(protocol)}" if port else f"{shown} {format_protocol(protocol)}"
