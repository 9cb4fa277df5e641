"""Namespaces, links, routes and kube-proxy: the two nodes, the fabric between them, and pods behind routed veths.

    host --- fabric (router, the outside world, DNS, NATS) --- node a --- pods
                                                          \\--- node b --- pods

A pod's link is as the routed CNIs make it: a veth whose host side lives in the node, a host route ``ADDRESS dev VETH``
per family, the pod's default route through 169.254.1.1 and fe80::1, forwarding on.

Rules of this module:

* Every namespace is recorded before it is made. Links die with their namespaces.
* Nothing is done inside the host's own network namespace but one veth, with an address of the benchmarking range.

Deliberately absent: daemons (``servers``), the words of Kubernetes (``objects``), enforcement (the services).
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from services.demo import topology
from services.demo.state import NETNS, NETNS_CONFIG, DemoError, Run
from services.demo.topology import NODES, Node, Pod, Service

UPLINK = "eth0"
"""A node's interface to the fabric."""
HOST_VETH_MAC = "02:00:00:00:00:01"
"""Every host-side veth has it, so that a pod's permanent entry for its gateway needs no look-up."""


def run_command(command: Sequence[str], *, given: str = "") -> str:
    """Standard output; DemoError with the command and its error output if it fails."""
    result = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise DemoError(f"{' '.join(command)}: {(result.stderr or result.stdout).strip()}")
    return result.stdout


def in_namespace(namespace: str, *command: str) -> list[str]:
    """The command inside the network namespace only: mounts, and with them bpffs, stay the host's.

    ``ip netns exec`` would mount a /sys of its own, without our pins.
    """
    return ["nsenter", f"--net={NETNS / namespace}", "--", *command]


class Lab:
    """The namespaces of one run. ``nodes``: those that are built."""

    def __init__(self, run: Run, nodes: Sequence[Node] = NODES) -> None:
        self.run = run
        self.nodes = tuple(nodes)
        self.pods: dict[str, Pod] = {}
        """Pods that exist, by ``namespace/name``."""

    @property
    def fabric(self) -> str:
        """The fabric's namespace."""
        return self.run.namespace("fabric")

    def node_namespace(self, node: Node) -> str:
        """A node's namespace."""
        return self.run.namespace(f"node-{node.key}")

    def pod_namespace(self, pod: Pod) -> str:
        """A pod's namespace."""
        return self.run.namespace(f"{pod.namespace}-{pod.name}")

    def build(self, pods: Iterable[Pod] = topology.PODS) -> None:
        """The fabric, the nodes, their Services and the given pods."""
        self._make_fabric()
        for node in self.nodes:
            self._make_node(node)
        for pod in pods:
            self.add_pod(pod)
        self.apply_services(topology.SERVICES)

    def add_pod(self, pod: Pod) -> None:
        """One more pod, as a CNI would: both ends configured before the host side comes up."""
        self.add_sandbox(pod)
        self.link_pod(pod)

    def add_sandbox(self, pod: Pod) -> None:
        """A pod's namespace, without a link yet."""
        namespace = self.pod_namespace(pod)
        self._make_namespace(namespace)
        self._write_resolver_configuration(namespace, pod)

    def link_pod(self, pod: Pod, *, ifindex: int = 0, knows_gateway6: bool = False) -> None:
        """The pod's link and routes. ``ifindex``: the number of the host's side, 0: the kernel's choice.

        ``knows_gateway6``: the pod need not ask for its gateway over IPv6 either.
        """
        namespace, node = self.pod_namespace(pod), self.node_namespace(pod.node)
        number = f"index {ifindex} " if ifindex else ""
        link = f"link add {pod.interface} {number}address {HOST_VETH_MAC} type veth"
        _batch(node, f"{link} peer name eth0 netns {namespace}")
        known = [_know_gateway(topology.POD_GATEWAY6)] if knows_gateway6 else []
        _batch(namespace, *known, *_pod_commands(pod))
        _batch(
            node,
            f"addr add {topology.POD_GATEWAY6}/64 dev {pod.interface} nodad",
            f"link set {pod.interface} up",
            f"route add {pod.address}/32 dev {pod.interface}",
            f"route add {pod.address6}/128 dev {pod.interface}",
        )
        if pod.node.answers_arp_for_gateway:
            _set_sysctls(node, {f"net/ipv4/conf/{pod.interface}/proxy_arp": "1"})
            _set_sysctls(node, {f"net/ipv4/neigh/{pod.interface}/proxy_delay": "0"})
        self.pods[pod.key] = pod

    def remove_pod(self, pod: Pod) -> None:
        """The pod's link and namespace are gone when it returns.

        A namespace that is deleted takes its links along, but later, and until then their names and numbers are taken.
        """
        link = ["ip", "-n", self.node_namespace(pod.node), "link", "delete", pod.interface]
        subprocess.run(link, check=False, capture_output=True)  # a test may have taken it away itself
        run_command(["ip", "netns", "delete", self.pod_namespace(pod)])
        del self.pods[pod.key]

    def apply_services(self, services: Iterable[Service]) -> None:
        """kube-proxy's work, on every node: ClusterIPs of ``services`` and of cluster DNS; replaces what was there."""
        rules = render_kube_proxy(services)
        for node in self.nodes:
            run_command(in_namespace(self.node_namespace(node), "nft", "-f", "-"), given=rules)

    def _make_namespace(self, namespace: str) -> None:
        self.run.record_namespace(namespace)
        run_command(["ip", "netns", "add", namespace])
        _set_sysctls(namespace, _SYSCTLS)
        _batch(namespace, "link set lo up")

    def _make_fabric(self) -> None:
        self._make_namespace(self.fabric)
        _set_sysctls(self.fabric, _FORWARDING)
        link = f"yett{self.run.state.slot}-host"
        run_command(
            ["ip", "link", "add", link, "type", "veth", "peer", "name", "host", "netns", str(NETNS / self.fabric)]
        )
        run_command(["ip", "addr", "add", f"{self.run.host_address}/30", "dev", link])
        run_command(["ip", "link", "set", link, "up"])
        local = (f"route add local {prefix} dev lo" for prefix in topology.LOCAL_RANGES)
        _batch(
            self.fabric,
            f"addr add {self.run.fabric_address}/30 dev host",
            "link set host up",
            f"addr add {topology.FABRIC_DNS}/32 dev lo",
            f"addr add {topology.AUTHORITY}/32 dev lo",
            f"addr add {topology.FABRIC_DNS6}/128 dev lo",
            *local,
        )

    def _make_node(self, node: Node) -> None:
        namespace, link = self.node_namespace(node), f"node-{node.key}"
        self._make_namespace(namespace)
        _set_sysctls(namespace, _FORWARDING)
        _batch(
            self.fabric,
            f"link add {link} type veth peer name {UPLINK} netns {namespace}",
            f"addr add {node.gateway}/24 dev {link}",
            f"addr add {node.gateway6}/64 dev {link} nodad",
            f"link set {link} up",
        )
        _batch(
            namespace,
            f"addr add {node.address}/24 dev {UPLINK}",
            f"addr add {node.address6}/64 dev {UPLINK} nodad",
            f"link set {UPLINK} up",
            f"route add default via {node.gateway}",
            f"route add ::/0 via {node.gateway6}",
        )
        _batch(
            self.fabric,
            f"route add {node.pod_cidr} via {node.address}",
            f"route add {node.pod_cidr6} via {node.address6}",
        )

    def _write_resolver_configuration(self, namespace: str, pod: Pod) -> None:
        """What ``ip netns exec`` binds over /etc/resolv.conf: a pod's, as kubelet writes it."""
        folder = NETNS_CONFIG / namespace
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "resolv.conf").write_text(
            f"nameserver {topology.DNS_SERVICE}\n"
            f"search {pod.namespace}.svc.cluster.local svc.cluster.local cluster.local\n"
            "options ndots:5 timeout:1 attempts:1\n"
        )


_SYSCTLS = {
    "net/ipv6/conf/all/disable_ipv6": "0",
    "net/ipv6/conf/default/disable_ipv6": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
}
_FORWARDING = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}


def _set_sysctls(namespace: str, values: dict[str, str]) -> None:
    """/proc/sys/net shows the network namespace of whoever reads or writes it."""
    script = "".join(f"echo {value} >/proc/sys/{key}\n" for key, value in values.items())
    run_command(in_namespace(namespace, "sh", "-e", "-c", script))


def _batch(namespace: str, *commands: str) -> None:
    """``ip`` commands in one namespace, in order, the first failure ends it."""
    run_command(["ip", "-n", namespace, "-batch", "-"], given="".join(f"{command}\n" for command in commands))


def _pod_commands(pod: Pod) -> list[str]:
    gateway = topology.POD_GATEWAY
    commands = [
        f"addr add {pod.address}/32 dev eth0",
        f"addr add {pod.address6}/128 dev eth0 nodad",
        "link set eth0 up",
        f"route add {gateway} dev eth0 scope link",
        f"route add default via {gateway} dev eth0",
        f"route add ::/0 via {topology.POD_GATEWAY6} dev eth0",
    ]
    if not pod.node.answers_arp_for_gateway:
        commands.append(_know_gateway(gateway))
    return commands


def _know_gateway(address: str) -> str:
    return f"neigh replace {address} lladdr {HOST_VETH_MAC} dev eth0 nud permanent"


def render_kube_proxy(services: Iterable[Service]) -> str:
    """nftables text: destination NAT of every ClusterIP and port, both families, one backend each."""
    rules = []
    for service in services:
        backend = topology.find_pod(service.backends[0])
        for family, address, target in _by_family(service.addresses, backend.addresses):
            rules.append(f"{family} daddr {address} tcp dport {service.port} dnat {family} to {target}:8080")
    for family, address, target in _by_family(
        (topology.DNS_SERVICE, topology.DNS_SERVICE6), (topology.FABRIC_DNS, topology.FABRIC_DNS6)
    ):
        rules.append(f"{family} daddr {address} meta l4proto {{ tcp, udp }} th dport 53 dnat {family} to {target}:53")
    body = "\n".join(f"    {rule}" for rule in rules)
    return (
        "table inet kube-proxy\ndelete table inet kube-proxy\ntable inet kube-proxy {\n"
        "  chain prerouting {\n    type nat hook prerouting priority dstnat; policy accept;\n"
        f"{body}\n  }}\n}}\n"
    )


def _by_family(addresses: tuple[str, str], targets: tuple[str, str]) -> list[tuple[str, str, str]]:
    return [("ip", addresses[0], targets[0]), ("ip6", addresses[1], f"[{targets[1]}]")]


def list_interfaces(namespace: str) -> list[str]:
    """Names of the interfaces in a namespace, without the part after ``@``."""
    lines = run_command(["ip", "-n", namespace, "-brief", "link"]).splitlines()
    return [line.split()[0].partition("@")[0] for line in lines]


def namespace_path(namespace: str) -> Path:
    """The file that setns(2) takes."""
    return NETNS / namespace
