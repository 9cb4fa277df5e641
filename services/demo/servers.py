"""The daemons around Yett: NATS, knot, unbound, web servers; each started in its namespace and waited for.

Rules of this module:

* A daemon is recorded as soon as it runs, logs to a file of the run, and is in a session of its own, so that Ctrl-C
  reaches the demo first and the demo ends its daemons in order.
* Ready means that it answered, not that time has passed.

Deliberately absent: the text of configurations (``zones``), Yett's own services (``pipeline``).
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import dns.exception
import dns.message
import dns.query
import dns.rdatatype

from services.demo import topology, zones
from services.demo.lab import Lab, in_namespace, run_command
from services.demo.netns import open_socket
from services.demo.state import DemoError, Process, Run, is_alive

NATS_PORT = 4222
NATS_MINIMUM = (2, 11)
"""Older servers ignore per-message TTL without an error, and removals and names would never end."""
READY_SECONDS = 10.0
LOG_SHOWN = 4000
"""Characters of a log that a failure quotes."""
POLL_SECONDS = 0.01


def find_nats_server() -> Path:
    """The server of this virtual environment: PATH may hold the distribution's, which is too old."""
    return Path(sys.prefix) / "bin" / "nats-server"


def check_nats_server(binary: Path) -> str:
    """The server's version; DemoError if there is none, or if it is older than ``NATS_MINIMUM``."""
    try:
        said = run_command([str(binary), "--version"])
    except FileNotFoundError as error:
        raise DemoError(f"{binary}: no NATS server there; make setup installs one") from error
    found = re.search(r"v?(\d+)\.(\d+)\.(\d+)", said)
    if found is None:
        raise DemoError(f"{binary} --version says {said.strip()!r}, which is no version")
    if tuple(map(int, found.groups()))[:2] < NATS_MINIMUM:
        raise DemoError(
            f"{binary} is nats-server {found[0]}; Yett needs {'.'.join(map(str, NATS_MINIMUM))} or newer, "
            "because older ones ignore per-message TTL without saying so"
        )
    return found[0]


def start_process(run: Run, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Process:
    """Starts and records a daemon; its output goes to ``logs/NAME.log`` of the run."""
    run.logs.mkdir(exist_ok=True)
    with (run.logs / f"{name}.log").open("ab") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment
        )
    _CHILDREN.append(child)
    return run.record_process(name, child.pid)


_CHILDREN: list[subprocess.Popen[bytes]] = []
"""Kept so that an ended child is reaped, and is never collected with a warning while it runs."""


def reap_children() -> None:
    """Collects the exit codes of ended children."""
    _CHILDREN[:] = [child for child in _CHILDREN if child.poll() is None]


def wait_until(run: Run, process: Process, is_ready: Callable[[], bool]) -> None:
    """Returns when ready; DemoError with the end of its log if it ended or took too long."""
    deadline = time.monotonic() + READY_SECONDS
    while not is_ready():
        if not is_alive(process) or time.monotonic() > deadline:
            fail_with_log(run, process)
        time.sleep(POLL_SECONDS)


def fail_with_log(run: Run, process: Process) -> NoReturn:
    """DemoError with the end of what the process said."""
    raise DemoError(f"{process.name} did not get ready:\n{read_log_end(run, process.name)}")


def read_log_end(run: Run, name: str) -> str:
    """The last of what the processes of that name said."""
    return (run.logs / f"{name}.log").read_text(errors="replace")[-LOG_SHOWN:]


def start_nats(lab: Lab, binary: Path) -> Process:
    """A JetStream server in the fabric, reachable from the host and from both nodes; the URL goes to the record."""
    run = lab.run
    return _start_nats(run, binary, run.fabric_address, NATS_PORT, namespace=lab.fabric)


def start_local_nats(run: Run, binary: Path) -> str:
    """A JetStream server on a free port of this host's loopback; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    _start_nats(run, binary, "127.0.0.1", port)
    return run.state.nats_url


def _start_nats(run: Run, binary: Path, address: str, port: int, *, namespace: str = "") -> Process:
    folder = run.folder / "nats"
    folder.mkdir(exist_ok=True)
    configuration = folder / "nats-server.conf"
    configuration.write_text(zones.render_nats(folder, address=address, port=port))
    command = [str(binary), "-c", str(configuration)]
    process = start_process(run, "nats", in_namespace(namespace, *command) if namespace else command)
    wait_until(run, process, lambda: connects(address, port))
    run.state.nats_url = f"nats://{address}:{port}"
    run.save()
    return process


def start_outside(lab: Lab) -> None:
    """The authoritative and the recursive name server and the web servers, in the fabric."""
    run = lab.run
    knot, unbound = run.folder / "knot", run.folder / "unbound"
    for folder in (knot, unbound):
        folder.mkdir(exist_ok=True)
    for zone in topology.ZONES:
        (knot / f"{zone}.zone").write_text(zones.render_zone(zone, topology.OUTSIDE))
    (knot / f"{topology.FRESH_ZONE}.zone").write_text(zones.render_zone(topology.FRESH_ZONE, {}))
    (knot / "knot.conf").write_text(zones.render_knot(knot, topology.ZONES))
    (unbound / "unbound.conf").write_text(zones.render_unbound(unbound))
    authority = start_process(run, "knot", in_namespace(lab.fabric, "knotd", "-c", str(knot / "knot.conf")))
    recursive = start_process(
        run, "unbound", in_namespace(lab.fabric, "unbound", "-d", "-p", "-c", str(unbound / "unbound.conf"))
    )
    web = start_web(lab, lab.fabric, "web", http=topology.WEB_PORTS, echo=(topology.ECHO_PORT,))
    wait_until(run, authority, lambda: _resolves(lab, topology.AUTHORITY))
    wait_until(run, recursive, lambda: _resolves(lab, topology.FABRIC_DNS))
    wait_until(run, web, lambda: connects(topology.FABRIC_DNS, topology.ECHO_PORT, lab.fabric))


def start_pod_servers(lab: Lab, pods: Sequence[topology.Pod]) -> None:
    """The web server of every pod that serves."""
    serving = [pod for pod in pods if pod.serves]
    started = [
        (pod, start_web(lab, lab.pod_namespace(pod), f"web-{pod.name}", http=(topology.POD_WEB_PORT,)))
        for pod in serving
    ]
    for pod, process in started:
        wait_until(
            lab.run,
            process,
            lambda pod=pod: connects("127.0.0.1", topology.POD_WEB_PORT, lab.pod_namespace(pod)),  # type: ignore[misc]
        )


def start_web(lab: Lab, namespace: str, name: str, *, http: Sequence[int], echo: Sequence[int] = ()) -> Process:
    """One web server process in a namespace."""
    command = [sys.executable, "-m", "services.demo.web", "--http", ",".join(map(str, http))]
    if echo:
        command += ["--echo", ",".join(map(str, echo))]
    return start_process(lab.run, name, in_namespace(namespace, *command))


def move_name(lab: Lab, name: str, addresses: tuple[str, str], ttl_seconds: int) -> None:
    """Gives a name other addresses at the authoritative server, in one transaction."""
    zone = next(zone for zone in topology.ZONES if name.endswith(f".{zone}"))
    changes = [["zone-begin", zone]]
    for kind, address in zip(("A", "AAAA"), addresses, strict=True):
        changes.append(["zone-unset", zone, f"{name}.", kind])
        changes.append(["zone-set", zone, f"{name}.", str(ttl_seconds), kind, address])
    changes.append(["zone-commit", zone])
    for change in changes:
        run_command(["knotc", "-s", str(lab.run.folder / "knot" / "knot.sock"), *change])


def connects(address: str, port: int, namespace: str = "") -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with open_socket(namespace, family, socket.SOCK_STREAM) as connection:
            connection.settimeout(1)
            connection.connect((address, port))
    except OSError:
        return False
    return True


def _resolves(lab: Lab, server: str) -> bool:
    query = dns.message.make_query("example.com", dns.rdatatype.A)
    with open_socket(lab.fabric, socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        try:
            return bool(dns.query.udp(query, server, timeout=0.2, sock=sock).answer)
        except (dns.exception.DNSException, OSError):
            return False
