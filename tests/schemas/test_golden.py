"""Golden bytes: rows as they were first published still decode, and today's rows still encode to them.

A change here is a change of what integrations were promised and of every ruleset's id: add fields with defaults, never
rename or renumber.
"""

from __future__ import annotations

import msgspec
import pytest

from schemas import policy, resolution, wire
from schemas.status import AgentStatus, Problem
from schemas.terms import (
    Action,
    AddressKind,
    Default,
    Direction,
    FrontendKind,
    IdentityId,
    NodeName,
    Reason,
    RefusalReason,
    RevisionNumber,
    RulesetHash,
    Tier,
    Verdict,
)
from schemas.verdict import NameRefused, VerdictEvent

SOURCE = policy.RuleSource(kind="NetworkPolicy", namespace="app", name="p", rule="egress[0]")
EQUALS = policy.Requirement(key="app", operator="In", values=("x", "y"))

GOLDEN: list[tuple[str, msgspec.Struct, bytes]] = [
    (
        wire.SUBJECT_LEADER,
        policy.Leader(epoch="00ff", term=2, holder="a", parity=1),
        b'{"epoch":"00ff","term":2,"holder":"a","parity":1}',
    ),
    (wire.SUBJECT_CONFIG, policy.Config(), b"{}"),
    (
        wire.SUBJECT_CONFIG,
        policy.Config(default=Default.DENY, resolvers=(policy.Resolver(address="10.96.0.10"),), grace_seconds=1),
        b'{"default":0,"resolvers":[{"address":"10.96.0.10"}],"grace_seconds":1}',
    ),
    (
        wire.SUBJECT_REVISION,
        policy.Revision(epoch="00ff", number=RevisionNumber(7), floor=RevisionNumber(1), digest="ab"),
        b'{"epoch":"00ff","number":7,"floor":1,"digest":"ab"}',
    ),
    (
        wire.subject_namespace("app"),
        policy.NamespaceRow(name="app", labels={"b": "2", "a": "1"}),
        b'{"name":"app","labels":{"a":"1","b":"2"}}',
    ),
    (
        wire.subject_identity(IdentityId(256)),
        policy.IdentityRow(id=IdentityId(256), namespace="app", labels={"port:TCP/http": "8080"}),
        b'{"id":256,"namespace":"app","labels":{"port:TCP/http":"8080"}}',
    ),
    (
        wire.subject_address("10.0.0.1"),
        policy.AddressRow(
            address="10.0.0.1",
            kind=AddressKind.NODE,
            identity=IdentityId(257),
            uid="u",
            owner="node.one",
            node=NodeName("node.one"),
        ),
        b'{"address":"10.0.0.1","kind":2,"identity":257,"uid":"u","owner":"node.one","node":"node.one"}',
    ),
    (
        wire.subject_frontend("10.96.0.1", 6, 80),
        policy.FrontendRow(
            address="10.96.0.1",
            protocol=6,
            port=80,
            kind=FrontendKind.NODE_PORT,
            service="app/web",
            backends=(policy.Backend(identity=IdentityId(256), port=8080),),
        ),
        b'{"address":"10.96.0.1","protocol":6,"port":80,"kind":2,"service":"app/web",'
        b'"backends":[{"identity":256,"port":8080}]}',
    ),
    (
        wire.subject_ruleset(RulesetHash("ab")),
        policy.Ruleset(
            direction=Direction.EGRESS,
            default=Default.DENY,
            network_policy=(
                policy.RulesetRule(
                    action=Action.ACCEPT,
                    peers=(
                        policy.AnyPeer(),
                        policy.PodPeer(pods=policy.Selector(requirements=(EQUALS,))),
                        policy.NodePeer(),
                        policy.CidrPeer(cidr="10.0.0.0/8", excepts=("10.1.0.0/16",)),
                        policy.DomainPeer(pattern="*.example.com"),
                        policy.PeersetPeer(hash="cd"),
                    ),
                    ports=(policy.PortRange(protocol=256), policy.PortRange(protocol=6, first=80, last=80)),
                    sources=(SOURCE,),
                ),
            ),
            isolated=True,
            isolated_by=(SOURCE,),
            dns_implicit=True,
        ),
        b'{"direction":0,"default":0,"network_policy":[{"action":1,"peers":[{"peer":"any"},'
        b'{"peer":"pods","pods":{"requirements":[{"key":"app","operator":"In","values":["x","y"]}]}},{"peer":"nodes"},'
        b'{"peer":"cidr","cidr":"10.0.0.0/8","excepts":["10.1.0.0/16"]},{"peer":"domain","pattern":"*.example.com"},'
        b'{"peer":"peerset","hash":"cd"}],"ports":[{"protocol":256},{"protocol":6,"first":80,"last":80}],'
        b'"sources":[{"kind":"NetworkPolicy","namespace":"app","name":"p","rule":"egress[0]"}]}],"isolated":true,'
        b'"isolated_by":[{"kind":"NetworkPolicy","namespace":"app","name":"p","rule":"egress[0]"}],"dns_implicit":true}',
    ),
    (
        wire.subject_peerset("cd"),
        policy.PeersetRow(peers=(policy.CidrPeer(cidr="10.0.0.0/8"),)),
        b'{"peers":[{"peer":"cidr","cidr":"10.0.0.0/8"}]}',
    ),
    (
        wire.subject_endpoint(NodeName("node.one"), "app", "web"),
        policy.EndpointRow(
            node=NodeName("node.one"),
            namespace="app",
            pod="web",
            uid="u",
            identity=IdentityId(256),
            egress=RulesetHash("ab"),
            ingress=RulesetHash("cd"),
            addresses=("10.0.0.1",),
        ),
        b'{"node":"node.one","namespace":"app","pod":"web","uid":"u","identity":256,"egress":"ab","ingress":"cd",'
        b'"addresses":["10.0.0.1"]}',
    ),
    (
        wire.subject_node(NodeName("node.one")),
        policy.NodeRow(node=NodeName("node.one"), number=RevisionNumber(7), digest="ab", count=1),
        b'{"node":"node.one","number":7,"digest":"ab","count":1}',
    ),
    (
        wire.subject_domain("*.example.com"),
        policy.DomainRow(pattern="*.example.com"),
        b'{"pattern":"*.example.com"}',
    ),
    (
        wire.subject_source("NetworkPolicy", "app", "p"),
        policy.SourceRow(kind="NetworkPolicy", namespace="app", name="p", generation=3, spec=msgspec.Raw(b'{"a":1}')),
        b'{"kind":"NetworkPolicy","namespace":"app","name":"p","generation":3,"spec":{"a":1}}',
    ),
    (
        wire.subject_resolution(NodeName("node.one"), "a.example.com"),
        resolution.Resolution(
            name="a.example.com", addresses=("198.51.100.1",), ttl_seconds=30, node=NodeName("node.one")
        ),
        b'{"name":"a.example.com","addresses":["198.51.100.1"],"ttl_seconds":30,"node":"node.one"}',
    ),
    (
        wire.subject_verdict(NodeName("node.one"), "app", "web", Verdict.DENY),
        VerdictEvent(
            node=NodeName("node.one"),
            namespace="app",
            pod="web",
            direction=Direction.EGRESS,
            verdict=Verdict.DENY,
            reason=Reason.ISOLATED,
            tier=Tier.NETWORK_POLICY,
            source_address="10.0.0.1",
            destination_address="198.51.100.1",
            protocol=6,
            destination_port=443,
            policy=SOURCE,
        ),
        b'{"node":"node.one","namespace":"app","pod":"web","direction":0,"verdict":0,"reason":2,"tier":2,'
        b'"source_address":"10.0.0.1","destination_address":"198.51.100.1","protocol":6,"destination_port":443,'
        b'"policy":{"kind":"NetworkPolicy","namespace":"app","name":"p","rule":"egress[0]"}}',
    ),
    (
        wire.subject_name_refused(NodeName("node.one"), "app", "web"),
        NameRefused(
            node=NodeName("node.one"), namespace="app", pod="web", name="a.example.com", addresses=("0.0.0.0",)
        ),
        b'{"node":"node.one","namespace":"app","pod":"web","name":"a.example.com","addresses":["0.0.0.0"]}',
    ),
    (
        wire.subject_name_refused(NodeName("node.one"), "app", "web"),
        NameRefused(
            node=NodeName("node.one"),
            namespace="app",
            pod="web",
            name="a.example.com",
            reason=RefusalReason.NXDOMAIN,
            resolver="10.96.0.10",
            count=3,
        ),
        b'{"node":"node.one","namespace":"app","pod":"web","name":"a.example.com","reason":"nxdomain",'
        b'"resolver":"10.96.0.10","count":3}',
    ),
    (
        wire.subject_status(NodeName("node.one")),
        AgentStatus(node=NodeName("node.one"), problems=(Problem(object="o", path="p", message="m"),)),
        b'{"node":"node.one","problems":[{"object":"o","path":"p","message":"m"}]}',
    ),
]


@pytest.mark.parametrize(("subject", "row", "body"), GOLDEN, ids=[f"{type(each[1]).__name__}" for each in GOLDEN])
def test_rows_have_their_golden_bytes(subject: str, row: msgspec.Struct, body: bytes) -> None:
    """Today's struct encodes to the bytes that were promised, and they decode to it."""
    assert wire.encode(row) == body
    decoded = wire.decode(subject, body)
    if isinstance(row, policy.SourceRow) and isinstance(decoded, policy.SourceRow):
        assert bytes(decoded.spec) == bytes(row.spec)
        decoded = msgspec.structs.replace(decoded, spec=row.spec)
    assert decoded == row


def test_a_signed_revision_has_its_golden_bytes_and_an_old_one_still_decodes() -> None:
    """The term came with signatures; a revision without either is one that nobody signed, of no term."""
    old = b'{"epoch":"00ff","number":7,"floor":1,"digest":"ab","trace":"t"}'
    signed = old[:-1] + b',"signature":"cd","term":3}'
    decoded = wire.decode(wire.SUBJECT_REVISION, old)
    assert isinstance(decoded, policy.Revision) and (decoded.signature, decoded.term) == ("", 0)
    assert wire.encode(msgspec.structs.replace(decoded, signature="cd", term=3)) == signed


def test_every_row_of_the_policy_stream_has_golden_bytes() -> None:
    """No row type escapes."""
    rows = {entry.type for entry in wire.TABLE if entry.prefix.startswith(wire.POLICY_PREFIX)}
    assert rows <= {type(row) for _, row, _ in GOLDEN}


def test_the_id_of_a_golden_ruleset_is_golden() -> None:
    """A ruleset's id is a hash of its bytes; were it to change, every node would rebuild everything."""
    (ruleset,) = [row for _, row, _ in GOLDEN if isinstance(row, policy.Ruleset)]
    assert wire.hash_content(ruleset) == "d9b97f811875d58d0000f8b5418dba51"
