"""Named ports: which numbers a name stands for on the pods that somebody selects.

By port, namespace and number, because most peers name one namespace and most pods of one name share one number: a
question ends at the first pod of each number that is selected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from schemas.policy import PodPeer
from schemas.selectors import matches
from services.controller.policy.model import Labels, NamedPort, ObjectKey, Pod
from services.controller.policy.select import namespaces_named

Bearers = dict[int, dict[ObjectKey, Labels]]
"""Number -> the pods that have it, with their labels."""


class NamedPorts:
    """The named ports of all governed pods."""

    def __init__(self) -> None:
        self._bearers: dict[NamedPort, dict[str, Bearers]] = {}

    def add(self, pod: Pod) -> None:
        for port, number in pod.named_ports().items():
            by_number = self._bearers.setdefault(port, {}).setdefault(pod.namespace, {})
            by_number.setdefault(number, {})[pod.key] = pod.labels

    def remove(self, pod: Pod) -> None:
        """A pod that was never added is fine."""
        for port, number in pod.named_ports().items():
            by_number = self._bearers.get(port, {}).get(pod.namespace, {})
            by_number.get(number, {}).pop(pod.key, None)
            if number in by_number and not by_number[number]:
                del by_number[number]

    def bearers(self, port: NamedPort) -> Iterator[ObjectKey]:
        """Every pod that has the port."""
        for by_number in self._bearers.get(port, {}).values():
            for pods in by_number.values():
                yield from pods

    def numbers(self, port: NamedPort, peers: Iterable[PodPeer], labels_of: Callable[[str], Labels]) -> set[int]:
        """The numbers that the port has on the pods that some peer selects. ``labels_of``: a namespace's labels."""
        places = self._bearers.get(port, {})
        found: set[int] = set()
        for peer in peers:
            named = namespaces_named(peer)
            for namespace in places if named is None else (name for name in named if name in places):
                if not matches(peer.namespaces, labels_of(namespace)):
                    continue
                for number, pods in places[namespace].items():
                    if number not in found and any(matches(peer.pods, labels) for labels in pods.values()):
                        found.add(number)
        return found
