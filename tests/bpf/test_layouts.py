"""Every field's offset and size, as the compiler laid it out, against what Python packs."""

from __future__ import annotations

import ctypes
import json
import struct
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from services.dnsrecorder import event as resolution_events
from services.nodeagent import events, liveflows, mapcodec, merge, numbers, occupancy, reached, rowmap
from services.nodeagent.loader import find_sources
from tests.bpf import test_fairness, test_races
from tests.bpf.prog_run import Kernel

pytestmark = pytest.mark.kernel

PACKED: Mapping[str, str] = {
    "endpoint": "_ENDPOINT",
    "endpoint_address": "_ENDPOINT_ADDRESS",
    "ruleset": "_RULESET",
    "mask": "_WORDS",
    "cidr": "_CIDR",
    "peer_key": "_PAIR",
    "mixed_key": "_PAIR",
    "frontend_key": "_FRONTEND_KEY",
    "frontend": "_FRONTEND",
    "mixed": "_MIXED",
    "resolver_key": "_RESOLVER_KEY",
    "resolution_key": "_RESOLUTION_KEY",
    "names": "_NAMES",
    "suffix": "_SUFFIX",
    "near_resolver": "_NEAR_RESOLVER",
}
"""struct of types.h -> the codec's layout of the whole of it."""

_PROBE = """
import json, sys
from pathlib import Path
from services.nodeagent import loader
folder = loader.find_sources()
text = loader.join_sources(folder, ("types.h",)) + Path(sys.argv[1]).read_text()
module = loader.Module(text, ["-O2"])
print(json.dumps({name: module.describe_map(name)[1] for name in sys.argv[2].split(",")}))
"""
_STRUCTS = (
    *PACKED,
    "config",
    "cidr4_key",
    "cidr6_key",
    "domain_key",
    "verdict_event",
    "resolution_event",
    "event_header",
    "reach_set",
    "reach",
    "flow",
    "flow_key",
    "place",
    "quota",
    "query",
    "query_set",
    "row",
)


@cache
def describe_structs(scratch: Path) -> dict[str, Any]:
    """struct -> bcc's description: what clang made of types.h."""
    probe = scratch / "probe.h"
    probe.write_text("\n".join(f'BPF_TABLE("array", __u32, struct {name}, probe_{name}, 1);' for name in _STRUCTS))
    names = ",".join(f"probe_{name}" for name in _STRUCTS)
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, str(probe), names],
        capture_output=True,
        text=True,
        check=True,
        cwd=find_sources().parent,
    )
    return {name.removeprefix("probe_"): json.loads(text) for name, text in json.loads(done.stdout).items()}


_SCALARS = {
    "unsigned char": ctypes.c_ubyte,
    "char": ctypes.c_ubyte,
    "unsigned short": ctypes.c_ushort,
    "unsigned int": ctypes.c_uint,
    "int": ctypes.c_int,
    "unsigned long long": ctypes.c_ulonglong,
}


def to_ctypes(described: Any) -> Any:
    """bcc's description as a ctypes type, which has offsets. bcc says its padding, so structs are packed."""
    if isinstance(described, str):
        return _SCALARS[described]
    name, fields, kind = described
    made = []
    for field, inner, *rest in fields:
        anonymous = isinstance(inner[0], list)
        made_type = to_ctypes([field, inner, rest[0]] if anonymous else inner)
        if rest and isinstance(rest[0], list):
            made_type = made_type * rest[0][0]
        made.append((field or "anonymous", made_type))
    if kind == "union":
        return type(name or "Anonymous", (ctypes.Union,), {"_fields_": made})
    return type(name, (ctypes.Structure,), {"_pack_": 1, "_fields_": made})


@pytest.fixture(scope="module")
def structs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    described = describe_structs(tmp_path_factory.mktemp("layouts"))
    return {name: to_ctypes(one) for name, one in described.items()}


@pytest.mark.parametrize("name", PACKED)
def test_the_codec_packs_what_the_compiler_laid_out(structs: dict[str, Any], name: str) -> None:
    """Size and offset of every field of a struct are those of the codec's layout."""
    layout: struct.Struct = getattr(mapcodec, PACKED[name])
    made = structs[name]
    assert layout.size == ctypes.sizeof(made)
    assert offsets_of(layout) >= {getattr(made, field).offset for field, *_ in made._fields_ if "pad" not in field}


def offsets_of(layout: struct.Struct) -> set[int]:
    """Where the layout's values begin."""
    found, text, offset = set(), layout.format.lstrip("="), 0
    number = ""
    for character in text:
        if character.isdigit():
            number += character
            continue
        if character == " ":
            continue
        count = int(number or 1)
        number = ""
        size = struct.calcsize("=" + character)
        if character == "s":
            found.add(offset)
            offset += count
            continue
        for _ in range(count):
            if character != "x":
                found.add(offset)
            offset += size
    return found


def test_config_is_head_and_suffixes(structs: dict[str, Any]) -> None:
    """struct config is the codec's head followed by the search suffixes."""
    config = structs["config"]
    assert config.suffix.offset == mapcodec._CONFIG_HEAD.size
    assert ctypes.sizeof(config) == mapcodec._CONFIG_HEAD.size + mapcodec.SEARCH_SUFFIXES * mapcodec._SUFFIX.size
    fields = ("ttl_min_seconds", "ttl_max_seconds", "grace_seconds", "flags", "names_per_endpoint")
    assert [getattr(config, field).offset for field in fields] == [0, 4, 8, 12, 16]


def test_events_are_read_where_they_are_written(structs: dict[str, Any]) -> None:
    """Both rings' records have the layout that their readers unpack."""
    assert ctypes.sizeof(structs["verdict_event"]) == events._LAYOUT.size
    verdict = structs["verdict_event"]
    assert offsets_of(events._LAYOUT) >= {getattr(verdict, field).offset for field, *_ in verdict._fields_}
    resolution = structs["resolution_event"]
    assert resolution.message.offset == resolution_events._LAYOUT.size
    assert offsets_of(resolution_events._LAYOUT) >= {
        getattr(resolution, field).offset for field, *_ in resolution._fields_ if field not in ("message", "pad")
    }


def test_rows_of_peers_are_words_where_they_are_read(structs: dict[str, Any]) -> None:
    """A row is tag, peer, what and flows in five words, a set eight of them and a count; a flow's counter is found."""
    row, rows, flow = structs["reach"], structs["reach_set"], structs["flow"]
    assert [row.tag.offset, row.peer.offset, row.what.offset, row.flows.offset] == [0, 8, 24, 32]
    assert ctypes.sizeof(row) == 8 * reached._ROW_WORDS
    assert rows.lost.offset == 8 * reached.WAYS * reached._ROW_WORDS and ctypes.sizeof(rows) == rows.lost.offset + 8
    assert [flow.expires.offset, flow.domain.offset, flow.counter.offset] == [
        reached._FLOW_AT + place for place in (0, 4, 8)
    ]


def test_a_set_of_questions_is_read_way_by_way(structs: dict[str, Any]) -> None:
    """Each is hash, ticks, id and port, and a set is nothing else."""
    query = structs["query"]
    assert [getattr(query, field).offset for field in ("hash", "asked", "id", "port_be")] == [0, 8, 12, 14]
    assert ctypes.sizeof(query) == merge._WAY.size and ctypes.sizeof(structs["query_set"]) == 8 * merge._WAY.size


def test_where_a_flow_leads_and_whether_it_lives_is_read_where_it_is(structs: dict[str, Any]) -> None:
    """A place is a key; peer, interface and protocol of it, and a flow's end."""
    flow, key = structs["flow"], structs["flow_key"]
    assert ctypes.sizeof(structs["place"]) == ctypes.sizeof(key) == 8 * mapcodec.FLOW_KEY_WORDS
    peer, ports, last = (ctypes.sizeof(kind) for _, kind in key._fields_)
    assert (peer, peer + ports, last) == (liveflows._INTERFACE.start, mapcodec._FLOW_PROTOCOL, 8)
    assert peer == liveflows._PEER
    assert flow.expires.offset in offsets_of(mapcodec._FLOW_EXPIRES)
    assert flow.domain.offset in offsets_of(mapcodec._FLOW_DOMAIN)


def test_what_both_directions_of_a_flow_write_shares_no_line(structs: dict[str, Any]) -> None:
    """An entry is whole lines of the cache: each direction counts in one of its own, what both read is in another."""
    allocator, header = 8, 48
    flow, before = structs["flow"], allocator + header + ctypes.sizeof(structs["flow_key"])
    assert (before + ctypes.sizeof(flow)) % 64 == 0
    lines = {name: (before + getattr(flow, name).offset) // 64 for name, *_ in flow._fields_}
    assert lines["sent"] != lines["replies"]
    read = {line for name, line in lines.items() if name not in ("sent", "apart", "replies", "rest")}
    assert read == {1}, "with the end of the key"


def test_quotas_and_places_are_read_where_they_are_written(structs: dict[str, Any]) -> None:
    """What a pod learned, what rings did not take, and whose a place is."""
    quota, key = structs["quota"], structs["flow_key"]
    assert occupancy.QUOTA.size == ctypes.sizeof(quota)
    words = [getattr(quota, field).offset // 4 for field in ("learned", "lost")]
    assert words == [occupancy._LEARNED, occupancy._LOST.start]
    assert ctypes.sizeof(key) == 4 * occupancy._WORDS_A_PLACE
    assert ctypes.sizeof(dict(key._fields_)["peer"]) == 4 * occupancy._IFINDEX
    flow = structs["flow"]
    assert [flow.place.offset, flow.state.offset] == [test_races.PLACE_OFFSET, test_races.STATE_OFFSET]
    assert flow.place.offset % 8 == 0 and flow.audited_by.offset == flow.place.offset + 4, "one word: see put_flow"
    assert flow.expires.offset == test_fairness.EXPIRES.start
    assert quota.suppressed.offset == 4 * test_fairness.SUPPRESSED


def test_a_row_is_its_key_and_its_mask(structs: dict[str, Any]) -> None:
    """The key, whose highest bit of a handle says that the hash has rows too, then the mask."""
    row, key = structs["row"], structs["peer_key"]
    assert [row.key.offset, row.mask.offset, ctypes.sizeof(row)] == [0, 8, 72]
    assert ctypes.sizeof(key) == 8 and rowmap.ROW_FAR == 1 << 31 > numbers.HANDLES


def test_pinned_maps_have_the_sizes_of_their_structs(loaded_kernel: Kernel, structs: dict[str, Any]) -> None:
    """Key and value sizes of every pinned map are those of the structs that the codec packs."""
    sizes = {name: (one.info.key_bytes, one.info.value_bytes) for name, one in loaded_kernel.maps.items()}
    expected = {
        "endpoints": (4, "endpoint"),
        "endpoint_addresses": ("endpoint_address", 4),
        "rulesets": (4, "ruleset"),
        "cidrs4": ("cidr4_key", "cidr"),
        "cidrs6": ("cidr6_key", "cidr"),
        "peers": ("peer_key", "mask"),
        "ports": ("peer_key", "mask"),
        "frontends": ("frontend_key", "frontend"),
        "mixed": ("mixed_key", "mixed"),
        "domains": ("domain_key", 4),
        "resolvers": ("resolver_key", 4),
        "guard": ("cidr6_key", 4),
        "resolutions": ("resolution_key", "names"),
        "config": (4, "config"),
    }
    for name, pair in expected.items():
        assert sizes[name] == tuple(one if isinstance(one, int) else ctypes.sizeof(structs[one]) for one in pair), name
