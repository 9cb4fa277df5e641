"""Events in, wanted rows out: the controller's whole state, without any I/O.

``State`` takes objects as they come, keeps for every policy its last good version, and knows the rows that follow.
The order of arrival never matters: the same objects make the same rows, identity numbers apart, and those are allocated
once and read back from the stream. An event marks what it makes stale; rows are brought up to date when somebody asks.

Deliberately absent: Leader, NodeRow and Revision rows (the publisher's), NATS, files, clocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from schemas import wire
from schemas.policy import IdentityRow, SourceRow
from schemas.status import Problem
from schemas.terms import IdentityId, Tier
from services.controller.complaints import Complaints
from services.controller.endpoints import Endpoints
from services.controller.facts import Facts
from services.controller.keys import LabelKeys
from services.controller.policy import frontends
from services.controller.policy.compile import BUDGETS
from services.controller.policy.defaults import make_config
from services.controller.policy.diff import RowChange
from services.controller.policy.identity import Identities
from services.controller.policy.model import (
    DNS_BACKENDS_MAX,
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
from services.controller.policy.parse import Parsed, identify, parse_isolation, parse_object, read_uid
from services.controller.policy.quota import PrefixQuotas
from services.controller.policy.resolvers import Trusted, find_trusted
from services.controller.policy_status import Standing
from services.controller.rows import RowStore
from services.controller.rulings import Rulings
from services.controller.sources import POLICY_KINDS, SETTINGS_KIND, Accepted, Sources

LEFT_OUT, REFUSED_FOR_ALL = "left out of some pods' rules; they stay isolated", "refused for all pods"
WITHOUT_RULES = "its rules are left out; its pods stay isolated"
UNSEEN = "cannot be read, and may have changed or gone since: its last good version stays in force"
AUDITED = "; under audit: nothing is isolated or denied by it"


class State:
    """Everything the controller wants to be true. ``parity``: of the stream's epoch, see ``schemas.policy.Leader``."""

    def __init__(self, parity: int = 0) -> None:
        self._store = RowStore()
        self._identities = Identities(parity)
        self._facts = Facts(self._store, self._identities)
        self._rulings = Rulings(self._facts)
        self._quotas = PrefixQuotas()
        self._endpoints = Endpoints(self._store, self._facts, self._rulings)
        self._sources = Sources(self._store)
        self._complaints = Complaints()
        self._settings: dict[PolicyKey, Settings] = {}
        self._keys = LabelKeys()
        self._is_config_stale = True
        self._are_names_stale = True
        self._renumbered: set[tuple[NamedPort, str]] = set()
        self._trusted = Trusted()

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
    def trusted(self) -> Trusted:
        """Whose DNS answers count."""
        self._write()
        return self._trusted

    @property
    def policies(self) -> list[Policy]:
        """The policies in force, last good versions and stand-ins of refused ones included; unordered.

        Those that do not fit are among them, whole.
        """
        return [self._quotas.whole(each) for each in self._rulings.policies.values()]

    def rows(self) -> dict[str, bytes]:
        """All wanted rows: subject -> body. A copy."""
        self._write()
        return self._store.rows

    def changes(self) -> list[RowChange]:
        """What changed since the last call, in an order that is safe at every prefix."""
        self._write()
        return self._store.take_changes()

    def problems(self) -> list[Problem]:
        """What is wrong with present objects, and which policies do not fit."""
        self._write()
        left_out, refused = self._endpoints.left_out, self._rulings.unfit()
        found = [self._word_overflow(key, LEFT_OUT) for key in left_out]
        found += [self._word_overflow(key, REFUSED_FOR_ALL) for key in refused]
        found += [self._word_quota(key) for key in sorted(self._quotas.left_out)]
        return self._complaints.list() + found + self._word_untrusted()

    def standings(self, keys: Iterable[PolicyKey]) -> dict[PolicyKey, Standing]:
        """What became of these policies."""
        self._write()
        nodes, left_out = self._endpoints.nodes_by_policy(), set(self._endpoints.left_out)
        unfit = set(self._rulings.unfit())
        found = {}
        for key in keys:
            policy, problems = self._rulings.policies.get(key), self._complaints.of_object(key)
            if key in left_out:
                problems += (self._word_overflow(key, LEFT_OUT),)
            if key in unfit:
                problems += (self._word_overflow(key, REFUSED_FOR_ALL),)
            if key in self._quotas.left_out:
                problems += (self._word_quota(key),)
            generation = policy.generation if policy is not None else None
            is_audited = policy is not None and policy.is_audited
            governed = frozenset(nodes.get(key, ()))
            found[key] = Standing(problems, generation, governed, is_audited, not self.settings.config.enforce)
        return found

    # -- events -------------------------------------------------------------------------------------------------------

    def upsert(self, obj: Any, file: str = "") -> list[Problem]:
        """Take an object's present version -> what is wrong with it. Refused: the last good version stays in force."""
        parsed, problems = parse_object(obj, file=file)
        key = identify(obj)
        if key is None:
            return problems
        self._sources.see(key)
        self._complaints.renew(key, problems, file)
        if isinstance(parsed, Policy):
            self._accept(key, parsed, obj["spec"])
        elif isinstance(parsed, Settings):
            self._accept(key, parsed, obj.get("data") or {})
        elif isinstance(parsed, NodeClass):
            self._accept(key, parsed, obj.get("spec"))
        elif parsed is not None:
            self._put_fact(parsed)
        elif any(problem.severity == "error" for problem in problems):
            self._refuse(key, obj)
        return problems

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """An object is gone. ``kind`` as in ``parse.identify``: a ``PolicyKind`` value, or the Kubernetes kind."""
        key = (kind, namespace, name)
        self._complaints.drop(key)
        self._forget(key)

    def _forget(self, key: PolicyKey) -> None:
        """Nothing that was known under this key is in force any more."""
        kind, namespace, name = key
        self._sources.drop(key)
        if kind in POLICY_KINDS:
            self._quotas.drop(key)
            self._rulings.drop(key)
            self._are_names_stale = True
        elif kind == SETTINGS_KIND:
            self._drop_settings(key)
        else:
            self._drop_fact(kind, (namespace, name))

    def report_file(self, file: str, problems: Iterable[Problem]) -> None:
        """Replace what is wrong with a whole file; nothing any more if empty."""
        self._complaints.renew_file(file, problems)

    def restore(self, rows: Mapping[str, bytes]) -> None:
        """Read back what a former controller published, removals (empty bodies) included. Call first, once.

        Taken are identity numbers, the label keys they tell apart, and the last good specs; everything else follows
        from the objects. Rows that do not decode are passed over: they will be replaced.
        """
        for subject, body in rows.items():
            try:
                self._restore_row(subject, body)
            except wire.WireError:
                continue
        self._facts.name_labels(self._keys.told)
        self._are_names_stale = True

    def adopt_unseen(self, kinds: Collection[str]) -> list[PolicyKey]:
        """Put the restored last good versions in force, of these kinds, that no object has replaced; -> their keys.

        For a start at which some source could not be read whole: what is unreadable is not gone. Each is a problem
        until its object is seen, or known to be gone.
        """
        adopted = [key for key in self._sources.unseen(kinds) if self._revive(key)]
        for key in adopted:
            self._complaints.add(key, "", UNSEEN, severity="warning")
        return adopted

    def forget_unseen(self) -> None:
        """Every present object has been told, and what is doubted is adopted: what else was restored is gone.

        A later object of its name is another one, whose pods no former spec may open.
        """
        self._sources.forget_restored()

    # -- what is remembered -------------------------------------------------------------------------------------------

    def _accept(self, key: PolicyKey, parsed: Accepted, spec: Any) -> None:
        if isinstance(parsed, Policy):
            self._put_policy(parsed)
        elif isinstance(parsed, Settings):
            self._put_settings(key, parsed)
        else:
            self._put_fact(parsed)
        try:
            self._sources.accept(key, parsed, spec)
        except wire.WireError as error:
            message = f"in force, but too large to be remembered across a restart: {error}"
            self._complaints.add(key, "spec", message, severity="warning")

    def _refuse(self, key: PolicyKey, obj: Any) -> None:
        """Keep what is in force; else what the stream remembers; else isolate the pods, if they can be told."""
        if self._sources.is_of_another(key, read_uid(obj)):
            self._forget(key)
        elif self._sources.is_accepted(key) or self._revive(key):
            return
        stand_in = parse_isolation(obj)
        if stand_in is not None:
            self._put_policy(stand_in)
            as_what = "count as isolated by a policy under audit" if stand_in.is_audited else "are isolated"
            self._complaints.add(key, "spec", f"its pods {as_what} until it can be read", severity="warning")

    def _revive(self, key: PolicyKey) -> bool:
        """Put a restored last good version in force; False if there is none."""
        revived = self._sources.revive(key)
        if revived is None:
            return False
        self._accept(key, *revived)
        return True

    def _put_policy(self, policy: Policy) -> None:
        in_force = self._quotas.put(policy)
        if self._rulings.policies.get(policy.key) != in_force:
            self._rulings.put(in_force)
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
            self._touch_nodes()

    def _restore_row(self, subject: str, body: bytes) -> None:
        prefix, _, token = subject.rpartition(".")
        if prefix == "yett.policy.identity" and token.isdecimal():
            row = wire.decode(subject, body) if body else None
            identity = row if isinstance(row, IdentityRow) else None
            self._identities.restore(IdentityId(int(token)), identity)
            if identity is not None:
                self._keys.restore(identity)
        elif body and subject.startswith("yett.policy.source."):
            source = wire.decode(subject, body)
            if isinstance(source, SourceRow):
                self._sources.restore(source)

    # -- facts --------------------------------------------------------------------------------------------------------

    def _put_fact(self, fact: Parsed) -> None:
        if isinstance(fact, Pod):
            self._note_pod(fact.key)
            self._facts.put_pod(fact)
            self._note_pod(fact.key)
        elif isinstance(fact, Namespace):
            self._facts.put_namespace(fact)
            self._rulings.relabel(fact.name)
            self._facts.touched.add_all(self._facts.pods_in(fact.name))
        elif isinstance(fact, Node):
            self._facts.put_node(fact)
            self._is_config_stale = True
        elif isinstance(fact, NodeClass):
            self._facts.world.node_classes[fact.name] = fact
            self._touch_nodes()
        elif isinstance(fact, Service):
            self._facts.put_service(fact)
            self._note_service(fact.key)
        elif isinstance(fact, EndpointSlice):
            self._note_slice(fact.key)
            self._facts.put_slice(fact)
            self._note_slice(fact.key)

    def _drop_fact(self, kind: str, key: ObjectKey) -> None:
        if kind == "Pod":
            self._note_pod(key)
            self._facts.drop_pod(key)
        elif kind == "Namespace":
            self._facts.drop_namespace(key[1])
            self._rulings.relabel(key[1])
            self._facts.touched.add_all(self._facts.pods_in(key[1]))
        elif kind == "Node":
            self._facts.drop_node(key[1])
            self._is_config_stale = True
        elif kind == "NodeClass":
            self._facts.world.node_classes.pop(key[1], None)
            self._touch_nodes()
        elif kind == "Service":
            self._facts.drop_service(key)
            self._note_service(key)
        elif kind == "EndpointSlice":
            self._note_slice(key)
            self._facts.drop_slice(key)

    def _note_pod(self, key: ObjectKey) -> None:
        """A pod comes, changes or goes: its named ports may stand for something else now, and it may answer DNS."""
        pod = self._facts.world.pods.get(key)
        if pod is None:
            return
        self._renumbered |= {(port, pod.namespace) for port in pod.named_ports()}
        service = self._dns_service()
        if service is not None and frontends.selects(service, pod):
            self._is_config_stale = True

    def _note_slice(self, key: ObjectKey) -> None:
        """A slice comes, changes or goes: it may say who answers DNS."""
        each = self._facts.world.slices.get(key)
        if each is not None:
            self._note_service((each.namespace, each.service))

    def _note_service(self, key: ObjectKey) -> None:
        """A Service, or what is behind it, comes, changes or goes."""
        if key == self.settings.dns_service:
            self._is_config_stale = True

    def _dns_service(self) -> Service | None:
        return self._facts.world.services.get(self.settings.dns_service)

    def _touch_nodes(self) -> None:
        self._is_config_stale = True
        self._facts.touched.add_all(self._facts.world.pods.keys())

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        """Bring all rows up to date, facts before what refers to them."""
        for policy in self._quotas.settle(self.settings):
            self._rulings.put(policy)
            self._are_names_stale = True
        if self._renumbered:
            self._rulings.renumber(self._renumbered)
            self._renumbered.clear()
        if self._are_names_stale:
            self._are_names_stale = False
            self._facts.name_labels(self._keys.advance(self._rulings.named()))
        self._facts.write_rows()
        self._endpoints.write_rows(self.settings)
        if self._is_config_stale:
            self._is_config_stale = False
            self._write_config()

    def _write_config(self) -> None:
        service = self._dns_service()
        slices, pods = self._facts.backing(service) if service is not None else ([], [])
        self._trusted = find_trusted(self.settings, service, slices, pods)
        config = make_config(self.settings, self._facts.world, self._trusted.resolvers)
        self._store.put(wire.SUBJECT_CONFIG, wire.encode(config))

    def _word_untrusted(self) -> list[Problem]:
        if not self._trusted.left_out:
            return []
        message = (
            f"{self._trusted.left_out} of its backends' addresses and ports are more than the {DNS_BACKENDS_MAX} that"
            " are trusted: what they answer to who asks them directly teaches nothing"
        )
        key = ("Service", *self.settings.dns_service)
        return [self._complaints.word(key, "spec.ports", message, severity="warning")]

    def _word_overflow(self, key: PolicyKey, consequence: str) -> Problem:
        policy = self._rulings.policies[key]
        room = f"{BUDGETS[policy.tier]} rules of the {Tier(policy.tier).name} tier"
        message = f"does not fit into the {room}: {consequence}{AUDITED if policy.is_audited else ''}"
        return self._complaints.word(key, "spec", message)

    def _word_quota(self, key: PolicyKey) -> Problem:
        settings, policy = self.settings, self._rulings.policies[key]
        message = (
            f"does not fit into the {settings.prefixes_per_namespace} prefixes of a namespace, or the"
            f" {settings.prefixes_of_namespaces} of all: {WITHOUT_RULES}{AUDITED if policy.is_audited else ''}"
        )
        return self._complaints.word(key, "spec", message)
