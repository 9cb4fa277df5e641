"""Sizes of the maps, from the settings: what the loader is told, and how many numbers there are to give."""

from __future__ import annotations

from services.common.settings import NodeagentSettings
from services.nodeagent import loader
from services.nodeagent.numbers import Capacities

_SIZES = {
    "FLOWS": "map_flows",
    "RESOLUTIONS": "map_resolutions",
    "ADDRESSES": "map_ipcache",
    "PEERS": "map_peers",
    "PEER_ROWS": "map_peer_rows",
    "PORT_ROWS": "map_port_rows",
    "FRONTENDS": "map_frontends",
    "ENDPOINT_SLOTS": "map_endpoints",
    "QUERY_SETS": "map_query_sets",
    "REACH_SETS": "map_reach_sets",
    "RULESETS": "map_rulesets",
    "PREFIXES": "map_prefixes",
    "IDENTITIES": "map_identities",
    "PORTS": "map_ports",
    "MIXED": "map_mixed",
    "DOMAINS": "map_domains",
    "RESOLVERS": "map_resolvers",
    "SEEN": "map_seen",
    "FRAGMENTS": "map_fragments",
    "RULE_COUNTERS": "map_rule_counters",
    "VERDICT_PAGES": "map_verdict_pages",
    "RESOLUTION_PAGES": "map_resolution_pages",
    "HANDOVER_PAGES": "map_handover_pages",
}
"""The loader's name of a size -> the setting."""


def make_sizes(settings: NodeagentSettings) -> dict[str, int]:
    """The loader's sizes by the settings' names; rounded up where only a power of two will do."""
    given = {name: int(getattr(settings, field)) for name, field in _SIZES.items()}
    return {
        name: 1 << (size - 1).bit_length() if name in loader.POWERS_OF_TWO else size for name, size in given.items()
    }


def make_capacities(settings: NodeagentSettings) -> Capacities:
    """How many numbers there are: the sizes of the maps that they index."""
    sizes = loader.complete_sizes(make_sizes(settings))
    return Capacities(endpoint_ids=sizes["ENDPOINT_SLOTS"], handles=sizes["RULESETS"], counters=sizes["RULE_COUNTERS"])
