"""Real traffic from inside pods: dig and curl as processes, and connections that are kept.

Each command runs in the pod's network namespace; what it found out is returned as facts, not judged.
Deliberately absent: what was expected (``steps``), verdicts (``bus``), rows (``runner``).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

from services.demo import topology
from services.demo.lab import Lab, in_namespace
from services.demo.netns import open_socket
from services.demo.topology import Pod

CONNECT_SECONDS = 1.0
"""One SYN and, just not, its first retransmission (RFC 6298): what passes only at the second attempt is Blocked."""
ANSWER_SECONDS = 1
ANSWER_TRIES = 1
KINDS = ("A", "AAAA")
"""What a client asks for, one question a family."""
PARALLEL = 12
"""Commands at once; more only wait for the processors."""

CURL_REFUSED = 7
CURL_TIMEOUT = 28


@dataclass(frozen=True, slots=True)
class Reached:
    """One connection attempt. ``curl_exit``: 0 connected and answered, 28 no answer in time, 7 refused or no route."""

    address: str
    curl_exit: int

    @property
    def is_open(self) -> bool:
        """Connected, and an answer came."""
        return self.curl_exit == 0


class Traffic:
    """Probes out of the pods of one lab."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._slots = asyncio.Semaphore(PARALLEL)
        self._live: dict[str, socket.socket] = {}

    async def resolve(self, pod: Pod, name: str, kind: str = "A") -> list[str]:
        """Addresses that dig in the pod was told; empty if no answer came."""
        command = ("dig", f"@{topology.DNS_SERVICE}", f"+time={ANSWER_SECONDS}", f"+tries={ANSWER_TRIES}")
        _, output = await self._run(pod, *command, "+short", name, kind)
        return [line for line in output.split() if _is_address(line)]

    async def connect(self, pod: Pod, name: str, port: int, address: str) -> Reached:
        """curl from the pod to ``address``, as if ``name`` had resolved to it."""
        host, target = (_bracket(address), "") if _is_address(name) else (name, _bracket(address))
        resolved = ("--resolve", f"{host}:{port}:{target}") if target else ()
        code, _ = await self._run(
            pod,
            *("curl", "--silent", "--output", "/dev/null", "--noproxy", "*"),
            *("--connect-timeout", str(CONNECT_SECONDS), "--max-time", str(CONNECT_SECONDS + 1)),
            *resolved,
            f"http://{host}:{port}/",
        )
        return Reached(address, code)

    def open_live(self, pod: Pod, address: str, port: int) -> None:
        """A TCP connection out of the pod, kept until ``close``; OSError if it cannot be made."""
        connection = open_socket(self._lab.pod_namespace(pod), socket.AF_INET, socket.SOCK_STREAM)
        connection.settimeout(CONNECT_SECONDS)
        try:
            connection.connect((address, port))
        except OSError:
            connection.close()
            raise
        self._live[pod.key] = connection

    def use_live(self, pod: Pod) -> bool:
        """Whether a line through the pod's kept connection comes back within a second."""
        if pod.key not in self._live:
            return False
        connection = self._live[pod.key]
        line = f"{time.monotonic_ns()}\n".encode()
        received = b""
        try:
            connection.sendall(line)
            while not received.endswith(b"\n"):
                if not (part := connection.recv(len(line))):
                    return False
                received += part
        except OSError:
            return False
        return received == line

    def close(self) -> None:
        """Ends what was kept."""
        for connection in self._live.values():
            with contextlib.suppress(OSError):
                connection.close()
        self._live.clear()

    async def _run(self, pod: Pod, *command: str) -> tuple[int, str]:
        async with self._slots:
            process = await asyncio.create_subprocess_exec(
                *in_namespace(self._lab.pod_namespace(pod), *command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            try:
                output, _ = await process.communicate()
            finally:
                if process.returncode is None:
                    process.kill()
        return process.returncode or 0, output.decode(errors="replace")


def family_of(address: str) -> int:
    """4 or 6."""
    return 6 if ":" in address else 4


def pick_by_family(addresses: Sequence[str]) -> list[str]:
    """The first address of each family, IPv4 first."""
    chosen = {family_of(address): address for address in reversed(addresses)}
    return [chosen[family] for family in sorted(chosen)]


def _bracket(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _is_address(text: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, text)
            return True
    return False
