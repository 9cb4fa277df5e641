"""Reports of nodes -> what is kept of each rule and pod. Merging twice, late or by two controllers changes nothing.

Rules of this module: of one node and epoch the larger number stands; a later epoch adds to what was before; a node that
was silent for ``keep_seconds`` is folded into one number. Of a pod the newest report stands, with those contacts of
earlier epochs that it does not know.

Pure. Deliberately absent: NATS, who leads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from schemas.policy import Labels
from schemas.usage import (
    Contact,
    NodeCount,
    NodeUsage,
    PeerKind,
    PodUsage,
    RuleCount,
    RuleUsage,
    UsageReport,
    key_of,
)

CONTACTS_MAX = 400
GENERATED_LABELS = frozenset(
    {
        "pod-template-hash",
        "controller-revision-hash",
        "pod-template-generation",
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
        "batch.kubernetes.io/controller-uid",
        "batch.kubernetes.io/job-name",
        "batch.kubernetes.io/job-completion-index",
        "controller-uid",
        "job-name",
    }
)
"""Labels that a controller of Kubernetes' own gives to one pod or one generation of pods."""

FindLabels = Callable[[PeerKind, str], Labels | None]
"""Of a pod, or of the pods behind a Service, by namespace/name; None where it is not known (any more)."""


def drop_generated(labels: Mapping[str, str]) -> Labels:
    """The labels that a pod's owner gave all its pods."""
    return {key: value for key, value in sorted(labels.items()) if key not in GENERATED_LABELS}


def merge_rule(
    before: RuleUsage | None, report: UsageReport, rule: RuleCount, *, uid: str, keep_seconds: int
) -> RuleUsage:
    """What is kept of a rule after a node told of it."""
    if before is None:
        before = RuleUsage(kind=rule.kind, namespace=rule.namespace, name=rule.name, uid=uid, hash=rule.hash)
    nodes = dict(before.nodes)
    nodes[report.node] = _merge_count(nodes.get(report.node), report, rule)
    silent = [node for node, one in nodes.items() if one.at + keep_seconds < report.at]
    gone = before.gone + sum(nodes[node].flows + nodes[node].before for node in silent)
    nodes = {node: one for node, one in nodes.items() if node not in silent}
    return msgspec.structs.replace(
        before,
        rule=rule.rule,
        nodes=nodes,
        gone=gone,
        first=min(filter(None, (before.first, rule.first)), default=0),
        last=max(before.last, rule.last),
    )


def _merge_count(before: NodeCount | None, report: UsageReport, rule: RuleCount) -> NodeCount:
    now = NodeCount(epoch=report.epoch, flows=rule.flows, first=rule.first, last=rule.last, at=report.at)
    if before is None:
        return now
    if before.epoch > report.epoch:
        return before
    first, last, at = min(before.first, now.first), max(before.last, now.last), max(before.at, now.at)
    if before.epoch < report.epoch:
        return msgspec.structs.replace(now, before=before.before + before.flows, first=first, last=last, at=at)
    return msgspec.structs.replace(before, flows=max(before.flows, now.flows), first=first, last=last, at=at)


def merge_pod(before: PodUsage | None, pod: PodUsage, find_labels: FindLabels) -> PodUsage:
    """What is kept of a pod after its node told of it. Labels that were known once stay."""
    if before is not None and before.uid == pod.uid:
        if (before.epoch, before.at) > (pod.epoch, pod.at):
            return before
        older = [each for each in before.contacts if each.last < pod.since]
    elif before is not None and before.at > pod.at:
        return before
    else:
        before, older = None, []
    known = {key_of(each): each for each in (before.contacts if before else ())}
    told = [_label(each, known.get(key_of(each)), find_labels) for each in pod.contacts]
    keys = {key_of(each) for each in told}
    merged = [*told, *(each for each in older if key_of(each) not in keys)]
    labels = find_labels(PeerKind.POD, f"{pod.namespace}/{pod.pod}")
    return msgspec.structs.replace(
        pod,
        since=min(pod.since, before.since) if before else pod.since,
        contacts=tuple(sorted(merged, key=lambda each: -each.last)[:CONTACTS_MAX]),
        dropped=pod.dropped + max(len(merged) - CONTACTS_MAX, 0),
        labels=drop_generated(labels) if labels is not None else before.labels if before else {},
        labels_known=labels is not None or (before is not None and before.labels_known),
    )


def _label(contact: Contact, before: Contact | None, find_labels: FindLabels) -> Contact:
    if contact.kind not in (PeerKind.POD, PeerKind.SERVICE):
        return contact
    labels = find_labels(contact.kind, contact.peer)
    if labels is not None:
        return msgspec.structs.replace(contact, labels=drop_generated(labels), labels_known=True)
    if before is not None and before.labels_known:
        return msgspec.structs.replace(contact, labels=before.labels, labels_known=True)
    return contact


def merge_node(before: NodeUsage | None, report: UsageReport) -> NodeUsage:
    """That a node counts, and since when without a gap that it does not know of."""
    now = NodeUsage(node=report.node, epoch=report.epoch, since=report.since, at=report.at)
    if before is None or (before.epoch, before.at) <= (now.epoch, now.at):
        return now
    return before
