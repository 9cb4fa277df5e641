"""The switch ``enforce``, turned under traffic: off, all passes and the status says so; on, nothing denied does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.demo import objects
from services.demo.topology import Pod
from tests.e2e.onenode import ALLOWED, DENIED, PORT, OneNode, allow_egress, make_pod, one_node

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

POD = make_pod(10)
SETTINGS = {"default": "deny", "resolvers": "", "ttl-min": "30", "grace": "60"}
TURNS, DATAGRAMS = 5, 200


@pytest.fixture(scope="module")
def node() -> Iterator[OneNode]:
    with one_node() as made:
        made.start([POD])
        made.apply("10-allow.yaml", allow_egress("allow", f"{ALLOWED}/32"))
        yield made


def turn(node: OneNode, enforce: str) -> None:
    node.apply("00-config.yaml", objects.render([objects.make_config({**SETTINGS, "enforce": enforce})]))


def count_passed(node: OneNode, pod: Pod, address: str) -> int:
    """Of ``DATAGRAMS`` to an address, how many arrive; those that policy allows have time to."""
    seconds = 5.0 if address == ALLOWED else 0.2
    with node.listen() as listener, node.open(pod) as opened:
        for _ in range(DATAGRAMS):
            opened.sendto(b"x", (address, PORT))
        passed = 0
        while passed < DATAGRAMS and listener.wait(seconds):
            passed += sum(1 for _ in listener.receive())
        return passed


def test_off_passes_everything_and_says_so_and_on_is_in_force_at_once(node: OneNode) -> None:
    """Turned again and again: from the moment that the node says it enforces, of the datagrams that policy denies none
    passes, in flows that were open while it was off too; what policy allows passes all the time."""
    assert count_passed(node, POD, DENIED) == 0 and count_passed(node, POD, ALLOWED) == DATAGRAMS
    for _ in range(TURNS):
        with node.listen() as listener, node.open(POD) as kept:
            turn(node, "false")
            status = node.await_status(lambda one: not one.enforcing, "the switch is off")
            assert [one.object for one in status.problems] == ["ConfigMap yett"]
            assert "NOTHING IS ENFORCED" in status.problems[0].message
            for _ in range(DATAGRAMS):
                kept.sendto(b"x", (DENIED, PORT))
            passed = 0
            while passed < DATAGRAMS:
                assert listener.wait(5.0), f"only {passed} passed"
                passed += sum(1 for _ in listener.receive())
            turn(node, "true")
            assert not node.await_status(lambda one: one.enforcing, "the switch is on").problems
            for _ in range(DATAGRAMS):
                kept.sendto(b"x", (DENIED, PORT))
            assert not listener.wait(0.3), "a flow that was open goes on"
        assert count_passed(node, POD, DENIED) == 0
        assert count_passed(node, POD, ALLOWED) == DATAGRAMS


def test_no_packet_is_lost_and_none_passes_while_it_is_turned_on_from_on(node: OneNode) -> None:
    """A setting that is written as it is changes nothing: no open moment, no shut one."""
    with node.listen() as listener, node.open(POD) as denied, node.open(POD) as allowed:
        before = node.revision()
        node.folder.write("00-config.yaml", objects.render([objects.make_config({**SETTINGS, "enforce": "true"})]))
        for _ in range(DATAGRAMS):
            denied.sendto(b"denied", (DENIED, PORT))
            allowed.sendto(b"allowed", (ALLOWED, PORT))
        heard: list[bytes] = []
        while listener.wait(5.0 if len(heard) < DATAGRAMS else 0.3):
            heard += [data for _, data in listener.receive()]
        assert heard == [b"allowed"] * DATAGRAMS
        assert node.revision() == before
