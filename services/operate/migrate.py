"""From the managed service's enforcer to ours: what is there of it, our settings that mean the same, what to do next.

In an order in which no packet that policy denies has a way: ours is attached and judges behind theirs before theirs is
turned off. Nothing of theirs is touched by us. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from schemas.status import AgentStatus, ControllerStatus

TRUE, FALSE = "true", "false"
THEIR_CONFIG = ("kube-system", "amazon-vpc-cni")
THEIR_SWITCH = "enable-network-policy-controller"
THEIR_AGENT = ("kube-system", "aws-node", "aws-eks-nodeagent")
"""Namespace, DaemonSet, container."""
THEIR_FLAG = "--enable-network-policy"
JUDGED = frozenset({"enforced", "foreign"})
"""States of an interface behind which our programs and its pod's rulesets stand."""


class Progress(StrEnum):
    """Of a step. ``blocked``: not before the steps above it."""

    DONE = "done"
    TODO = "todo"
    BLOCKED = "blocked"


@dataclass(frozen=True, slots=True)
class Step:
    """``command``: what a person runs; empty where there is nothing to run."""

    name: str
    progress: Progress
    message: str
    command: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """``switch``, ``flag``: theirs, ``true``, ``false``, or empty without one. ``node_classes``: name -> default.

    ``endpoints``: their PolicyEndpoint objects. ``ours``: our ConfigMap's data, None without one.
    """

    switch: str = ""
    flag: str = ""
    node_classes: Mapping[str, str] = field(default_factory=dict)
    endpoints: int = 0
    ours: Mapping[str, str] | None = None
    controller: ControllerStatus | None = None
    agents: Mapping[str, AgentStatus] = field(default_factory=dict)

    @property
    def is_enforced(self) -> bool:
        """Whether the managed service enforces policy: its controller by its switch, its agents by their flag."""
        return self.switch == TRUE or self.flag == TRUE or bool(self.endpoints)


def want_settings(found: Found) -> dict[str, str]:
    """Our ConfigMap's data that means the same. What is set already stays, but that we enforce where they do; what is
    there is never switched off. NodeClasses need no word of ours: the controller reads them as they are."""
    enforce = FALSE if found.ours is None else found.ours.get("enforce", TRUE)
    return {"default": "allow", **(found.ours or {}), "enforce": TRUE if found.is_enforced else enforce}


def plan_steps(found: Found) -> list[Step]:
    """All steps in order; the first that is not done is the next."""
    steps: list[Step] = []
    for step in _steps(found):
        is_blocked = any(one.progress is not Progress.DONE for one in steps) and step.progress is Progress.TODO
        steps.append(Step(step.name, Progress.BLOCKED if is_blocked else step.progress, step.message, step.command))
    return steps


def _step(name: str, is_done: bool, message: str, command: str) -> Step:
    return Step(name, Progress.DONE if is_done else Progress.TODO, message, "" if is_done else command)


def _steps(found: Found) -> Iterator[Step]:
    wanted = want_settings(found)
    said = ", ".join(f"{key}: {value}" for key, value in sorted(wanted.items()))
    yield _step(
        "settings", dict(found.ours or {}) == wanted, f"ConfigMap yett-system/yett: {said}", "yett migrate --apply"
    )
    fault = find_unready(found)
    yield _step("ready", not fault, fault or "ours is attached and judges on every node", "yett doctor --kube")
    namespace, name = THEIR_CONFIG
    patch = f'kubectl patch configmap {name} -n {namespace} -p \'{{"data":{{"{THEIR_SWITCH}":"false"}}}}\''
    state = found.switch or "absent"
    yield _step("their-controller", found.switch != TRUE, f"{namespace}/{name} {THEIR_SWITCH}: {state}", patch)
    namespace, name, container = THEIR_AGENT
    update = "aws eks update-addon --addon-name vpc-cni --cluster-name CLUSTER --configuration-values "
    update += '\'{"enableNetworkPolicy":"false"}\''
    said = f"DaemonSet {namespace}/{name}, container {container}, {THEIR_FLAG}: {found.flag or 'absent'}"
    yield _step("their-agents", found.flag != TRUE, said, update)
    yield _filters(found)
    delete = "kubectl delete policyendpoints.networking.k8s.aws --all --all-namespaces"
    yield _step("their-objects", not found.endpoints, f"{found.endpoints} PolicyEndpoints", delete)


def _filters(found: Found) -> Step:
    """What their agents leave on interfaces lets packets through unasked, or drops them, until the pod is made anew."""
    left = {
        node: sorted(each.interface for each in one.endpoints if each.foreign) for node, one in found.agents.items()
    }
    told = [f"{node}: {', '.join(names)}" for node, names in sorted(left.items()) if names]
    devices = " ".join(sorted({name for names in left.values() for name in names}))
    # Theirs alone: priority 1. Ours has another, and goes on.
    command = f"for dev in {devices}; do for way in ingress egress; do tc filter del dev $dev $way prio 1; done; done"
    message = f"programs of others before ours on {'; '.join(told)}" if told else "no program of others is before ours"
    return _step("their-filters", not told, message, f"on each node: {command}")


def find_unready(found: Found) -> str:
    """Why theirs must not be turned off yet; empty if it may."""
    if found.controller is None or not found.controller.revision:
        return "no controller of ours leads"
    silent = sorted(found.controller.nodes.keys() - found.agents.keys())
    if silent or not found.agents:
        return f"no agent of ours is heard on {', '.join(silent) or 'any node'}"
    for name, one in sorted(found.agents.items()):
        if one.mode == "strict":
            return (
                f"{name} is in strict mode, which shuts an interface while another program is first: standard till then"
            )
        if one.torn or one.revision < found.controller.revision:
            return f"{name} has not come to revision {found.controller.revision}"
        if found.is_enforced and not one.enforcing:
            return f"enforce is off on {name}"
        if waiting := [each.interface for each in one.endpoints if each.state not in JUDGED]:
            return f"{name}: {', '.join(waiting)} not judged yet"
    return ""
