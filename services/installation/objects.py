"""What an installation is made of, and what takes the programs off its nodes. Pure.

Rules of this module:

* Ours is what bears ``OUR_LABEL``; what lacks it was put there by somebody else and stays.
* The DaemonSet that detaches is made of the one that was installed: its image, node selection and tolerations are right
  whatever overlay, registry or patch they came from.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

Obj = dict[str, Any]

LABEL, VALUE = "app.kubernetes.io/part-of", "yett"
OUR_LABEL = f"{LABEL}={VALUE}"
AGENT, DETACH = "yett-agent", "yett-detach"
CONTAINER = "nodeagent"
VOLUMES = ("bpffs", "state", "tmp")
"""What ``detach`` needs of the agent's. No credential: they may be gone already."""
WAITING = "yett.dev/after-the-agent"
"""A node selector that no node has: until the agents have ended."""
DEFINITIONS = frozenset(
    f"{plural}.networking.k8s.aws" for plural in ("clusternetworkpolicies", "applicationnetworkpolicies")
)
"""The definitions in ``deploy/crds``."""
NAMESPACED = (
    *("deployments.apps", "statefulsets.apps", "daemonsets.apps"),
    *("poddisruptionbudgets.policy", "networkpolicies.networking.k8s.io", "services", "configmaps", "secrets"),
    *("persistentvolumeclaims", "rolebindings.rbac.authorization.k8s.io", "roles.rbac.authorization.k8s.io"),
    "serviceaccounts",
)
"""Kinds of ours, for a namespace that is not."""
CLUSTERWIDE = ("clusterrolebindings.rbac.authorization.k8s.io", "clusterroles.rbac.authorization.k8s.io")


def is_ours(obj: Obj) -> bool:
    """By its label."""
    return bool((obj["metadata"].get("labels") or {}).get(LABEL) == VALUE)


def make_detach(agent: Obj, *, is_waiting: bool) -> Obj:
    """A DaemonSet that runs ``detach`` to its end on every node of the agent's, then sleeps, so that a rollout that is
    complete is a cluster without our programs. ``is_waiting``: on no node yet.
    """
    spec = copy.deepcopy(agent["spec"]["template"]["spec"])
    (container,) = (each for each in spec["containers"] if each["name"] == CONTAINER)
    spec["initContainers"] = [_detaching(container)]
    spec["containers"] = [_sleeping(container)]
    spec["volumes"] = [each for each in spec["volumes"] if each["name"] in VOLUMES]
    spec["terminationGracePeriodSeconds"] = 1
    labels = {LABEL: VALUE, "app.kubernetes.io/component": "detach"}
    detach: Obj = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": DETACH, "namespace": agent["metadata"]["namespace"], "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "100%"}},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }
    return hold_back(detach) if is_waiting else detach


def hold_back(detach: Obj) -> Obj:
    """The same, on no node."""
    selector = {**_selector(detach), WAITING: "true"}
    return _with_selector(detach, selector)


def let_go(detach: Obj) -> Obj:
    """The same, on every node of the agent's."""
    return _with_selector(detach, {name: value for name, value in _selector(detach).items() if name != WAITING})


def find_definitions(definitions: Iterable[Obj]) -> list[str]:
    """Names of those that this installation brought: of our kinds, and labelled."""
    return sorted(
        each["metadata"]["name"] for each in definitions if each["metadata"]["name"] in DEFINITIONS and is_ours(each)
    )


def _detaching(container: Obj) -> Obj:
    environment = [each for each in container["env"] if "configMapKeyRef" not in each.get("valueFrom", {})]
    mounts = [each for each in container["volumeMounts"] if each["name"] in VOLUMES]
    kept = _keep(container, "image", "imagePullPolicy", "securityContext")
    return {**kept, "name": "detach", "args": ["detach"], "env": environment, "volumeMounts": mounts}


def _sleeping(container: Obj) -> Obj:
    kept = _keep(container, "image", "imagePullPolicy")
    context = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    return {**kept, "name": "done", "command": ["sleep", "infinity"], "securityContext": context}


def _keep(obj: Obj, *names: str) -> Obj:
    return {name: obj[name] for name in names if name in obj}


def _selector(detach: Obj) -> dict[str, str]:
    return dict(detach["spec"]["template"]["spec"].get("nodeSelector") or {})


def _with_selector(detach: Obj, selector: dict[str, str]) -> Obj:
    template = detach["spec"]["template"]
    spec = {**template["spec"], "nodeSelector": selector}
    return {**detach, "spec": {**detach["spec"], "template": {**template, "spec": spec}}}
