"""From another's program to ours under traffic: at no moment passes what policy denies, and nothing allowed is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from services.demo.topology import Pod
from services.operate.migrate import Found, plan_steps
from tests.e2e.foreign import accept_all, add_filter, drop_destination, pinned
from tests.e2e.onenode import ALLOWED, DENIED, PORT, Listener, OneNode, allow_egress, make_pod, one_node, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

OLD, NEW = make_pod(10), make_pod(11)
OURS = {"default": "allow", "enforce": "true"}
THEIRS_ON = Found(switch="true", flag="true", ours=OURS)


@pytest.fixture
def node() -> Iterator[OneNode]:
    """With pods and a policy, and no agent of ours yet."""
    with one_node() as made:
        made.build([OLD, NEW], default="allow")
        made.folder.write("10-allow.yaml", allow_egress("allow", f"{ALLOWED}/32"))
        yield made


class Ear:
    """Everything that arrives, read as it comes: a buffer would overflow while an agent starts."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.heard: list[tuple[str, int]] = []

    def __enter__(self) -> Ear:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        """To the end of what waits once it is told to stop."""
        while self._listener.wait(0.2) or not self._over.is_set():
            self.heard += [(address, int(data)) for address, data in self._listener.receive()]


class Sender:
    """Datagrams to both addresses, one after the other, until it is told to stop; how many it sent to each."""

    def __init__(self, node: OneNode, pod: Pod) -> None:
        self._socket = node.open(pod)
        self._over = threading.Event()
        self.sent = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Sender:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while not self._over.wait(0.001):
            for address in (ALLOWED, DENIED):
                self._socket.sendto(str(self.sent).encode(), (address, PORT))
            self.sent += 1


def progress(node: OneNode, found: Found) -> dict[str, str]:
    """The steps as ``yett migrate`` tells them, by the node's status now."""
    controller = node._runner.run(node.bus.ask_controller())
    whole = replace(found, controller=controller, agents=dict(node.bus.agents))
    return {step.name: step.progress.value for step in plan_steps(whole)}


@pytest.mark.parametrize("theirs", ["drops", "accepts"])
def test_ours_takes_over_without_an_open_moment(node: OneNode, theirs: str) -> None:
    """Theirs is first, at priority 1 and handle 1. Where it drops what policy denies, none of that passes from the
    first datagram to the last; where it accepts everything, none from the moment that it is gone. What is allowed
    passes all the time. ``yett migrate`` says that theirs may go only once ours stands behind it."""
    program = drop_destination(DENIED) if theirs == "drops" else accept_all()
    with pinned(program, "theirs") as pin, node.listen() as listener, Ear(listener) as ear:  # noqa: SIM117
        with Sender(node, OLD) as sender:
            node.in_node("tc", "qdisc", "add", "dev", OLD.interface, "clsact")
            add_filter(node, OLD, 1, pin)
            until(lambda: sender.sent > 20, 10, "traffic runs")
            began = sender.sent
            assert progress(node, THEIRS_ON)["their-controller"] == "blocked"
            node.start_agent()
            node.await_status(
                lambda one: (
                    {each.pod: each.state for each in one.endpoints} == {OLD.key: "foreign", NEW.key: "enforced"}
                ),
                "ours is behind theirs",
                60,
            )
            until(lambda: progress(node, THEIRS_ON)["ready"] == "done", 10, "theirs may go")
            told = progress(node, THEIRS_ON)
            assert told["their-controller"] == "todo" and told["their-filters"] == "blocked"
            node.in_node("tc", "filter", "del", "dev", OLD.interface, "ingress", "prio", "1")
            gone = sender.sent + 1
            node.await_status(lambda one: not any(each.foreign for each in one.endpoints), "theirs is gone")
            until(lambda: sender.sent > gone + 200, 10, "traffic goes on")
    shut = began if theirs == "drops" else gone
    passed = [number for address, number in ear.heard if address == DENIED and number >= shut]
    allowed = {number for address, number in ear.heard if address == ALLOWED}
    lost = set(range(began, gone + 200)) - allowed
    print(f"\ntheirs {theirs}: of {sender.sent - shut} denied {len(passed)} passed, {len(lost)} allowed lost")
    assert not passed and not lost
    finished = Found(ours=OURS)
    assert set(progress(node, finished).values()) == {"done"}
