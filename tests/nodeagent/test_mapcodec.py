"""Wanted tables as bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import wire
from schemas.policy import FlowTimeouts
from schemas.terms import Default
from services.nodeagent import mapcodec
from services.nodeagent.mapcodec import NamesPage
from services.nodeagent.tables import (
    RESOLVER_NODE_LOCAL,
    RESOLVER_TRUSTED,
    ConfigEntry,
    EndpointEntry,
    FrontendEntry,
    RulesetEntry,
    Tables,
)

slots = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**32 - 1)), min_size=8, max_size=8).map(tuple)
owners = st.lists(st.integers(0, 65535), min_size=8, max_size=8).map(tuple)
names = st.lists(st.text("ab", min_size=1, max_size=2), min_size=1, max_size=4).map(".".join)


def longest_match(encoded: dict[bytes, bytes], name: str) -> int:
    """What an LPM lookup of the exact name finds, by definition."""
    data = mapcodec.encode_reversed(name) + b"\0"
    best, row = -1, 0
    for key, value in encoded.items():
        length = struct.unpack("=I", key[:4])[0] // 8
        if data[:length] == key[4 : 4 + length] and length > best:
            best, row = length, struct.unpack("=I", value)[0]
    return row


def row_by_definition(domains: dict[str, int], name: str) -> int:
    """The most specific pattern that covers the name."""
    if name in domains:
        return domains[name]
    covering = [one for one in domains if one.startswith("*.") and name.endswith(one[1:])]
    return domains[max(covering, key=len)] if covering else 0


@given(st.dictionaries(names.flatmap(lambda n: st.sampled_from([n, f"*.{n}"])), st.integers(1, 99), max_size=6), names)
def test_the_longest_match_of_a_name_is_its_most_specific_pattern(domains: dict[str, int], name: str) -> None:
    """``*.x`` never matches x itself, whatever stands around it."""
    assert longest_match(mapcodec.encode_domains(domains), name) == row_by_definition(domains, name)


def test_names_are_reversed_with_dots_for_length_bytes() -> None:
    """An exact name ends in NUL, a wildcard at its dot."""
    exact, wildcard = mapcodec.encode_domain_key("Example.com"), mapcodec.encode_domain_key("*.example.com")
    assert exact[:4] == struct.pack("=I", 13 * 8)
    assert exact[4:17] == b"moc.elpmaxe.\0"
    assert wildcard[:4] == struct.pack("=I", 12 * 8)
    assert len(exact) == len(wildcard) == 4 + 256


@given(slots, owners, st.booleans())
def test_a_page_of_names_survives_its_bytes(page_slots: object, page_owners: object, more: bool) -> None:
    """decode(encode(x)) == x."""
    page = NamesPage(page_slots, page_owners, more)  # type: ignore[arg-type]  # hypothesis' tuples have no length
    assert mapcodec.decode_names(mapcodec.encode_names(page)) == page


@given(st.integers(0, 2**512 - 1))
def test_a_mask_survives_its_bytes(mask: int) -> None:
    """Bit n is bit n % 64 of word n // 64, in the machine's order."""
    value = mapcodec.encode_mask(mask)
    assert mapcodec.decode_mask(value) == mask
    words = struct.unpack("=8Q", value)
    assert all((words[n // 64] >> n % 64) & 1 == (mask >> n) & 1 for n in (0, 63, 64, 191, 192, 447, 448, 511))


def test_a_zeroed_ruleset_is_not_valid_and_an_encoded_one_is_recognised_by_its_hash() -> None:
    """Zero denies; a restarted agent reads the hash back."""
    entry = RulesetEntry("ab" * 16, 1, 2, 4, Default.DENY, True, True, False, True, False, 7, 1, 2, 3)
    value = mapcodec.encode_ruleset(entry)
    assert mapcodec.decode_ruleset_hash(value) == "ab" * 16
    assert mapcodec.decode_ruleset_hash(mapcodec.ARRAYS["rulesets"]) == ""
    assert len(value) == len(mapcodec.ARRAYS["rulesets"]) == 200


def test_an_endpoint_survives_as_far_as_a_restart_needs_it() -> None:
    """ifindex, id and the four handles."""
    entry = EndpointEntry(70000, 5, 1, 2, 3, 4, 300, "10.1.0.5", "fd00::5", "fe80::1", True, True, True)
    assert mapcodec.decode_endpoint(mapcodec.encode_endpoint(entry)) == (70000, 5, (1, 2, 3, 4))


def test_interfaces_that_share_a_slot_are_both_found() -> None:
    """The second one lives in the hash by ifindex."""
    entries = {number: EndpointEntry(number, number, 1, 1) for number in (5, 5 + 1024, 6)}
    near, far = mapcodec.encode_endpoints(entries, endpoint_slots=1024, regions={})
    assert mapcodec.decode_endpoint(near[mapcodec.encode_index(5)])[0] == 5
    assert list(far) == [mapcodec.encode_index(5 + 1024)]
    assert len(near) == 2


@pytest.mark.parametrize(
    ("prefix", "bits", "start"),
    [("10.0.0.0/8", 104, "00000000000000000000ffff0a000000"), ("fd00::/8", 8, "fd" + "00" * 15)],
)
def test_guard_prefixes_are_over_the_128_bit_form(prefix: str, bits: int, start: str) -> None:
    """IPv4 prefixes stand behind ::ffff:0:0/96."""
    assert mapcodec.encode_guard_key(prefix) == struct.pack("=I", bits) + bytes.fromhex(start)


def test_every_map_of_the_wanted_tables_is_encoded() -> None:
    """No table is forgotten on its way to the kernel."""
    encoded = mapcodec.encode_tables(Tables(), endpoint_slots=1024, regions={})
    fields = set(Tables.__dataclass_fields__)
    assert set(encoded) == (fields - {"cidrs", "own_addresses"}) | {"cidrs4", "cidrs6", "endpoints_far"}


def test_the_configuration_has_the_resolvers_ports_and_the_suffixes_reversed() -> None:
    """Ports in network order; a suffix with its dot."""
    resolvers = [("10.0.0.2", 5353, 5), ("10.0.0.1", 53, 1)]
    value = mapcodec.encode_config(ConfigEntry(search_suffixes=("cluster.local",)), resolvers)
    assert value[28:36] == bytes([0, 53, 20, 233, 0, 0, 0, 0])
    assert value[104:128] == wire.pack_address("10.0.0.2") + bytes([20, 233, 0, 0, 5, 0, 0, 0])
    assert value[128:152] == wire.pack_address("10.0.0.1") + bytes([0, 53, 0, 0, 1, 0, 0, 0])
    assert value[200:204] == struct.pack("=I", 14)
    assert value[204:218] == b"lacol.retsulc."


def test_services_are_the_resolvers_at_hand_and_more_than_fit_are_looked_up() -> None:
    """A Service's address and the node's own cache come before the pods behind it; only with more than four is the
    map asked as well."""
    tables = Tables(resolvers={(f"10.0.0.{n}", 53): 1 for n in range(1, 5)})
    tables.frontends[("10.0.0.4", 17, 53)] = FrontendEntry(1)
    ordered = mapcodec.order_resolvers(tables)
    assert [address for address, _, _ in ordered] == ["10.0.0.4", "10.0.0.1", "10.0.0.2", "10.0.0.3"]
    tables.resolvers["169.254.20.10", 53] = RESOLVER_TRUSTED | RESOLVER_NODE_LOCAL
    assert [address for address, _, _ in mapcodec.order_resolvers(tables)][:2] == ["10.0.0.4", "169.254.20.10"]
    flags = [
        int.from_bytes(mapcodec.encode_config(ConfigEntry(), some)[12:16], "little") & mapcodec.CONFIG_MANY_RESOLVERS
        for some in (ordered, [*ordered, ("10.0.0.9", 53, 1)])
    ]
    assert flags == [0, mapcodec.CONFIG_MANY_RESOLVERS]


def test_timeouts_are_in_ticks_and_never_shorter_than_asked() -> None:
    """A tick is 2**30 ns; 1 s is one tick, 10 s are ten, a day is 80,467."""
    value = mapcodec.encode_config(ConfigEntry(timeouts=FlowTimeouts(tcp_closed=1, udp=10)))
    ticks = dict(zip(mapcodec.TIMEOUTS, struct.unpack_from("=9I", value, 40), strict=True))
    assert (ticks["tcp_closed"], ticks["udp"], ticks["tcp"]) == (1, 10, 80_467)
    assert all(ticks[name] << 30 >= getattr(FlowTimeouts(), name) * 10**9 for name in ("tcp", "other", "fragment"))
    assert set(mapcodec.TIMEOUTS) == set(FlowTimeouts.__struct_fields__)


def test_an_address_says_whatever_is_to_be_looked_up_for_it() -> None:
    """A pod's, a node's own, a Service's or several of these at once: one entry; nobody's: none."""
    tables = Tables(ipcache={"10.0.0.1": 7}, own_addresses={"10.0.0.1": 1, "10.0.0.2": 1})
    tables.frontends[("10.0.0.2", 6, 80)] = tables.frontends[("10.96.0.1", 6, 80)] = FrontendEntry(2)
    encoded = mapcodec.encode_tables(tables, endpoint_slots=1024, regions={})["ipcache"]
    known = {wire.unpack_address(key): mapcodec.decode_known(value) for key, value in encoded.items()}
    own, front = mapcodec.ADDRESS_OWN_NODE, mapcodec.ADDRESS_FRONTEND
    assert known == {"10.0.0.1": (7, own), "10.0.0.2": (0, own | front), "10.96.0.1": (0, front)}
    assert mapcodec.encode_known(tables, "10.0.0.3", is_front=False) == b""
