"""What Yett stands on, checked in order: facts in, findings out. For the first that fails, the next command to run.

Each check looks at facts that somebody gathered (``examine``) and says fine, wrong, or that it cannot be told because
an earlier one failed or nobody looked. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from schemas.policy import Config
from schemas.status import FOREIGN_ENFORCER, FORGED_PACKETS, STALE_SINCE, AgentStatus, ControllerStatus
from schemas.terms import Default

NAMED = 5
"""Nodes and objects that a finding lists."""
KUBECTL_AGENTS = "kubectl get pods -n yett-system -l app.kubernetes.io/component=agent -o wide"
LOGS_CONTROLLER = "kubectl logs -n yett-system deployment/yett-controller"


class State(StrEnum):
    """Of a check. ``unknown``: what it needs was not looked at, or failed before."""

    FINE = "fine"
    WRONG = "wrong"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """``command``: what to run next where it is wrong."""

    check: str
    state: State
    message: str
    command: str = ""


@dataclass(frozen=True, slots=True)
class Here:
    """The node that the command runs on. ``bpf``: why programs cannot be loaded, empty if they can."""

    bpf: str
    pin_root: str
    is_bpffs: bool
    is_pinned: bool


@dataclass(frozen=True, slots=True)
class Kube:
    """The API server. ``problem``: why it cannot be asked. ``definitions``: kind -> whose, where it is defined."""

    problem: str = ""
    nodes: tuple[str, ...] = ()
    definitions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Facts:
    """``bus``, ``jetstream``: why they cannot be used. None where nobody looked or nothing answered."""

    here: Here | None = None
    bus: str = ""
    version: str = ""
    jetstream: str = ""
    kube: Kube | None = None
    controller: ControllerStatus | None = None
    config: Config | None = None
    patterns: int = 0
    agents: Mapping[str, AgentStatus] = field(default_factory=dict)


def diagnose(facts: Facts) -> list[Finding]:
    """Every check's finding, in order."""
    return [check(facts) for check in CHECKS]


def find_next(findings: Iterable[Finding]) -> Finding | None:
    """The first that is wrong; None if all is fine."""
    return next((one for one in findings if one.state is State.WRONG), None)


def _fine(check: str, message: str) -> Finding:
    return Finding(check, State.FINE, message)


def _wrong(check: str, message: str, command: str) -> Finding:
    return Finding(check, State.WRONG, message, command)


def _unknown(check: str, message: str) -> Finding:
    return Finding(check, State.UNKNOWN, message)


def check_bpf(facts: Facts) -> Finding:
    here = facts.here
    if here is None:
        return _unknown("bpf", "not looked at: run it on a node as root, with --here")
    if here.bpf:
        return _wrong("bpf", here.bpf, "zgrep CONFIG_BPF_SYSCALL /proc/config.gz; id -u")
    if not here.is_bpffs:
        command = "mount -t bpf bpf /sys/fs/bpf"
        return _wrong("bpf", f"{here.pin_root} is on no bpf file system: nothing would outlive the agent", command)
    if not here.is_pinned:
        return _wrong("bpf", f"nothing is pinned in {here.pin_root}: no agent has run here", KUBECTL_AGENTS)
    return _fine("bpf", f"programs can be loaded, and are pinned in {here.pin_root}; BTF is not needed")


def check_nats(facts: Facts) -> Finding:
    if facts.bus:
        return _wrong("nats", facts.bus, "kubectl get pods -n yett-system -l app.kubernetes.io/component=nats")
    return _fine("nats", f"NATS {facts.version} answers")


def check_jetstream(facts: Facts) -> Finding:
    if facts.bus:
        return _unknown("jetstream", "no NATS")
    if facts.jetstream:
        return _wrong("jetstream", facts.jetstream, "kubectl logs -n yett-system statefulset/yett-nats")
    return _fine("jetstream", "the streams are there")


def check_kube(facts: Facts) -> Finding:
    if facts.kube is None:
        return _unknown("api-server", "not asked: --kube")
    if facts.kube.problem:
        return _wrong("api-server", facts.kube.problem, "kubectl auth can-i list nodes")
    return _fine("api-server", f"answers; {len(facts.kube.nodes)} nodes")


def check_definitions(facts: Facts) -> Finding:
    kube = facts.kube
    if kube is None or kube.problem:
        return _unknown("definitions", "no API server was asked")
    missing = sorted(kind for kind, owner in kube.definitions.items() if not owner)
    if missing:
        command = "kubectl apply --server-side -f deploy/crds"
        return _wrong("definitions", f"{', '.join(missing)} cannot be applied: not defined", command)
    said = "; ".join(f"{kind}: {owner}" for kind, owner in sorted(kube.definitions.items()))
    return _fine("definitions", said)


def check_controller(facts: Facts) -> Finding:
    if facts.bus:
        return _unknown("controller", "no NATS")
    if facts.controller is None:
        return _wrong("controller", "no controller answers as the leader", LOGS_CONTROLLER)
    errors = [one for one in facts.controller.problems if one.severity == "error"]
    if errors:
        names = _list(one.object for one in errors)
        return _wrong("controller", f"refused: {names}", "yett status")
    return _fine("controller", f"{facts.controller.holder} leads, revision {facts.controller.revision}")


def check_source(facts: Facts) -> Finding:
    """What the leader reads is the present."""
    if facts.controller is None:
        return _unknown("source", "no controller answers as the leader")
    stale = [one for one in facts.controller.problems if one.message.startswith(STALE_SINCE)]
    if not stale:
        return _fine("source", "the leader hears all that it reads")
    first = min(stale, key=lambda one: one.message)  # that begins with the instant
    # Whoever asked the API server, and had an answer, looks for the fault on the controller's side.
    is_answering = facts.kube is not None and not facts.kube.problem
    command = LOGS_CONTROLLER if is_answering else "kubectl get --raw '/readyz?verbose'"
    return _wrong("source", f"{first.message} ({_list(one.object for one in stale)})", command)


def check_switch(facts: Facts) -> Finding:
    if facts.config is None:
        return _unknown("switch", "no settings have been published")
    config = facts.config
    others = Counter(default.name.lower() for default in config.node_defaults.values())
    more = "".join(f", {count} nodes {default}" for default, count in sorted(others.items()))
    said = f"default {config.default.name.lower()}{more}"
    off = sorted(name for name, one in facts.agents.items() if not one.enforcing)
    if not config.enforce or off:
        where = _list(off) or "no node that is heard yet"
        command = """kubectl patch configmap yett -n yett-system -p '{"data":{"enforce":"true"}}'"""
        return _wrong("switch", f"enforce is off, nothing is enforced by policy: {where}; {said}", command)
    if config.default is Default.AUDIT:
        return _fine("switch", f"{said}: what nothing decides passes, and is told")
    return _fine("switch", said)


def check_dns(facts: Facts) -> Finding:
    config = facts.config
    if config is None:
        return _unknown("dns", "no settings have been published")
    own = {name: one.resolvers for name, one in facts.agents.items() if one.resolvers}
    lacking = sorted(facts.agents.keys() - own.keys())
    if not config.resolvers and (lacking or not own):
        where = f" on {_list(lacking)}" if own else ""
        message = f"no trusted resolver is known{where}: no name is ever learned"
        return _wrong("dns", message, "kubectl get service -n kube-system kube-dns")
    if facts.patterns and not config.dns_implicit:
        message = "dns-implicit is off and domain rules are in force: their pods need a rule of their own for DNS"
        return _wrong("dns", message, "yett check")
    distrusted = sorted({one.message for agent in facts.agents.values() for one in agent.problems if _is_dns(one.path)})
    if distrusted:
        return _wrong("dns", _list(distrusted), "kubectl get services -A -o wide")
    trusted = _list(f"{one.address}:{one.port}" for one in config.resolvers)
    if own:
        addresses = ", ".join(sorted({address for one in own.values() for address in one}))
        cache = f"the node's own cache ({addresses}) on {len(own)} of {len(facts.agents)} nodes"
        trusted = f"{trusted}, {cache}" if config.resolvers else cache
    if forged := sorted(name for name, one in facts.agents.items() if one.counters.get(FORGED_PACKETS)):
        trusted += f"; dropped on {_list(forged)}: packets from elsewhere that bear such an address"
    return _fine("dns", f"trusted: {trusted}")


def check_agents(facts: Facts) -> Finding:
    if facts.controller is None:
        return _unknown("agents", "no controller, which knows the nodes")
    nodes = set(facts.controller.nodes) | set(facts.kube.nodes if facts.kube else ())
    if silent := sorted(nodes - facts.agents.keys()):
        return _wrong("agents", f"no agent is heard on {_list(silent)}", KUBECTL_AGENTS)
    if not nodes:
        return _wrong("agents", "there is no node", KUBECTL_AGENTS)
    if torn := sorted(name for name, one in facts.agents.items() if one.torn or not one.revision):
        message = f"no proven state is in force on {_list(torn)}"
        return _wrong(
            "agents", message, "kubectl logs -n yett-system -l app.kubernetes.io/component=agent -c nodeagent"
        )
    if troubled := sorted(name for name, one in facts.agents.items() if _errors(one)):
        told = _list(f"{name}: {_errors(facts.agents[name])[0]}" for name in troubled)
        return _wrong("agents", told, "yett status")
    return _fine("agents", f"ready on all of {len(nodes)} nodes")


def check_builds(facts: Facts) -> Finding:
    """One build and one mode everywhere: else what a pod may do is a matter of where it runs."""
    if not facts.agents:
        return _unknown("builds", "no agent is heard")
    for what, told in (("build", {n: one.build for n, one in facts.agents.items()}), ("mode", _modes(facts.agents))):
        if len(kinds := Counter(told.values())) > 1:
            rare = min(kinds, key=lambda kind: kinds[kind])
            where = _list(sorted(name for name, kind in told.items() if kind == rare))
            command = "kubectl rollout status -n yett-system daemonset/yett-agent"
            return _wrong("builds", f"not of one {what}: {rare or 'unsaid'} on {where}", command)
    build, mode = next(iter(facts.agents.values())).build, next(iter(facts.agents.values())).mode
    return _fine("builds", f"build {build[:12] or 'unsaid'}, {mode} mode on all")


def check_foreign(facts: Facts) -> Finding:
    if not facts.agents:
        return _unknown(FOREIGN_ENFORCER, "no agent is heard")
    found = {name: {each.foreign for each in one.endpoints if each.foreign} for name, one in facts.agents.items()}
    told = [f"{name}: {'; '.join(sorted(programs))}" for name, programs in sorted(found.items()) if programs]
    if told:
        return _wrong(FOREIGN_ENFORCER, f"another program is first on {_list(told)}", "yett migrate")
    return _fine(FOREIGN_ENFORCER, "no other policy program is on a pod's interface")


def check_convergence(facts: Facts) -> Finding:
    if facts.controller is None or not facts.agents:
        return _unknown("convergence", "no controller, or no agent is heard")
    revision = facts.controller.revision
    reached = {name: max(number, _reached(facts, name)) for name, number in facts.controller.nodes.items()}
    behind = sorted(name for name, number in reached.items() if number < revision)
    if not revision or behind:
        return _wrong("convergence", f"revision {revision} is not enforced on {_list(behind) or 'any'}", "yett status")
    return _fine("convergence", f"revision {revision} is enforced on all of {len(reached)} nodes")


def check_signatures(facts: Facts) -> Finding:
    if not facts.agents:
        return _unknown("signatures", "no agent is heard")
    off = sorted(name for name, one in facts.agents.items() if one.signatures != "required")
    if off:
        message = f"any policy in the stream is believed on {_list(off)}"
        return _wrong("signatures", message, "yett keys init keys; yett keys env keys node NODE")
    return _fine("signatures", "every agent believes signed revisions alone")


CHECKS: tuple[Callable[[Facts], Finding], ...] = (
    check_bpf,
    check_nats,
    check_jetstream,
    check_kube,
    check_definitions,
    check_controller,
    check_source,
    check_switch,
    check_dns,
    check_agents,
    check_builds,
    check_foreign,
    check_convergence,
    check_signatures,
)


def _modes(agents: Mapping[str, AgentStatus]) -> dict[str, str]:
    return {name: one.mode for name, one in agents.items()}


def _errors(agent: AgentStatus) -> list[str]:
    """What is wrong on a node and is no other check's."""
    return [
        f"{one.object}: {one.message}"
        for one in agent.problems
        if one.severity == "error" and FOREIGN_ENFORCER not in one.object
    ]


def _reached(facts: Facts, name: str) -> int:
    agent = facts.agents.get(name)
    return int(agent.revision) if agent is not None else 0


def _is_dns(path: str) -> bool:
    return path == "resolvers"


def _list(names: Iterable[str]) -> str:
    """The first few, and how many more."""
    all_names = list(names)
    more = f" and {len(all_names) - NAMED} more" if len(all_names) > NAMED else ""
    return ", ".join(all_names[:NAMED]) + more
