"""Traffic that goes on while something is killed: every datagram is a new flow, hence a verdict of its own.

A verdict that changed shows as a datagram that arrived and must not have, or one that did not and must have.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass
from types import TracebackType

from services.demo.figures import SINK_PORT, open_sender
from services.demo.lab import Lab
from services.demo.netns import open_socket
from services.demo.topology import Pod

ROUND_SECONDS = 0.01
LATE_SECONDS = 0.5
"""A datagram that has not arrived half a second after the last was sent was dropped."""
DEADLINE_SECONDS = 20.0


@dataclass(frozen=True)
class Route:
    """From a pod to an address; whether policy lets it pass."""

    pod: Pod
    address: str
    is_allowed: bool


class Watch:
    """Sends on every route, round after round, from entering to leaving; then says what went wrong."""

    def __init__(self, lab: Lab, routes: list[Route]) -> None:
        self._lab = lab
        self._routes = routes
        self._sent: dict[int, Route] = {}
        self._arrived: set[int] = set()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._sink = open_socket(lab.fabric, socket.AF_INET, socket.SOCK_DGRAM)
        self._sink.bind(("0.0.0.0", SINK_PORT))
        self._sink.setblocking(False)
        self._thread = threading.Thread(target=self._work, name="watch")

    def __enter__(self) -> Watch:
        self._thread.start()
        self.await_rounds(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sink.close()
        if self._failure is not None and error is None:
            raise self._failure

    @property
    def count(self) -> int:
        """Datagrams sent so far."""
        return len(self._sent)

    def await_rounds(self, rounds: int) -> None:
        """Returns when every route was used ``rounds`` times more."""
        wanted = self.count + rounds * len(self._routes)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self.count < wanted:
            assert self._failure is None, self._failure
            assert time.monotonic() < deadline, "traffic came to a stop"
            self._stop.wait(ROUND_SECONDS)

    def find_changes(self) -> list[str]:
        """Verdicts that were not what policy says, by route; to be asked after leaving."""
        lost = Counter(
            route for number, route in self._sent.items() if route.is_allowed and number not in self._arrived
        )
        leaked = Counter(
            route for number, route in self._sent.items() if not route.is_allowed and number in self._arrived
        )
        return [
            f"{count} {what} from {route.pod.key} to {route.address}"
            for what, found in (("lost", lost), ("leaked", leaked))
            for route, count in found.items()
        ]

    def count_arrived(self) -> int:
        """Datagrams that came through."""
        return len(self._arrived)

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                self._send_round()
                self._receive(time.monotonic() + ROUND_SECONDS)
            self._receive(time.monotonic() + LATE_SECONDS)
        except BaseException as error:  # raised again in the test's own thread
            self._failure = error

    def _send_round(self) -> None:
        for route in self._routes:
            with open_sender(self._lab, route.pod) as sender:
                number = len(self._sent) + 1
                self._sent[number] = route
                sender.sendto(struct.pack("!Q", number), (route.address, SINK_PORT))

    def _receive(self, until: float) -> None:
        """What comes until then, and all that waits then: who gets no processor comes late to what was in time."""
        while True:
            self._sink.settimeout(max(until - time.monotonic(), 0))
            try:
                self._arrived.add(struct.unpack("!Q", self._sink.recv(64))[0])
            except (TimeoutError, BlockingIOError):
                return
