"""Events in, wanted rows out: the controller's whole state, without any I/O.

``State`` takes objects as they come, keeps for every policy its last good version, and knows the rows that follow.
The order of arrival never matters: the same objects make the same rows, identity numbers apart, and those are allocated
once and read back from the stream.

Deliberately absent: Leader, NodeRow and Revision rows (the publisher's), NATS, files, clocks.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from schemas import policy as wire_rows
from schemas import wire
from schemas.policy import DomainRow, EndpointRow, Resolver, SourceRow
from schemas.status import Problem
from schemas.terms import Default, Direction, IdentityId, PolicyKind, RulesetHash, Tier
from services.controller.facts import Facts
from services.controller.policy.compile import BUDGETS, Compiled
from services.controller.policy.defaults import node_default, pod_default
from services.controller.policy.diff import RowChange
from services.controller.policy.identity import Identities
from services.controller.policy.model import (
    ContainerPort,
    EndpointSlice,
    NamedPort,
    Namespace,
    Node,
    NodeClass,
    ObjectKey,
    Pod,
    Policy,
    PolicyKey,
    Service,
    Settings,
    World,
)
from services.controller.policy.parse import API_OF, Parsed, identify, parse_isolation, parse_object
from services.controller.policy.select import Named, Profile, profile_of
from services.controller.rows import RowStore
from services.controller.rulings import Numbers, Rulings

IDLE_KEYS_MAX = 64
"""Label keys that no policy names any more and that identities still bear; beyond it they are dropped, all at once."""

SETTINGS_KIND = "ConfigMap"
POLICY_KINDS = frozenset(kind.value for kind in PolicyKind)


@dataclasses.dataclass
class Answers:
    """What pods of one pass over the endpoints have in common, asked once."""

    defaults: dict[tuple[str, str], Default] = dataclasses.field(default_factory=dict)
    rulesets: dict[tuple[Profile, Default, tuple[ContainerPort, ...]], tuple[Compiled, Compiled]] = dataclasses.field(
        default_factory=dict
    )


class State:
    """Everything the controller wants to be true. ``parity``: of the stream's epoch, see ``schemas.policy.Leader``."""

    def __init__(self, parity: int = 0) -> None:
        self._store = RowStore()
        self._identities = Identities(parity)
        self._facts = Facts(self._store, self._identities)
        self._rulings = Rulings(self._facts)
        self._problems: dict[PolicyKey, list[Problem]] = {}
        self._file_problems: dict[str, tuple[Problem, ...]] = {}
        self._files: dict[PolicyKey, str] = {}
        self._restored: dict[PolicyKey, SourceRow] = {}
        self._seen: set[PolicyKey] = set()
        self._accepted: set[PolicyKey] = set()
        self._settings: dict[PolicyKey, Settings] = {}
        self._profiles: dict[Profile, set[ObjectKey]] = {}
        self._profile_of: dict[ObjectKey, Profile] = {}
        self._endpoints: dict[ObjectKey, tuple[str, Compiled, Compiled]] = {}
        self._users: Counter[RulesetHash] = Counter()
        self._live: dict[RulesetHash, Compiled] = {}
        self._peersets: Counter[str] = Counter()
        self._patterns: Counter[str] = Counter()
        self._is_config_stale = True
        self._are_names_stale = True
        self._told = Named()
        self._idle = Named()
        self._renumbered: set[tuple[NamedPort, str]] = set()

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def world(self) -> World:
        """The facts as the oracle takes them; to be read, not kept across events."""
        return dataclasses.replace(self._facts.world, settings=self.settings)

    @property
    def settings(self) -> Settings:
        """The settings in force: those of the first ConfigMap by namespace."""
        return self._settings[min(self._settings)] if self._settings else Settings()

    @property
    def policies(self) -> list[Policy]:
        """The policies in force, last good versions and stand-ins of refused ones included; unordered."""
        return list(self._rulings.policies.values())

    def rows(self) -> dict[str, bytes]:
        """All wanted rows: subject -> body. A copy."""
        self._write()
        return dict(self._store.rows)

    def changes(self) -> list[RowChange]:
        """What changed since the last call, in an order that is safe at every prefix."""
        self._write()
        return self._store.take_changes()

    def problems(self) -> list[Problem]:
        """What is wrong with present objects, and which policies do not fit."""
        self._write()
        found = [problem for file in sorted(self._file_problems) for problem in self._file_problems[file]]
        found += [problem for key in sorted(self._problems) for problem in self._problems[key]]
        return found + self._overflow_problems()

    # -- events -------------------------------------------------------------------------------------------------------

    def upsert(self, obj: Any, file: str = "") -> list[Problem]:
        """Take an object's present version -> what is wrong with it. Refused: the last good version stays in force."""
        parsed, problems = parse_object(obj, file=file)
        key = identify(obj)
        if key is None:
            return problems
        self._seen.add(key)
        self._files[key] = file
        self._problems.pop(key, None)
        if problems:
            self._problems[key] = problems
        if isinstance(parsed, Policy):
            self._accept(key, parsed, obj["spec"], parsed)
        elif isinstance(parsed, Settings):
            self._accept(key, parsed, obj.get("data") or {}, None)
        elif parsed is not None:
            self._put_fact(parsed)
        elif any(problem.severity == "error" for problem in problems):
            self._refuse(key, obj)
        return problems

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """An object is gone. ``kind`` as in ``parse.identify``: a ``PolicyKind`` value, or the Kubernetes kind."""
        key = (kind, namespace, name)
        for memory in (self._problems, self._files, self._restored):
            memory.pop(key, None)
        self._seen.discard(key)
        self._accepted.discard(key)
        self._store.drop(wire.subject_source(kind, namespace, name))
        if kind in POLICY_KINDS:
            self._rulings.drop(key)
            self._are_names_stale = True
        elif kind == SETTINGS_KIND:
            self._drop_settings(key)
        else:
            self._drop_fact(kind, (namespace, name))

    def report_file(self, file: str, problems: Iterable[Problem]) -> None:
        """Replace what is wrong with a whole file; nothing any more if empty."""
        self._file_problems[file] = tuple(problems)
        if not self._file_problems[file]:
            del self._file_problems[file]

    def restore(self, rows: Mapping[str, bytes]) -> None:
        """Read back what a former controller published, removals (empty bodies) included. Call first, once.

        Taken are identity numbers, the label keys they tell apart, and the last good specs; everything else follows
        from the objects. Rows that do not decode are passed over: they will be replaced.
        """
        keys = Named()
        for subject, body in rows.items():
            try:
                self._restore_row(subject, body, keys)
            except wire.WireError:
                continue
        self._told = keys
        self._facts.name_labels(keys)
        self._are_names_stale = True

    def adopt_unseen(self) -> list[PolicyKey]:
        """Put the restored last good policies in force that no object has replaced; -> their keys.

        For a start at which some source could not be read whole: what is unreadable is not gone.
        """
        adopted = []
        for key in sorted(self._restored.keys() - self._seen):
            if self._revive(key):
                adopted.append(key)
        return adopted

    # -- policies and settings ----------------------------------------------------------------------------------------

    def _accept(self, key: PolicyKey, parsed: Policy | Settings, spec: Any, policy: Policy | None) -> None:
        self._restored.pop(key, None)
        self._accepted.add(key)
        if isinstance(parsed, Policy):
            self._put_policy(parsed)
        else:
            self._put_settings(key, parsed)
        row = SourceRow(
            kind=key[0],
            namespace=key[1],
            name=key[2],
            uid=policy.uid if policy else "",
            generation=policy.generation if policy else 0,
            spec=msgspec.Raw(msgspec.json.encode(_plain(spec), order="deterministic")),
            created=policy.created if policy else "",
        )
        try:
            self._store.put(wire.subject_source(*key), wire.encode(row))
        except wire.WireError as error:
            message = f"in force, but too large to be remembered across a restart: {error}"
            self._complain(key, "spec", message, severity="warning")

    def _refuse(self, key: PolicyKey, obj: Any) -> None:
        """Keep what is in force; else what the stream remembers; else isolate the pods, if they can be told."""
        if key in self._accepted:
            return
        if self._revive(key):
            return
        stand_in = parse_isolation(obj)
        if stand_in is not None:
            self._put_policy(stand_in)
            self._complain(key, "spec", "its pods are isolated until it can be read", severity="warning")

    def _revive(self, key: PolicyKey) -> bool:
        """Put a restored last good version in force; False if there is none, or it is not good any more."""
        row = self._restored.get(key)
        if row is None:
            return False
        metadata: dict[str, Any] = {"name": row.name, "namespace": row.namespace or None, "uid": row.uid}
        metadata |= {"generation": row.generation, "creationTimestamp": row.created}
        content = msgspec.json.decode(row.spec)
        if row.kind == SETTINGS_KIND:
            parsed, _ = parse_object({"apiVersion": "v1", "kind": row.kind, "metadata": metadata, "data": content})
        else:
            version, kind = API_OF[PolicyKind(row.kind)]
            parsed, _ = parse_object({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": content})
        if not isinstance(parsed, Policy | Settings):
            return False
        self._accept(key, parsed, content, parsed if isinstance(parsed, Policy) else None)
        return True

    def _put_policy(self, policy: Policy) -> None:
        if self._rulings.policies.get(policy.key) != policy:
            self._rulings.put(policy)
            self._are_names_stale = True

    def _put_settings(self, key: PolicyKey, settings: Settings) -> None:
        before = self.settings
        self._settings[key] = settings
        self._touch_settings(before)

    def _drop_settings(self, key: PolicyKey) -> None:
        before = self.settings
        self._settings.pop(key, None)
        self._touch_settings(before)

    def _touch_settings(self, before: Settings) -> None:
        if before != self.settings:
            self._is_config_stale = True
            self._facts.touched |= self._facts.world.pods.keys()

    def _complain(self, key: PolicyKey, path: str, message: str, *, severity: str) -> None:
        name = f"{key[0]} {key[1] + '/' if key[1] else ''}{key[2]}"
        problem = Problem(object=name, path=path, message=message, file=self._files.get(key, ""), severity=severity)
        self._problems.setdefault(key, []).append(problem)

    def _restore_row(self, subject: str, body: bytes, keys: Named) -> None:
        prefix, _, token = subject.rpartition(".")
        if prefix == "yett.policy.identity" and token.isdecimal():
            row = wire.decode(subject, body) if body else None
            identity = row if isinstance(row, wire_rows.IdentityRow) else None
            self._identities.restore(IdentityId(int(token)), identity)
            if identity is not None:
                _collect_keys(identity, keys)
        elif body and subject.startswith("yett.policy.source."):
            source = wire.decode(subject, body)
            if isinstance(source, SourceRow) and source.kind in {*POLICY_KINDS, SETTINGS_KIND}:
                self._restored[source.kind, source.namespace, source.name] = source

    # -- facts --------------------------------------------------------------------------------------------------------

    def _put_fact(self, fact: Parsed) -> None:
        if isinstance(fact, Pod):
            self._note_ports(fact.key)
            self._facts.put_pod(fact)
            self._note_ports(fact.key)
        elif isinstance(fact, Namespace):
            self._facts.put_namespace(fact)
            self._rulings.relabel(fact.name)
            self._facts.touched |= self._facts.pods_in(fact.name)
        elif isinstance(fact, Node):
            self._facts.put_node(fact)
            self._is_config_stale = True
        elif isinstance(fact, NodeClass):
            self._facts.world.node_classes[fact.name] = fact
            self._touch_nodes()
        elif isinstance(fact, Service):
            self._facts.put_service(fact)
            self._is_config_stale = True
        elif isinstance(fact, EndpointSlice):
            self._facts.put_slice(fact)

    def _drop_fact(self, kind: str, key: ObjectKey) -> None:
        if kind == "Pod":
            self._note_ports(key)
            self._facts.drop_pod(key)
        elif kind == "Namespace":
            self._facts.drop_namespace(key[1])
            self._rulings.relabel(key[1])
            self._facts.touched |= self._facts.pods_in(key[1])
        elif kind == "Node":
            self._facts.drop_node(key[1])
            self._is_config_stale = True
        elif kind == "NodeClass":
            self._facts.world.node_classes.pop(key[1], None)
            self._touch_nodes()
        elif kind == "Service":
            self._facts.drop_service(key)
            self._is_config_stale = True
        elif kind == "EndpointSlice":
            self._facts.drop_slice(key)

    def _note_ports(self, key: ObjectKey) -> None:
        """A pod comes, changes or goes: the named ports it has may stand for something else now."""
        pod = self._facts.world.pods.get(key)
        if pod is not None:
            self._renumbered |= {(port, pod.namespace) for port in pod.named_ports()}

    def _touch_nodes(self) -> None:
        self._is_config_stale = True
        self._facts.touched |= self._facts.world.pods.keys()

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        if self._renumbered:
            self._rulings.renumber(self._renumbered)
            self._renumbered.clear()
        if self._are_names_stale:
            self._name_labels()
        self._facts.write_rows()
        self._join_profiles()
        self._rulings.settle()
        for profile in self._rulings.stale:
            self._facts.touched |= self._profiles.get(profile, set())
        self._rulings.stale.clear()
        answers = Answers()
        for key in self._facts.touched:
            self._write_endpoint(key, answers)
        self._facts.touched.clear()
        if self._is_config_stale:
            self._write_config()
        self._rulings.prune(self._live)

    def _name_labels(self) -> None:
        """What identities tell apart: everything named today, and what was named before, until too much lies idle.

        A key that only now became idle stays for one more write: rulesets that name it are in force until the flip.
        """
        self._are_names_stale = False
        named = self._rulings.named()
        idle = self._told - named
        long_idle = idle & self._idle
        kept = idle - long_idle if len(long_idle) > IDLE_KEYS_MAX else idle
        self._told, self._idle = named | kept, idle
        self._facts.name_labels(self._told)

    def _join_profiles(self) -> None:
        """Every governed pod belongs to the profile of its namespace and labels."""
        for key in self._facts.touched:
            pod = self._facts.world.pods.get(key)
            old = self._profile_of.get(key)
            new = profile_of(pod.namespace, pod.labels) if pod is not None and pod.is_governed else None
            if old == new:
                continue
            if old is not None:
                del self._profile_of[key]
                self._profiles[old].discard(key)
                if not self._profiles[old]:
                    del self._profiles[old]
                    self._rulings.selection.forget(old)
            if new is not None:
                self._profile_of[key] = new
                self._profiles.setdefault(new, set()).add(key)
                self._rulings.selection.policies_for(new)

    def _write_endpoint(self, key: ObjectKey, answers: Answers) -> None:
        old = self._endpoints.pop(key, None)
        pod = self._facts.world.pods.get(key)
        subject = ""
        if pod is not None and pod.is_governed and pod.node:
            egress, ingress = self._compile(pod, answers)
            for compiled in (egress, ingress):
                self._retain(compiled)
            subject = wire.subject_endpoint(pod.node, pod.namespace, pod.name)
            row = EndpointRow(
                node=pod.node,
                namespace=pod.namespace,
                pod=pod.name,
                uid=pod.uid,
                identity=self._facts.identity_of_pod(key),
                egress=egress.hash,
                ingress=ingress.hash,
                addresses=pod.addresses,
            )
            self._store.put(subject, wire.encode(row))
            self._endpoints[key] = (subject, egress, ingress)
        if old is not None:
            if old[0] != subject:
                self._store.drop(old[0])
            self._release(old[1])
            self._release(old[2])

    def _compile(self, pod: Pod, answers: Answers) -> tuple[Compiled, Compiled]:
        profile = self._profile_of[pod.key]
        place = (pod.namespace, pod.node)
        default = answers.defaults.get(place)
        if default is None:
            default = answers.defaults[place] = self._default_of(pod)
        question = (profile, default, pod.ports)
        pair = answers.rulesets.get(question)
        if pair is None:
            dns = self.settings.config.dns_implicit
            ports: Numbers = tuple(sorted(pod.named_ports().items()))
            egress = self._rulings.ruleset(profile, Direction.EGRESS, default, (), dns=dns)
            ingress = self._rulings.ruleset(profile, Direction.INGRESS, default, ports, dns=dns)
            pair = answers.rulesets[question] = (egress, ingress)
        return pair

    def _default_of(self, pod: Pod) -> Default:
        world = self._facts.world
        node = world.nodes.get(pod.node)
        node_class = world.node_classes.get(node.node_class) if node is not None else None
        of_node = node_default(self.settings, node, node_class, pod.node)
        return pod_default(self.settings, world.namespaces.get(pod.namespace), pod.namespace, of_node)

    def _retain(self, compiled: Compiled) -> None:
        self._users[compiled.hash] += 1
        if self._users[compiled.hash] > 1:
            return
        self._live[compiled.hash] = compiled
        self._store.put(wire.subject_ruleset(compiled.hash), compiled.body)
        for digest, body in compiled.peersets.items():
            self._peersets[digest] += 1
            self._store.put(wire.subject_peerset(digest), body)
        for pattern in compiled.patterns:
            self._patterns[pattern] += 1
            self._store.put(wire.subject_domain(pattern), wire.encode(DomainRow(pattern=pattern)))

    def _release(self, compiled: Compiled) -> None:
        self._users[compiled.hash] -= 1
        if self._users[compiled.hash]:
            return
        del self._users[compiled.hash], self._live[compiled.hash]
        self._store.drop(wire.subject_ruleset(compiled.hash))
        for digest in compiled.peersets:
            self._forget(self._peersets, digest, wire.subject_peerset(digest))
        for pattern in compiled.patterns:
            self._forget(self._patterns, pattern, wire.subject_domain(pattern))

    def _forget(self, users: Counter[str], name: str, subject: str) -> None:
        users[name] -= 1
        if not users[name]:
            del users[name]
            self._store.drop(subject)

    def _write_config(self) -> None:
        self._is_config_stale = False
        settings, world = self.settings, self._facts.world
        resolvers = settings.config.resolvers
        if not resolvers and (service := world.services.get(settings.dns_service)) is not None:
            resolvers = tuple(Resolver(address=address) for address in service.cluster_addresses)
        defaults = dict(settings.config.node_defaults)
        for name, node in world.nodes.items():
            default = node_default(settings, node, world.node_classes.get(node.node_class), node.name)
            if default is not None:
                defaults[name] = default
        config = msgspec.structs.replace(settings.config, resolvers=resolvers, node_defaults=defaults)
        self._store.put(wire.SUBJECT_CONFIG, wire.encode(config))

    # -- problems -----------------------------------------------------------------------------------------------------

    def _overflow_problems(self) -> list[Problem]:
        left_out = {key for compiled in self._live.values() for key in compiled.left_out}
        found = [self._overflow(key, "left out of some pods' rules; they stay isolated") for key in sorted(left_out)]
        found += [self._overflow(key, "refused for all pods") for key in sorted(self._rulings.refused)]
        return found

    def _overflow(self, key: PolicyKey, consequence: str) -> Problem:
        tier = self._rulings.policies[key].tier
        name = f"{key[0]} {key[1] + '/' if key[1] else ''}{key[2]}"
        message = f"does not fit into the {BUDGETS[tier]} rules of the {Tier(tier).name} tier: {consequence}"
        return Problem(object=name, path="spec", message=message, file=self._files.get(key, ""))


def _collect_keys(identity: wire_rows.IdentityRow, keys: Named) -> None:
    """The label keys and named ports that an identity tells apart."""
    for key in identity.labels:
        port = NamedPort.of_label(key)
        if port is not None:
            keys.ports.add(port)
        elif identity.namespace:
            keys.pods.add(key)
        else:
            keys.nodes.add(key)


def _plain(value: Any) -> Any:
    """YAML's value as JSON's: text keys, and text for what JSON does not know (dates)."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)
