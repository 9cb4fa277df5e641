"""Takes Yett off a cluster: agents, then what they left in the kernels of the nodes, then everything of ours.

The order is what makes it safe to stop anywhere and to call again: the DaemonSet that detaches stands in the cluster,
on no node, before the agents' is deleted, so that the second call knows how the nodes are to be cleaned. Policy stays
in force until a node's programs are taken off, and nothing is left that denies once they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from services.installation.kubectl import KubectlError
from services.installation.objects import (
    AGENT,
    CLUSTERWIDE,
    DETACH,
    NAMESPACED,
    OUR_LABEL,
    find_definitions,
    is_ours,
    let_go,
    make_detach,
)

Obj = dict[str, Any]
Say = Callable[[str], None]


class Cluster(Protocol):
    """What ``kubectl.Kubectl`` does."""

    namespace: str

    def run(self, *arguments: str, given: str = "") -> str: ...
    def get(self, *arguments: str) -> Obj | None: ...
    def items(self, *arguments: str) -> list[Obj]: ...
    def apply(self, obj: Obj) -> None: ...
    def delete(self, what: Sequence[str], *, seconds: float) -> str: ...


def uninstall(cluster: Cluster, say: Say, *, purge: bool, seconds: float, leave_nodes: bool = False) -> None:
    """KubectlError with the step that failed. ``seconds``: for each step. ``leave_nodes``: go on where a node cannot be
    reached; it keeps its programs. ``purge``: our definitions too, and with them every policy of their kinds.
    """
    _clean_nodes(cluster, say, seconds, leave_nodes)
    _delete_namespaced(cluster, say, seconds)
    say("cluster roles")
    cluster.delete([",".join(CLUSTERWIDE), "--selector", OUR_LABEL], seconds=seconds)
    if purge:
        _purge(cluster, say, seconds)


def _clean_nodes(cluster: Cluster, say: Say, seconds: float, leave_nodes: bool) -> None:
    agent, detach = cluster.get("daemonset", AGENT), cluster.get("daemonset", DETACH)
    if agent is not None:
        detach = make_detach(agent, is_waiting=True)
        cluster.apply(detach)
        with _leaving(say, leave_nodes):
            say("agents")
            cluster.delete(["daemonset", AGENT], seconds=seconds)
    if detach is None:
        say("no agents, and no nodes to clean")
        return
    with _leaving(say, leave_nodes):
        say("programs, nftables, pins and state of every node")
        cluster.apply(_as_sent(let_go(detach)))
        cluster.run("rollout", "status", f"daemonset/{DETACH}", f"--timeout={seconds:.0f}s")


@contextlib.contextmanager
def _leaving(say: Say, leave_nodes: bool) -> Iterator[None]:
    """What fails because of a node is only said, where that was asked for."""
    try:
        yield
    except KubectlError as error:
        if not leave_nodes:
            raise KubectlError(f"nodes are not clean yet: {error}; call again, or give --leave-nodes") from error
        say(f"left as it is: {error}")


def _as_sent(obj: Obj) -> Obj:
    """Without what a server adds, so that it can be applied again."""
    kept = {name: obj["metadata"][name] for name in ("name", "namespace", "labels")}
    return {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "metadata": kept, "spec": obj["spec"]}


def _delete_namespaced(cluster: Cluster, say: Say, seconds: float) -> None:
    """The namespace where it is ours, else what in it is."""
    namespace = cluster.get("namespace", cluster.namespace)
    if namespace is None:
        return
    if is_ours(namespace):
        say(f"namespace {cluster.namespace}")
        cluster.delete(["namespace", cluster.namespace], seconds=seconds)
        return
    say(f"what is ours in namespace {cluster.namespace}, which is not")
    known = set(cluster.run("api-resources", "--namespaced", "--verbs=delete", "--output=name").split())
    kinds = [kind for kind in NAMESPACED if kind in known]
    cluster.delete([",".join(kinds), "--selector", OUR_LABEL], seconds=seconds)
    cluster.delete(["leases.coordination.k8s.io", "yett-controller"], seconds=seconds)


def _purge(cluster: Cluster, say: Say, seconds: float) -> None:
    ours = find_definitions(cluster.items("customresourcedefinitions"))
    for name in ours:
        count = len(cluster.items(name, "--all-namespaces"))
        say(f"definition {name}, and {count} policies of its kind")
        cluster.delete(["customresourcedefinition", name], seconds=seconds)
    if not ours:
        say("no definition of ours")
