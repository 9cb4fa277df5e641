"""What passes strict mode's gate before anything is judged, as a person writes it."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from services.common.settings import NodeagentSettings, SettingsError, load_settings
from services.nodeagent.app import App
from services.nodeagent.bootstrap import OPENINGS_MAX, Opening, parse_bootstrap


def test_protocol_range_and_port() -> None:
    """Of both families; an address alone is the range of that address."""
    said = "tcp:10.96.7.7/32:4222, udp:10.96.0.10:53,tcp:[fd00:10:5::/64]:4222"
    entries = load_settings(NodeagentSettings, {"YETT_NODE": "n", "YETT_BOOTSTRAP": said}).bootstrap
    assert parse_bootstrap(entries) == (
        Opening("tcp", ip_network("10.96.7.7/32"), 4222),
        Opening("udp", ip_network("10.96.0.10/32"), 53),
        Opening("tcp", ip_network("fd00:10:5::/64"), 4222),
    )


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ("tcp:10.0.0.1", "not protocol:cidr:port"),
        ("10.0.0.1:4222", "not protocol:cidr:port"),
        ("tcp:fd00::1:4222", "not protocol:cidr:port"),
        ("tcp:[10.0.0.1]:4222", "not protocol:cidr:port"),
        ("tcp:10.0.0.1:http", "not protocol:cidr:port"),
        ("sctp:10.0.0.1:4222", "'sctp', not tcp or udp"),
        ("TCP:10.0.0.1:4222", "'TCP', not tcp or udp"),
        ("tcp:10.0.0.1:0", "the port is 0"),
        ("tcp:10.0.0.1:65536", "the port is 65536"),
        ("tcp:10.0.5.1/24:4222", "has host bits set"),
        ("tcp:nats:4222", "'nats' does not appear"),
        ("tcp:[fd00::/129]:4222", "'fd00::/129' does not appear"),
        ("udp:0.0.0.0/0:53", "every address there is"),
        ("udp:[::/0]:53", "every address there is"),
    ],
)
def test_a_bad_entry_is_named(entry: str, fault: str) -> None:
    """By its place in the list, with what it says and what is wrong with it."""
    with pytest.raises(SettingsError) as raised:
        parse_bootstrap(["tcp:10.0.0.1:4222", entry])
    assert raised.value.name == "YETT_BOOTSTRAP[1]"
    assert repr(entry) in str(raised.value) and fault in str(raised.value)


def test_there_is_an_end_to_them() -> None:
    """One more than the limit is refused whole."""
    entry = "tcp:10.0.0.1:4222"
    assert len(parse_bootstrap([entry] * OPENINGS_MAX)) == OPENINGS_MAX
    with pytest.raises(SettingsError, match=f"YETT_BOOTSTRAP: {OPENINGS_MAX + 1} entries"):
        parse_bootstrap([entry] * (OPENINGS_MAX + 1))


@pytest.mark.parametrize(
    ("mode", "entry", "fault"),
    [("strict", "tcp:nats:4222", r"YETT_BOOTSTRAP\[0\]"), ("standard", "tcp:10.0.0.1:4222", "takes YETT_MODE=strict")],
)
def test_an_agent_does_not_start_with_what_it_cannot_do(mode: str, entry: str, fault: str) -> None:
    """Before anything is touched: with a bad entry, and with openings in a gate that is not there."""
    environment = {"YETT_NODE": "n", "YETT_MODE": mode, "YETT_BOOTSTRAP": entry}
    with pytest.raises(SettingsError, match=fault):
        App(load_settings(NodeagentSettings, environment))
