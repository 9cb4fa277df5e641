"""The ten steps as data: what is applied, what is then tried, what must come of it, and by which policy.

A step is a list of phases; a phase first changes the world (its actions, in order), waits until the change is enforced
on both nodes, then makes its probes, all at once.

Rules of this module:

* Rows are as in the seeds: names of pods and destinations, ``@node-b`` where a pod is on the second node.
* A probe by name or Service is made in both IP families, and its row holds only if both agree.
* ``policy`` is checked against the verdict where a rule decides; None where isolation or the default does.

Deliberately absent: how an action or a probe is carried out (``runner``, ``traffic``).
"""

from __future__ import annotations

from dataclasses import dataclass

from services.demo import topology

ALLOWED = "Allowed"
BLOCKED = "Blocked"


# ---------------------------------------------------------------------------------------------------------------------
# Actions


@dataclass(frozen=True, slots=True)
class Apply:
    """Manifests that come with the demo go into the folder."""

    manifests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Configure:
    """Cluster settings change, on running nodes."""

    settings: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class AddNamespace:
    """A namespace of ``topology.LATE_NAMESPACES`` comes to be, with its pods."""

    name: str


@dataclass(frozen=True, slots=True)
class Resolve:
    """One pod asks for one name; nobody connects."""

    pod: str
    name: str


@dataclass(frozen=True, slots=True)
class OpenLive:
    """A pod opens a connection to a name and keeps it."""

    pod: str
    name: str
    port: int


@dataclass(frozen=True, slots=True)
class MoveName:
    """The name gets other addresses; done when ``pod`` is told them."""

    name: str
    addresses: tuple[str, str]
    pod: str


@dataclass(frozen=True, slots=True)
class AwaitExpiry:
    """TTL and grace of the old addresses pass."""


Action = Apply | Configure | AddNamespace | Resolve | OpenLive | MoveName | AwaitExpiry


# ---------------------------------------------------------------------------------------------------------------------
# Probes


@dataclass(frozen=True, slots=True)
class Connect:
    """dig (unless by address), then curl. ``target``: a name, ``namespace/service``, or an address.

    ``addresses``: what to connect to instead of what DNS says.
    """

    source: str
    target: str
    port: int
    expected: str
    policy: str | None = None
    addresses: tuple[str, ...] = ()
    shown_source: str = ""
    shown: str = ""


@dataclass(frozen=True, slots=True)
class Lookup:
    """dig alone: is the pod told an address of the name?"""

    source: str
    name: str
    expected: str
    policy: str | None = None


@dataclass(frozen=True, slots=True)
class UseLive:
    """A line through the connection that ``OpenLive`` left open, and back."""

    source: str
    shown: str
    expected: str


Probe = Connect | Lookup | UseLive


@dataclass(frozen=True, slots=True)
class Phase:
    """What changes, then what is tried."""

    actions: tuple[Action, ...]
    probes: tuple[Probe, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the demo."""

    number: int
    title: str
    phases: tuple[Phase, ...]


# ---------------------------------------------------------------------------------------------------------------------
# The steps

_BACKEND = "app/curl-backend"
_FRONTEND = "app/curl-frontend"
_FRONTEND_B = "app/curl-frontend.b"
_SERVICE = "app/backend"
_EXAMPLE_ONLY = "allow-example-com-only"
_INTRA = "allow-intra-app"
_IMDS = "block-instance-metadata-service"
_S3 = "access-to-s3"
_DYNAMO = "access-to-DynamoDB"
_ON_PREMISES = "on-premises-access"


def _six(backend: str, frontend: str, shown_backend: str, shown_frontend: str) -> tuple[Connect, ...]:
    """The seed's last table, with its leak closed."""
    return (
        Connect(backend, _SERVICE, 80, ALLOWED, _INTRA, shown_source=shown_backend),
        Connect(backend, "example.com", 80, ALLOWED, _EXAMPLE_ONLY, shown_source=shown_backend),
        Connect(backend, "httpbin.org", 80, BLOCKED, shown_source=shown_backend),
        Connect(frontend, _SERVICE, 80, ALLOWED, _INTRA, shown_source=shown_frontend),
        Connect(frontend, "example.com", 80, BLOCKED, shown_source=shown_frontend),
        Connect(frontend, "httpbin.org", 80, BLOCKED, shown_source=shown_frontend),
    )


_STEP_1 = Step(
    1,
    "Default deny, no policy",
    (
        Phase(
            (),
            (
                Connect(_BACKEND, _SERVICE, 80, BLOCKED),
                Connect(_BACKEND, "example.com", 80, BLOCKED),
                Connect(_FRONTEND, _SERVICE, 80, BLOCKED),
            ),
        ),
    ),
)

_STEP_2 = Step(
    2,
    "allow-dns: names resolve, HTTP stays blocked",
    (
        Phase(
            (Apply(("2-allow-dns.yaml",)),),
            (
                Lookup(_BACKEND, "example.com", ALLOWED, "allow-dns"),
                Lookup(_FRONTEND, "example.com", ALLOWED, "allow-dns"),
                Connect(_BACKEND, "example.com", 80, BLOCKED),
                Connect(_FRONTEND, "example.com", 80, BLOCKED),
            ),
        ),
    ),
)

_STEP_3 = Step(
    3,
    "allow-example-com-only for role=backend",
    (
        Phase(
            (Apply(("3-allow-example-com-only.yaml",)),),
            (
                Connect(_BACKEND, "example.com", 80, ALLOWED, _EXAMPLE_ONLY, shown="example.com:80"),
                Connect(_BACKEND, "httpbin.org", 80, BLOCKED, shown="httpbin.org:80"),
                Connect(_FRONTEND, "example.com", 80, BLOCKED, shown="example.com:80"),
            ),
        ),
    ),
)

_STEP_4 = Step(
    4,
    "allow-intra-app: no permission leaks to a neighbour, on one node or across two",
    (
        Phase(
            (Apply(("4-allow-intra-app.yaml",)),),
            (
                *_six(_BACKEND, _FRONTEND, "curl-backend", "curl-frontend"),
                *_six(_BACKEND, _FRONTEND_B, "curl-backend@node-a", "curl-frontend@node-b"),
            ),
        ),
    ),
)


def _imds(source: str) -> tuple[Connect, ...]:
    return (
        Connect(source, topology.METADATA, 80, BLOCKED, _IMDS),
        Connect(source, "example.com", 80, ALLOWED, "allow-everything"),
        Connect(source, "httpbin.org", 443, ALLOWED, "allow-everything", shown="httpbin.org:443"),
    )


_STEP_5 = Step(
    5,
    "block-instance-metadata-service against a permissive NetworkPolicy",
    (
        Phase(
            (Apply(("5-allow-everything.yaml", "5-block-instance-metadata-service.yaml")),),
            (*_imds("imds/imds-client"), *_imds("imds/imds-client-b")),
        ),
    ),
)


def _reach(source: str, rows: tuple[tuple[str, int, str], ...], policy: str) -> tuple[Connect, ...]:
    return tuple(
        Connect(source, name, port, expected, policy if expected == ALLOWED else None, shown=f"{name}:{port}")
        for name, port, expected in rows
    )


_STEP_6 = Step(
    6,
    "access-to-s3, access-to-DynamoDB, on-premises-access, verbatim",
    (
        Phase(
            (Apply(("6-access-to-s3.yaml", "6-access-to-DynamoDB.yaml", "6-on-premises-access.yaml")),),
            (
                *_reach(
                    "default/s3-client",
                    (
                        (f"bucket.{topology.S3_EAST}", 443, ALLOWED),
                        (f"bucket.{topology.S3_EAST}", 80, ALLOWED),
                        (f"a.b.c.{topology.S3_EAST}", 443, ALLOWED),
                        (topology.S3_EAST, 443, BLOCKED),
                        (f"bucket.{topology.S3_WEST}", 443, BLOCKED),
                    ),
                    _S3,
                ),
                *_reach("default/bystander", ((f"bucket.{topology.S3_EAST}", 443, BLOCKED),), _S3),
                *_reach(
                    "cart-services/checkout",
                    (
                        (f"table.{topology.DYNAMO_EAST}", 443, ALLOWED),
                        (topology.DYNAMO_EAST, 443, BLOCKED),
                        (f"table.{topology.DYNAMO_WEST}", 443, BLOCKED),
                    ),
                    _DYNAMO,
                ),
                *_reach("cart-services/catalogue", ((f"table.{topology.DYNAMO_EAST}", 443, BLOCKED),), _DYNAMO),
                *_reach(
                    "datacenter/hybrid-client",
                    (
                        ("erp.datacenter.company.com", 443, ALLOWED),
                        ("erp.datacenter.company.com", 80, BLOCKED),
                        ("r1.hall2.datacenter.company.com", 443, ALLOWED),
                        ("api.corp.company.com", 443, ALLOWED),
                        ("datacenter.company.com", 443, BLOCKED),
                        ("www.company.com", 443, BLOCKED),
                    ),
                    _ON_PREMISES,
                ),
            ),
        ),
    ),
)

_SEEN = topology.OUTSIDE[topology.SEEN_ELSEWHERE]

_STEP_7 = Step(
    7,
    "An address of an allowed name that only a pod on the other node has ever resolved",
    (
        Phase(
            (Resolve("default/s3-client-b", topology.SEEN_ELSEWHERE),),
            (
                Connect(
                    "default/s3-client", topology.SEEN_ELSEWHERE, 443, ALLOWED, _S3, _SEEN, shown=f"{_SEEN[0]}:443"
                ),
                Connect(
                    "default/bystander", topology.SEEN_ELSEWHERE, 443, BLOCKED, None, _SEEN, shown=f"{_SEEN[0]}:443"
                ),
            ),
        ),
    ),
)


def _switch(expected: str, state: str) -> tuple[Connect, ...]:
    return tuple(
        Connect(source, "httpbin.org", 80, expected, shown=f"httpbin.org ({state})")
        for source in ("switch/switch-client", "switch/switch-client-b")
    )


_STEP_8 = Step(
    8,
    "The default switched on running nodes, and back",
    (
        Phase((), _switch(BLOCKED, "default deny"), "default: deny"),
        Phase((Configure((("default", "allow"),)),), _switch(ALLOWED, "default allow"), "default: allow"),
        Phase((Configure(()),), _switch(BLOCKED, "default deny again"), "default: deny"),
    ),
)

_STEP_9 = Step(
    9,
    "Governed by label from the first pod; Pass delegates; Baseline is overridden",
    (
        Phase(
            (Apply(("9-high-security-tier.yaml",)), AddNamespace("vault")),
            (
                Connect("vault/vault-client", "httpbin.org", 80, BLOCKED, "guard-high-tier"),
                Connect(
                    "vault/vault-client",
                    "vault/vault-api",
                    80,
                    BLOCKED,
                    shown="vault-api Service, before its own policy",
                ),
            ),
            "the namespace is made after the policy, and has no policy of its own yet",
        ),
        Phase(
            (Apply(("9-vault-own.yaml", "9-shared-tenancy.yaml")),),
            (
                Connect("vault/vault-client", "vault/vault-api", 80, ALLOWED, "vault-egress"),
                Connect("vault/vault-intruder", "vault/vault-api", 80, BLOCKED),
                Connect(
                    "vault/vault-client", "httpbin.org", 80, BLOCKED, "guard-high-tier", shown="httpbin.org, own allow"
                ),
                Connect("tenants/tenant-plain", "example.com", 80, BLOCKED, "tenants-stay-home"),
                Connect("tenants/tenant-exempt", "example.com", 80, ALLOWED, "exempt-to-partners"),
            ),
            "its own policies allow everything outwards, and one caller inwards",
        ),
    ),
)

_DB = "data/db-client"
_DB_OLD = topology.OUTSIDE[topology.DATABASE]
_DB_NEW = topology.DATABASE_NEXT

_STEP_10 = Step(
    10,
    "db.internal.company.com moves",
    (
        Phase(
            (
                Apply(("10-allow-database.yaml",)),
                OpenLive(_DB, topology.DATABASE, topology.ECHO_PORT),
            ),
            (
                Connect(
                    _DB,
                    topology.DATABASE,
                    topology.ECHO_PORT,
                    ALLOWED,
                    "allow-database",
                    shown=f"{topology.DATABASE}:5432 = {_DB_OLD[0]}",
                ),
                UseLive(_DB, f"live connection to {_DB_OLD[0]}", ALLOWED),
            ),
            "where it was",
        ),
        Phase(
            (MoveName(topology.DATABASE, _DB_NEW, _DB),),
            (
                Connect(
                    _DB,
                    topology.DATABASE,
                    topology.ECHO_PORT,
                    ALLOWED,
                    "allow-database",
                    shown=f"{topology.DATABASE}:5432 = {_DB_NEW[0]}",
                ),
            ),
            "at the first answer with the new address",
        ),
        Phase(
            (AwaitExpiry(),),
            (
                UseLive(_DB, f"live connection to {_DB_OLD[0]}, name moved", ALLOWED),
                Connect(
                    _DB,
                    topology.DATABASE,
                    topology.ECHO_PORT,
                    BLOCKED,
                    None,
                    _DB_OLD,
                    shown=f"{_DB_OLD[0]}:5432, expired",
                ),
            ),
            "after TTL and grace of the old answer",
        ),
    ),
)

STEPS = (_STEP_1, _STEP_2, _STEP_3, _STEP_4, _STEP_5, _STEP_6, _STEP_7, _STEP_8, _STEP_9, _STEP_10)


def parse_selection(text: str) -> frozenset[int]:
    """``1-3,7`` -> {1, 2, 3, 7}; ValueError in words for a person."""
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"{part.strip()!r} is no step and no range of steps, such as 1-3")
        chosen.update(range(int(first), int(last or first) + 1))
    known = {step.number for step in STEPS}
    if not chosen or chosen - known:
        raise ValueError(f"there are steps 1 to {len(STEPS)}, and {text!r} asks for others")
    return frozenset(chosen)
