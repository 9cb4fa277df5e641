"""The rows of stream YETT_POLICY: one message a subject, and the last one of every subject *is* the policy state.

Facts and permissions are apart. A fact row (namespace, identity, address, frontend) says what is; a ruleset says what
is allowed, in selectors, CIDRs and domain patterns as *content*; an endpoint row points one pod at its rulesets. A
policy edit therefore moves rulesets and endpoints and no fact, and a new pod is one identity at most, one address and
one endpoint.

Rules of this module: frozen, defaults on every field added later, no behaviour beyond construction.
Deliberately absent: subjects (``wire``), digests (``digest``), anything an agent derives.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from schemas.terms import (
    Action,
    AddressKind,
    Default,
    Direction,
    FrontendKind,
    IdentityId,
    NodeName,
    RevisionNumber,
    RulesetHash,
    Tier,
)

Labels = dict[str, str]
U16 = Annotated[int, Meta(ge=0, le=65535)]
U32 = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
Identity = Annotated[IdentityId, Meta(ge=0, le=0xFFFFFFFF)]
"""The kernel keeps 32 bits: a number beyond them would become somebody else's."""


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of every row: immutable, keyword-only, defaults left out on the wire."""


# ---------------------------------------------------------------------------------------------------------------------
# Selectors, ports, peers: the content of rules. All are hashable; order inside a tuple is canonical (sorted) where the
# meaning has no order, so that equal content has equal bytes.


class Requirement(Row, frozen=True, kw_only=True):
    """One requirement on labels. ``operator``: In, NotIn, Exists, DoesNotExist, as in Kubernetes; values sorted."""

    key: str
    operator: str
    values: tuple[str, ...] = ()


class Selector(Row, frozen=True, kw_only=True):
    """All requirements must hold; none selects everything. ``matchLabels`` are normalised to In with one value."""

    requirements: tuple[Requirement, ...] = ()


class AnyPeer(Row, frozen=True, kw_only=True, tag="any", tag_field="peer"):
    """Every address, pods included. An address of ``unknown pod`` stays denied."""


class PodPeer(Row, frozen=True, kw_only=True, tag="pods", tag_field="peer"):
    """Pods by labels. ``namespaces`` selects on namespace labels (``kubernetes.io/metadata.name`` included).

    ``pods`` selects on the labels of the identity, derived ones (see ``IdentityRow.labels``) included.
    """

    namespaces: Selector = Selector()
    pods: Selector = Selector()


class NodePeer(Row, frozen=True, kw_only=True, tag="nodes", tag_field="peer"):
    """Nodes by label."""

    nodes: Selector = Selector()


class CidrPeer(Row, frozen=True, kw_only=True, tag="cidr", tag_field="peer"):
    """Addresses by prefix, canonical text, host bits zero. ``excepts`` takes away from this peer only."""

    cidr: str
    excepts: tuple[str, ...] = ()


class DomainPeer(Row, frozen=True, kw_only=True, tag="domain", tag_field="peer"):
    """Addresses by name. ``pattern``: lower case, no trailing dot; ``*.x`` is one or more labels under x and not x."""

    pattern: str


class PeersetPeer(Row, frozen=True, kw_only=True, tag="peerset", tag_field="peer"):
    """Stands for the peers of one ``PeersetRow``, where a rule has too many for one message."""

    hash: str


Peer = AnyPeer | PodPeer | NodePeer | CidrPeer | DomainPeer | PeersetPeer


class PortRange(Row, frozen=True, kw_only=True):
    """``protocol``: IP protocol number or ``terms.ANY_PROTOCOL``; ``first``..``last`` inclusive, in host order.

    A protocol without ports has 0..65535. ANY_PROTOCOL always has 0..65535.
    """

    protocol: Annotated[int, Meta(ge=0, le=256)]
    first: U16 = 0
    last: U16 = 65535


class RuleSource(Row, frozen=True, kw_only=True):
    """Which rule of which policy this is. ``namespace`` is empty for cluster-wide kinds.

    ``rule`` is the rule's name where it has one, else its path (``egress[0]``).
    """

    kind: str
    namespace: str = ""
    name: str
    rule: str


class RulesetRule(Row, frozen=True, kw_only=True):
    """One bit of a ruleset. Matches if any peer and any port range match. No peers or no ports: matches nothing.

    ``sources``: every policy rule with this same content at this place; sorted, never empty. The first one is reported.
    ``hashes``: of each of these rules as it was written, by which its use is counted across edits of its policy.
    """

    action: Action
    peers: tuple[Peer, ...]
    ports: tuple[PortRange, ...]
    sources: tuple[RuleSource, ...]
    hashes: tuple[str, ...] = ()


class Ruleset(Row, frozen=True, kw_only=True):
    """The rules of one direction for one set of subjects. Immutable: its id is the hash of its canonical encoding.

    The lists are in order of evaluation: Admin and Baseline by priority and tie rules, NetworkPolicy in canonical order
    (their order has no meaning). ``isolated``: some NetworkPolicy or ApplicationNetworkPolicy governs this direction.
    ``isolated_by`` names those, sorted, for the reason of a denial. ``default`` is already resolved
    (namespace > node > cluster). ``dns_implicit``: allow DNS to trusted resolvers, first in the NetworkPolicy tier.
    """

    direction: Direction
    default: Default
    admin: tuple[RulesetRule, ...] = ()
    network_policy: tuple[RulesetRule, ...] = ()
    baseline: tuple[RulesetRule, ...] = ()
    isolated: bool = False
    isolated_by: tuple[RuleSource, ...] = ()
    dns_implicit: bool = False

    def tier(self, tier: Tier) -> tuple[RulesetRule, ...]:
        """The rules of one tier; raises KeyError for NONE and DEFAULT."""
        return {Tier.ADMIN: self.admin, Tier.NETWORK_POLICY: self.network_policy, Tier.BASELINE: self.baseline}[tier]


# ---------------------------------------------------------------------------------------------------------------------
# Rows, each with its subject below ``yett.policy.``


class Leader(Row, frozen=True, kw_only=True):
    """``leader``: a leader's first act. The row's stream sequence is the fence that every later row carries.

    ``epoch``: 16 random bytes in hex, made with the stream. ``term`` grows by one a leader. ``parity``: top bit of the
    identity numbers of this epoch.
    """

    epoch: str
    term: int
    holder: str
    parity: Annotated[int, Meta(ge=0, le=1)] = 0


class Resolver(Row, frozen=True, kw_only=True):
    """Whose answers count. ``outside``: not of this cluster; what it says serves the asking endpoint only."""

    address: str
    port: U16 = 53
    outside: bool = False


Timeout = Annotated[int, Meta(ge=1, le=7 * 24 * 3600)]
"""Seconds without a packet."""


class FlowTimeouts(Row, frozen=True, kw_only=True):
    """How long a flow outlives its last packet, by protocol and state.

    Source: nf_conntrack's defaults, shortened where a flow is cheap to make again.
    """

    tcp: Timeout = 86_400
    tcp_opening: Timeout = 60
    """Nobody answered yet."""
    tcp_closing: Timeout = 120
    """One side is done."""
    tcp_closed: Timeout = 10
    """Both are, or one reset it."""
    udp: Timeout = 180
    udp_unanswered: Timeout = 60
    other: Timeout = 180
    other_unanswered: Timeout = 60
    fragment: Timeout = 30
    """Not a flow: how long a datagram's later fragments are taken after its first."""


class Config(Row, frozen=True, kw_only=True):
    """``config``: what the whole cluster needs to know. Times in seconds."""

    default: Default = Default.ALLOW
    node_defaults: dict[str, Default] = {}
    """Per node, from its NodeClass; wins over ``default``."""
    resolvers: tuple[Resolver, ...] = ()
    dns_implicit: bool = True
    ttl_min_seconds: U32 = 30
    ttl_max_seconds: U32 = 3600
    grace_seconds: U32 = 60
    service_cidrs: tuple[str, ...] = ()
    pod_cidrs: tuple[str, ...] = ()
    """Ranges of the cluster's own pods: an address there without an identity is an unknown pod and denied."""
    never_learn_cidrs: tuple[str, ...] = ()
    """Added to the built-in list (loopback, link-local, multicast, unspecified, metadata, embedded forms)."""
    learn_anyway_cidrs: tuple[str, ...] = ()
    """Exceptions to the built-in list and to ``never_learn_cidrs``."""
    search_suffixes: tuple[str, ...] = ("svc.cluster.local", "cluster.local")
    addresses_per_name: U32 = 100
    share: str = "cluster"
    """cluster | zone | node | off."""
    zones: dict[NodeName, str] = {}
    """Node -> zone, where ``share`` is zone."""
    learn_all: bool = False
    enforce: bool = True
    """Off: agents judge every packet of every pod as if there were no policy and the default were allow."""
    timeouts: FlowTimeouts = FlowTimeouts()
    flow_labels: tuple[str, ...] = ()
    """Labels of pods that flows are told with."""
    flow_owners: bool = False
    """Whether flows are told with what owns the pod."""


class NamespaceRow(Row, frozen=True, kw_only=True):
    """``namespace.<ns>``: its labels, ``kubernetes.io/metadata.name`` included."""

    name: str
    labels: Labels = {}


class IdentityRow(Row, frozen=True, kw_only=True):
    """``identity.<id>``: an immutable fact: a namespace and those labels that some policy names.

    Derived labels stand beside the real ones: ``port:TCP/http`` -> ``8080`` where some policy uses that named port (a
    colon is illegal in Kubernetes label keys, so they cannot meet). For ``AddressKind.NODE`` the namespace is empty and
    the labels are the node's.
    """

    id: Annotated[IdentityId, Meta(ge=1, le=0xFFFFFFFF)]
    kind: AddressKind = AddressKind.POD
    namespace: str = ""
    labels: Labels = {}


class AddressRow(Row, frozen=True, kw_only=True):
    """``address.<hex>``: whose address it is. Belongs to the newest live pod; a delete applies to its own ``uid`` only.

    ``owner``: ``namespace/name`` of the pod, or the node's name: for people, and for the agent's join by address.
    """

    address: str
    kind: AddressKind = AddressKind.POD
    identity: Identity
    uid: str
    owner: str = ""
    node: NodeName = NodeName("")


class Backend(Row, frozen=True, kw_only=True):
    """One distinct (identity, port) behind a frontend; ``address`` only where it has no identity (outside)."""

    identity: Identity
    port: U16
    address: str = ""


class FrontendRow(Row, frozen=True, kw_only=True):
    """``frontend.<token>``: an address, protocol and port that stand for backends.

    ``backends`` are distinct and sorted. One: uniform. None: no ready backend. More: mixed.
    """

    address: str
    protocol: U16
    port: U16
    kind: FrontendKind = FrontendKind.CLUSTER_IP
    service: str = ""
    backends: tuple[Backend, ...] = ()


class PeersetRow(Row, frozen=True, kw_only=True):
    """``peerset.<hash>``: peers of one rule, under 256 KiB; immutable, content-addressed."""

    peers: tuple[Peer, ...]


class EndpointRow(Row, frozen=True, kw_only=True):
    """``endpoint.<node>.<ns>.<pod>``: which rulesets govern one pod.

    Published when the pod is bound, before it has an address.
    ``*_shadow``: the rulesets with the policies under audit, or empty. ``addresses``: known ones, sorted; may be empty.
    ``labels``, ``owner``: for people, and only as far as the settings ask for them (``flow_labels``, ``flow_owners``).
    """

    node: NodeName
    namespace: str
    pod: str
    uid: str
    identity: Identity
    egress: RulesetHash
    ingress: RulesetHash
    egress_shadow: RulesetHash = RulesetHash("")
    ingress_shadow: RulesetHash = RulesetHash("")
    addresses: tuple[str, ...] = ()
    labels: Labels = {}
    owner: str = ""


class DomainRow(Row, frozen=True, kw_only=True):
    """``domain.<token>``: a pattern in force anywhere; what recorders publish and agents may ask for."""

    pattern: str


class SourceRow(Row, frozen=True, kw_only=True):
    """``source.<kind>.<ns>.<name>``: the last accepted spec of a policy, of the settings or of a NodeClass.

    Read at start, so that a restart keeps the last good state of an object whose present version is bad or unread.
    Not part of any digest: agents do not follow it.
    """

    kind: str
    namespace: str = ""
    name: str
    uid: str = ""
    generation: int = 0
    spec: msgspec.Raw
    created: str = ""
    """The object's creationTimestamp, RFC 3339: the order in which an overflowing tier is cut."""
    is_audited: bool = False
    """Of a policy: it was accepted under audit."""


class NodeRow(Row, frozen=True, kw_only=True):
    """``node.<node>``: digest over this node's endpoint rows as of revision ``number``, their last change.

    Part of the cluster-wide digest: else a follower that missed a node row could take endpoints of an older revision
    for today's, with a digest that matches them. A node without endpoint rows has none.
    """

    node: NodeName
    number: RevisionNumber
    digest: str
    count: int


class Revision(Row, frozen=True, kw_only=True):
    """``revision``: the state that all rows before it make up is complete, and hashes to ``digest``.

    ``floor``: the oldest revision from which following the stream misses no delete.
    ``trace``: W3C traceparent of the change. ``term``: the leader's, 0 where it was not said.
    ``signature``: ed25519 over (epoch, number, floor, digest, term), 128 hex digits; empty: not signed.
    """

    epoch: str
    number: RevisionNumber
    floor: RevisionNumber
    digest: str
    trace: str = ""
    signature: str = ""
    term: int = 0
