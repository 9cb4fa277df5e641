"""A live cluster's state from the bus, to ask the same questions of: the rows of a proven revision, and known names.

Only facts travel on the bus, so a pod has those labels here that some policy names; it has them all where it matters.
The clock of resolutions is the server's; their age is told by this machine's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from nats.aio.client import Client

from schemas import wire
from schemas.policy import Backend, FrontendRow, SourceRow
from schemas.resolution import Resolution
from schemas.status import AgentStatus
from schemas.terms import AddressKind, FrontendKind, NodeName
from services.common.follow import Follower
from services.common.jetstream import JetStreamError
from services.common.messages import CaughtUp, Message, Reset
from services.controller.ledger import Ledger, Snapshot, read_snapshot
from services.controller.policy.model import Answer, Node, ObjectKey, Packet, Pod, Policy, Service, ServicePort, World
from services.controller.sources import read_source
from services.scenario.rows import Rows
from services.scenario.usage import Kept
from services.scenario.walk import Facts

ATTEMPTS = 5
"""Replays of a stream that changes while it is read; a quiet one is proven by the first."""


class LiveError(RuntimeError):
    """The bus has no state to ask; the message says why."""


@dataclass(frozen=True)
class LiveCluster:
    """A state as routes and walks want it."""

    facts: Facts
    world: World

    def with_caches(self, agents: Mapping[str, AgentStatus]) -> LiveCluster:
        """With what agents say of their nodes' own DNS caches."""
        caches = {NodeName(node): frozenset(status.resolvers) for node, status in agents.items()}
        return replace(self, facts=replace(self.facts, caches=caches))

    def owner_of(self, address: str) -> Pod | Node | None:
        """Whose address it is."""
        row = self.facts.rows.addresses.get(address)
        if row is None:
            return None
        if row.kind is AddressKind.NODE:
            return self.world.nodes.get(row.owner)
        return self.world.pods.get(_split_key(row.owner))

    def frontend_of(self, packet: Packet) -> FrontendRow | None:
        """The Service's face that a packet is sent to; identities are told by every address that has them."""
        row = self.facts.rows.frontends.get((packet.destination, packet.protocol, packet.port))
        if row is None:
            return None
        return FrontendRow(
            address=row.address,
            protocol=row.protocol,
            port=row.port,
            kind=row.kind,
            service=row.service,
            backends=tuple(each for backend in row.backends for each in self._locate(backend, row.address)),
        )

    def _locate(self, backend: Backend, like: str) -> Iterable[Backend]:
        if backend.address:
            yield backend
        for row in self.facts.rows.addresses.values():
            if backend.identity and row.identity == backend.identity and (":" in row.address) == (":" in like):
                yield Backend(identity=backend.identity, port=backend.port, address=row.address)

    def addresses_of(self, name: str) -> tuple[str, ...]:
        """What a name was resolved to."""
        found = (each for answer in self.facts.answers if answer.name == name for each in answer.addresses)
        return tuple(dict.fromkeys(found))


async def read_live(client: Client) -> LiveCluster:
    """The state now. LiveError."""
    try:
        rows = Rows.read((await _read_proven(client)).rows)
        answers = await _read_answers(client)
    except JetStreamError as error:
        raise LiveError(str(error)) from error
    return make_live(rows, answers, now=time.time())


def make_live(rows: Rows, answers: Iterable[Answer], *, now: float) -> LiveCluster:
    """``now``: on the answers' clock."""
    return LiveCluster(Facts(rows, tuple(answers), now), make_world(rows))


@dataclass(frozen=True)
class LiveUsage:
    """The rows, the policies' last accepted versions, and what is kept of their use. ``now``: Unix seconds."""

    rows: Rows
    world: World
    policies: tuple[Policy, ...]
    kept: Kept
    now: int


async def read_usage(client: Client) -> LiveUsage:
    """The state now, and the bucket of usage. LiveError."""
    try:
        snapshot = await _read_proven(client)
        entries = await _read_all(client, wire.STREAM_USAGE, wire.USAGE_BUCKET_PREFIX + ">")
    except JetStreamError as error:
        raise LiveError(str(error)) from error
    last = {message.subject: message.body for message in entries if message.body}
    rows = Rows.read(snapshot.rows)
    policies = tuple(_read_policies(snapshot.rows.items()))
    return LiveUsage(rows, make_world(rows), policies, Kept.read(last.items()), int(time.time()))


def _read_policies(rows: Iterable[tuple[str, bytes]]) -> Iterable[Policy]:
    for subject, body in rows:
        row = wire.decode(subject, body) if subject.startswith(_SOURCES) else None
        found = read_source(row) if isinstance(row, SourceRow) else None
        if found is not None and isinstance(found[0], Policy):
            yield found[0]


_SOURCES = "yett.policy.source."


async def _read_proven(client: Client) -> Snapshot:
    for _ in range(ATTEMPTS):
        snapshot = read_snapshot(await _read_all(client, wire.STREAM_POLICY, wire.POLICY_PREFIX + ">"))
        if snapshot.revision is None:
            raise LiveError("no revision was ever published: no controller has led here")
        ledger = Ledger(snapshot, epoch=snapshot.revision.epoch)
        if ledger.plan_revision(trace="", now_seconds=0.0) is None:
            return snapshot
    raise LiveError(f"the state changed {ATTEMPTS} times while it was read")


async def _read_answers(client: Client) -> list[Answer]:
    """Every resolution that is still kept."""
    found = []
    for message in await _read_all(client, wire.STREAM_RESOLUTION, wire.RESOLUTION_PREFIX + ">"):
        try:
            row = wire.decode(message.subject, message.body)
        except wire.WireError:
            continue
        if isinstance(row, Resolution):
            told = Answer(row.name, row.addresses, row.ttl_seconds, message.unix_nanos / 1e9)
            found.append(told)
    return found


async def _read_all(client: Client, stream: str, subject: str) -> list[Message]:
    messages: list[Message] = []
    async with Follower(client, stream, [subject], must_exist=True) as follower:
        async for item in follower:
            if isinstance(item, CaughtUp):
                break
            if isinstance(item, Reset):
                messages.clear()
            else:
                messages += item
    return messages


# ---------------------------------------------------------------------------------------------------------------------
# Rows as a world


def make_world(rows: Rows) -> World:
    """What rows tell of pods, nodes and Services."""
    world = World()
    for row in rows.addresses.values():
        if row.kind is AddressKind.NODE:
            known = world.nodes.get(row.owner) or Node(name=row.node, uid=row.uid)
            world.nodes[row.owner] = replace(known, addresses=tuple(sorted({*known.addresses, row.address})))
    for key, endpoint in rows.endpoints.items():
        own = {row.address for row in rows.addresses.values() if row.uid == endpoint.uid}
        identity = rows.identities.get(endpoint.identity)
        world.pods[key] = Pod(
            namespace=endpoint.namespace,
            name=endpoint.pod,
            uid=endpoint.uid,
            labels=dict(identity.labels) if identity is not None else {},
            node=endpoint.node,
            addresses=tuple(sorted(own.union(endpoint.addresses))),
        )
    for front in rows.frontends.values():
        if front.kind is FrontendKind.CLUSTER_IP:
            _add_service(world, front)
    return world


def _add_service(world: World, front: FrontendRow) -> None:
    key = _split_key(front.service)
    known = world.services.get(key) or Service(namespace=key[0], name=key[1])
    ports = {(port.protocol, port.port): port for port in known.ports}
    ports.setdefault(
        (front.protocol, front.port),
        ServicePort(name="", protocol=front.protocol, port=front.port, target=front.port),
    )
    addresses = tuple(sorted({*known.cluster_addresses, front.address}))
    world.services[key] = replace(known, cluster_addresses=addresses, ports=tuple(ports.values()))


def _split_key(text: str) -> ObjectKey:
    namespace, _, name = text.partition("/")
    return namespace, name
