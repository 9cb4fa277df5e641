"""Subjects are a bijection into legal NATS tokens, and every message has one type and one canonical encoding."""

from __future__ import annotations

import ipaddress
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import policy, resolution, wire
from schemas.terms import Direction, IdentityId, NodeName, RulesetHash, Verdict
from schemas.verdict import NameRefused, VerdictEvent

LEGAL_TOKEN = re.compile(r"[^\s.*>\x00-\x1f\x7f]+\Z")
kubernetes_names = st.from_regex(r"\A[a-z0-9]([a-z0-9.-]{0,60}[a-z0-9])?\Z")
labels = st.from_regex(r"\A[a-z0-9_]([a-z0-9_-]{0,20}[a-z0-9_])?\Z")
dns_names = st.lists(labels, min_size=1, max_size=6).map(".".join)
patterns = st.builds(lambda star, name: f"*.{name}" if star else name, st.booleans(), dns_names)
addresses = st.ip_addresses().map(str)


@given(kubernetes_names)
def test_kubernetes_names_become_tokens_and_come_back(name: str) -> None:
    """Every name is one legal token, and the token is that name's alone."""
    token = wire.encode_name(name)
    assert LEGAL_TOKEN.match(token) and wire.decode_name(token) == name


@given(kubernetes_names, kubernetes_names)
def test_two_names_never_share_a_token(one: str, other: str) -> None:
    """The mapping is injective."""
    assert (wire.encode_name(one) == wire.encode_name(other)) == (one == other)


@given(addresses)
def test_addresses_become_tokens_and_come_back(address: str) -> None:
    """Both families; an IPv4 address and its v4-mapped form are one address and one token."""
    token = wire.encode_address(address)
    assert LEGAL_TOKEN.match(token)
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    assert wire.decode_address(token) == str(mapped or parsed)


@given(patterns)
def test_patterns_become_tokens_and_come_back(pattern: str) -> None:
    """A domain pattern is one legal token, wildcard included."""
    token = wire.encode_pattern(pattern)
    assert LEGAL_TOKEN.match(token) and wire.decode_pattern(token) == pattern


@given(dns_names)
def test_names_are_reversed_label_by_label(name: str) -> None:
    """The subject tree is the DNS tree: one token a label, the top-level domain first."""
    subject = wire.subject_resolution(NodeName("node.one"), name)
    tokens = subject.removeprefix(wire.RESOLUTION_PREFIX).split(".")
    assert tokens[0] == "node_one" and tokens[1:] == list(reversed(name.split(".")))
    assert wire.decode_labels(".".join(tokens[1:])) == name


@given(dns_names, labels)
def test_a_wildcards_filter_takes_names_below_it_only(name: str, below: str) -> None:
    """``*.x`` subscribes to every name under x and not to x; ``x`` to x alone."""
    wild, exact = wire.filter_resolution(f"*.{name}"), wire.filter_resolution(name)
    apex = wire.subject_resolution(NodeName("n"), name)
    under = wire.subject_resolution(NodeName("n"), f"{below}.{name}")
    assert _takes(wild, under) and not _takes(wild, apex)
    assert _takes(exact, apex) and not _takes(exact, under)


def _takes(pattern: str, subject: str) -> bool:
    """NATS' matching: '*' is one token, '>' one or more."""
    wanted, tokens = pattern.split("."), subject.split(".")
    for place, token in enumerate(wanted):
        if token == ">":
            return len(tokens) > place
        if place >= len(tokens) or token not in ("*", tokens[place]):
            return False
    return len(wanted) == len(tokens)


@pytest.mark.parametrize("name", ["", "a b", "a..b", ".a", "a*", "a>", "ä", "a/b", "-a"])
def test_names_that_are_none_are_refused(name: str) -> None:
    """What could leave its token never becomes a subject."""
    if name != "a..b":
        with pytest.raises(wire.WireError):
            wire.encode_name(name)
    with pytest.raises(wire.WireError):
        wire.subject_resolution(NodeName("n"), name)


def test_every_subject_finds_its_own_type() -> None:
    """The table knows each subject that the functions make."""
    node = NodeName("node.one")
    expected = {
        wire.SUBJECT_LEADER: policy.Leader,
        wire.SUBJECT_CONFIG: policy.Config,
        wire.SUBJECT_REVISION: policy.Revision,
        wire.subject_namespace("app"): policy.NamespaceRow,
        wire.subject_identity(IdentityId(300)): policy.IdentityRow,
        wire.subject_address("10.0.0.1"): policy.AddressRow,
        wire.subject_frontend("10.0.0.1", 6, 80): policy.FrontendRow,
        wire.subject_ruleset(RulesetHash("ab")): policy.Ruleset,
        wire.subject_peerset("ab"): policy.PeersetRow,
        wire.subject_endpoint(node, "app", "web.1"): policy.EndpointRow,
        wire.subject_node(node): policy.NodeRow,
        wire.subject_domain("*.example.com"): policy.DomainRow,
        wire.subject_source("NetworkPolicy", "", "x"): policy.SourceRow,
        wire.subject_resolution(node, "a.b"): resolution.Resolution,
        wire.subject_verdict(node, "app", "web.1", Verdict.ALLOW): VerdictEvent,
        wire.subject_name_refused(node, "app", "web.1"): NameRefused,
        wire.subject_denied(node, "app", "web.1", Verdict.AUDIT): VerdictEvent,
    }
    for subject, kind in expected.items():
        assert wire.find_entry(subject).type is kind
    assert wire.subject_verdict(node, "app", "web", Verdict.DENY) == "yett.verdict.node_one.app.web.deny"
    with pytest.raises(wire.WireError):
        wire.find_entry("elsewhere.policy.x")


def test_a_body_of_another_type_is_an_error_that_names_the_kind() -> None:
    """What does not decode is a WireError with the row's kind, so that it can be counted by kind."""
    for body in (b"", b"{", b"[]", b'{"id": "x"}', b'{"labels": {}}', b"\xff"):
        with pytest.raises(wire.WireError) as error:
            wire.decode(wire.subject_identity(IdentityId(300)), body)
        assert error.value.kind == "IdentityRow"


def test_unknown_fields_are_a_newer_senders() -> None:
    """A field that this version does not know is passed over."""
    row = wire.decode(wire.subject_namespace("app"), b'{"name":"app","colour":"red"}')
    assert row == policy.NamespaceRow(name="app")


def test_a_row_that_is_too_large_is_refused() -> None:
    """No message is larger than the limit."""
    with pytest.raises(wire.WireError):
        wire.encode(policy.NamespaceRow(name="a" * wire.MAX_ROW_BYTES))


@given(st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=4))
def test_equal_rows_have_equal_bytes(labels_: dict[str, str]) -> None:
    """The encoding is canonical whatever the order of a map, and decoding gives the row back."""
    row = policy.NamespaceRow(name="app", labels=labels_)
    other = policy.NamespaceRow(name="app", labels=dict(reversed(labels_.items())))
    assert wire.encode(row) == wire.encode(other)
    assert wire.decode(wire.subject_namespace("app"), wire.encode(row)) == row


def test_ids_are_hashes_of_content() -> None:
    """A ruleset's id changes with its content and with nothing else."""
    one = policy.Ruleset(direction=Direction.EGRESS, default=policy.Default.DENY)
    assert wire.hash_content(one) == wire.hash_content(msgspec.structs.replace(one))
    assert wire.hash_content(one) != wire.hash_content(msgspec.structs.replace(one, isolated=True))
    assert re.fullmatch(r"[0-9a-f]{32}", wire.hash_content(one))


@pytest.mark.parametrize("number", [-1, 0, 1 << 32])
def test_an_identity_is_a_number_of_the_kernels(number: int) -> None:
    """32 bits, and 0 is the world's: another number would be cut down to somebody else's."""
    subject = "yett.policy.identity.7"
    assert wire.decode(subject, b'{"id":7}') == policy.IdentityRow(id=IdentityId(7))
    with pytest.raises(wire.WireError):
        wire.decode(subject, f'{{"id":{number}}}'.encode())


@pytest.mark.parametrize("number", [-1, 1 << 32])
def test_a_backend_has_an_identity_of_the_kernels(number: int) -> None:
    """The world's among them: 0 stands for an address outside."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(f'{{"identity":{number},"port":1}}', type=policy.Backend)
    assert msgspec.json.decode('{"identity":0,"port":1}', type=policy.Backend).identity == 0
