"""The words of Yett: every enum and bare type that two processes, or Python and the kernel, must agree on.

Rules of this module:

* Zero denies. The zero of ``Action`` and of ``Verdict`` is the closed one, so that a forgotten field shuts.
* Values are stable for life: they are in pinned maps, on the bus and in stored flow logs. Append, never renumber.
* ``bpf/types.h`` repeats the values that the kernel needs; ``tests/bpf/test_terms_match.py`` compares the two.

Deliberately absent: behaviour, I/O, and anything that only one service needs.
"""

from __future__ import annotations

import enum
from typing import NewType

NodeName = NewType("NodeName", str)
"""A Kubernetes node's name; may contain dots."""

IdentityId = NewType("IdentityId", int)
"""u32. The top bit is the parity of the stream's epoch; 0 is "no identity" (the world), 1..255 are reserved."""

RulesetHash = NewType("RulesetHash", str)
"""32 lower-case hex digits: BLAKE2b-128 of the ruleset's canonical encoding."""

RevisionNumber = NewType("RevisionNumber", int)
"""Number of a published policy state; only grows within an epoch; 0 is "none yet"."""

IDENTITY_WORLD = IdentityId(0)
IDENTITY_FIRST_FREE = IdentityId(256)
"""Identities below this one are reserved and never allocated."""
IDENTITY_PARITY_BIT = 1 << 31

ANY_PROTOCOL = 256
"""Stands for "every IP protocol" in a port range; outside the range of real protocol numbers on purpose."""


class Direction(enum.IntEnum):
    """Seen from the pod that a policy governs."""

    EGRESS = 0
    INGRESS = 1


class Protocol(enum.IntEnum):
    """IP protocol numbers that policies can name. Any other number travels as a plain int."""

    ICMP = 1
    TCP = 6
    UDP = 17
    ICMPV6 = 58
    SCTP = 132


class Tier(enum.IntEnum):
    """Where a verdict was decided. NONE: before any rule was looked at (a malformed packet, a spoofed source)."""

    NONE = 0
    ADMIN = 1
    NETWORK_POLICY = 2
    BASELINE = 3
    DEFAULT = 4


class Action(enum.IntEnum):
    """What a rule says."""

    DENY = 0
    ACCEPT = 1
    PASS = 2


class Verdict(enum.IntEnum):
    """What was concluded. AUDIT: the enforced rules accept and the rules under audit would have denied."""

    DENY = 0
    ALLOW = 1
    AUDIT = 2


class Default(enum.IntEnum):
    """What happens where no rule decides."""

    DENY = 0
    ALLOW = 1
    AUDIT = 2


class AddressKind(enum.IntEnum):
    """Whose address it is."""

    POD = 1
    NODE = 2


class FrontendKind(enum.IntEnum):
    """Which of a Service's faces an address and port are."""

    CLUSTER_IP = 1
    NODE_PORT = 2
    HOST_PORT = 3
    EXTERNAL_IP = 4
    LOAD_BALANCER = 5

    @property
    def is_claim(self) -> bool:
        """Whether the address is chosen by who makes the Service or pod, and so proves nothing (CVE-2020-8554)."""
        return self is not FrontendKind.CLUSTER_IP


class Reason(enum.IntEnum):
    """Why a verdict, or why an answer was not learned. 0 is never used by a program that ran to its end."""

    UNKNOWN = 0

    # Allowed, or denied, by policy.
    RULE = 1
    """A rule of a policy decided; tier, policy and rule are given."""
    ISOLATED = 2
    """A NetworkPolicy or ApplicationNetworkPolicy isolates the pod and none of its rules matched."""
    DEFAULT = 3
    """No policy decided; the default did."""
    ESTABLISHED = 4
    """A packet of a flow that was admitted before and is still admitted."""
    REPLY = 5
    """A reply within a flow that the other side was allowed to open, or that this side opened."""
    DNS_IMPLICIT = 6
    """DNS to a trusted resolver, allowed because a domain rule governs the pod."""
    OWN_NODE = 7
    """Traffic with the pod's own node: neither isolation nor the default blocks it."""
    ALWAYS = 8
    """ARP, neighbour discovery, DHCP in the forms that always pass."""
    RELATED = 9
    """An ICMP error that quotes a live flow."""
    HAIRPIN = 10
    """A pod that reached itself through its own Service."""
    NAME_EXPIRED = 11
    """A name that the pod may use had this address, but its TTL and grace are over."""
    NO_BACKEND = 12
    """A Service without a ready backend, and no CIDR rule that covers its address."""
    MIXED_BACKENDS = 13
    """A Service whose backends do not all get the same verdict; at least one is denied."""
    TOO_MANY_BACKENDS = 14
    """A Service with more distinct backends than can be judged together."""
    UNKNOWN_POD = 15
    """An address in a pod range that belongs to no pod we know."""

    # The packet itself.
    MALFORMED = 32
    SPOOFED_SOURCE = 33
    WRONG_DESTINATION = 34
    SOURCE_ROUTED = 35
    MAPPED_ADDRESS = 36
    FRAGMENT_UNKNOWN = 37
    UNKNOWN_ETHERTYPE = 38
    TOO_MANY_HEADERS = 39
    ND_REFUSED = 40
    ICMP_UNRELATED = 41
    BAD_ARP = 42

    # Our own state.
    NO_ENDPOINT = 64
    """The interface has no endpoint row yet; everything is denied."""
    NO_RULESET = 65
    """The endpoint names a ruleset that is not in the map."""
    MAP_FULL = 66
    CLAIMED_TWICE = 67
    """Two interfaces claim one address; both are denied."""

    # Why an answer was not learned.
    LEARN_UNTRUSTED = 96
    LEARN_UNASKED = 97
    LEARN_MALFORMED = 98
    LEARN_REFUSED_ADDRESS = 99
    """The rebinding guard: the address is a pod's, a node's, a Service's, or of a range that no name may have."""
    LEARN_QUOTA = 100
    LEARN_RCODE = 101
    LEARN_HANDED_OVER = 102
    """Too long for one packet; the recorder finishes it."""
    LEARN_BAD_NAME = 103
    LEARN_NO_ADDRESS = 104
    """A name that some pattern covers, and no address of either family."""


class RefusalReason(enum.StrEnum):
    """What DNS said instead of an address that the name may have."""

    NXDOMAIN = "nxdomain"
    REFUSED = "refused"
    SERVFAIL = "servfail"
    NO_ADDRESS = "no_address"
    """NOERROR, and no address of either family."""
    SINKHOLE = "sinkhole"
    """An address that no name may have."""
    OTHER = "other"
    """Another error."""


class PolicyKind(enum.StrEnum):
    """The kinds that Yett enforces, by the short name used in subjects and in verdicts."""

    NETWORK_POLICY = "NetworkPolicy"
    APPLICATION_NETWORK_POLICY = "ApplicationNetworkPolicy"
    AWS_CLUSTER_NETWORK_POLICY = "ClusterNetworkPolicy.networking.k8s.aws"
    CLUSTER_NETWORK_POLICY = "ClusterNetworkPolicy.policy.networking.k8s.io"
    ADMIN_NETWORK_POLICY = "AdminNetworkPolicy"
    BASELINE_ADMIN_NETWORK_POLICY = "BaselineAdminNetworkPolicy"


RULES_ADMIN = 192
RULES_NETWORK_POLICY = 256
RULES_BASELINE = 64
RULES_TOTAL = RULES_ADMIN + RULES_NETWORK_POLICY + RULES_BASELINE
"""Rule bits of a ruleset. Bits 0..191 are Admin, 192..447 NetworkPolicy, 448..511 Baseline: fixed, so that no tier can
take from another and a mask is eight 64-bit words."""
FIRST_BIT = {Tier.ADMIN: 0, Tier.NETWORK_POLICY: RULES_ADMIN, Tier.BASELINE: RULES_ADMIN + RULES_NETWORK_POLICY}
