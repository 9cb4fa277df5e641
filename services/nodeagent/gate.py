"""Strict mode's gate as nftables commands: what comes from or goes to a veth that is not judged is dropped.

An interface is judged while it is in the device group ``GROUP``. A set of numbers or names would outlive its members:
a pod that starts while no agent runs could get the number of one that was judged. The group is an attribute of the
interface and dies with it. A routed packet meets the inet hooks, a bridged one those of family bridge. The gate
outlives the agent: pods started while it is down stay shut. Pure; ``nft`` runs it, ``netlink`` sets the group.

Openings (``bootstrap``) stand before the drop, for interfaces that are not judged alone:

* What goes *to* a listed address and port passes, out of a veth (a client's) and towards one (the server's).
* What comes *from* one passes as an answer: out of a veth only by the interface to which the node's routes to that
  address lead (a bridge's port has no such proof), and never as what opens a TCP connection.
* Neighbours are found: ARP, and neighbour discovery, of which a pod may say no more than what its interface or a listed
  address vouches for.

Source: nft(8), libnftables-json(5), ip-link(8).
"""

from __future__ import annotations

from collections.abc import Sequence

from services.nodeagent.bootstrap import Opening
from services.nodeagent.nftrules import ACCEPT, DROP, FAMILIES, Command, add_chain, add_table, compare, field, match

TABLE = "yett"
GROUP = 0x7E77
"""Device group of the interfaces that are judged, and of the node's own way out where that is a veth."""
PRIORITY_IN = -450
"""Before conntrack and everything that could let a packet by."""
PRIORITY_OUT = 500

HOOKS = (("prerouting", PRIORITY_IN, "iifkind", "iifgroup"), ("postrouting", PRIORITY_OUT, "oifkind", "oifgroup"))
"""Hook, priority, and the packet's interface there by kind and by group."""


def make_gate(openings: Sequence[Opening] = ()) -> list[Command]:
    """Table, chains and rules, in one transaction. What is there already is kept; the rules are made afresh."""
    return [command for family in FAMILIES for command in _make_family(family, openings)]


def _make_family(family: str, openings: Sequence[Opening]) -> list[Command]:
    commands = [add_table(family, TABLE)]
    for hook, priority, kind, group in HOOKS:
        passing = _make_passing(family, hook, openings) if openings else []
        early = [[match("!=", kind, "veth")], [match("==", group, GROUP)]] if openings else []
        rules = [*([*one, ACCEPT] for one in (*early, *passing)), [*_make_unjudged(kind, group), DROP]]
        commands += add_chain(family, TABLE, hook, priority, rules)
    return commands


def _make_unjudged(kind: str, group: str) -> list[Command]:
    return [match("==", kind, "veth"), match("!=", group, GROUP)]


_NO_OPENER = compare("!=", {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, ["syn", "ack"]]}, "syn")
"""A TCP segment that opens no connection."""
_AT_HOME = compare("==", {"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, True)
"""The node's route to the packet's source leads to where it came from."""
_DISCOVERY = field("icmpv6", "type", {"set": ["nd-neighbor-solicit", "nd-neighbor-advert"]})
_LINK_SCOPE = {"set": [{"prefix": {"addr": "fe80::", "len": 10}}, {"prefix": {"addr": "ff02::", "len": 16}}]}
"""Where neighbours talk; never forwarded."""


def _make_passing(family: str, hook: str, openings: Sequence[Opening]) -> list[list[Command]]:
    """What an interface that is not judged lets pass at this hook."""
    is_out = hook == "prerouting"
    home = [_AT_HOME] if is_out and family == "inet" else []
    found = []
    for one in openings:
        answers = [_NO_OPENER] if one.protocol == "tcp" else []
        found.append([_within(one, "daddr"), field(one.protocol, "dport", one.port)])
        found.append([_within(one, "saddr"), field(one.protocol, "sport", one.port), *answers, *home])
    speakers = [one for index, one in enumerate(openings) if one.network not in {o.network for o in openings[:index]}]
    return found + _make_neighbours(family, speakers, is_out=is_out)


def _make_neighbours(family: str, speakers: Sequence[Opening], *, is_out: bool) -> list[list[Command]]:
    """``speakers``: one opening a network. The inet hooks see no ARP."""
    sixes = [one for one in speakers if one.network.version == 6]
    fours = [one for one in speakers if one.network.version == 4 and family == "bridge"]
    if not is_out:
        return [*([field("ether", "type", "arp")] for _ in fours[:1]), *([_DISCOVERY] for _ in sixes[:1])]
    if family == "bridge":
        claims = [[field("arp", "saddr ip", _range(one))] for one in fours]
        return claims + [[_within(one, "saddr"), _DISCOVERY] for one in sixes]
    link = [[field("ip6", "daddr", _LINK_SCOPE), _DISCOVERY]] if sixes else []
    return link + [[_within(one, "saddr"), _DISCOVERY, _AT_HOME] for one in sixes]


def _within(opening: Opening, name: str) -> Command:
    return field("ip6" if opening.network.version == 6 else "ip", name, _range(opening))


def _range(opening: Opening) -> object:
    network = opening.network
    if network.prefixlen == network.max_prefixlen:
        return str(network.network_address)
    return {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}
