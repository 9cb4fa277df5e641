"""What a fresh state is told: the present objects, and of what could not be read the last good versions."""

from __future__ import annotations

from schemas import wire
from schemas.status import Problem
from services.controller.inventory import Inventory
from services.controller.manifests import ManifestEvent
from services.controller.policy.parse import identify
from services.controller.world import UNSEEN, State
from tests import builders as k8s

FILE = "kubernetes"
AWS, UPSTREAM = "ClusterNetworkPolicy.networking.k8s.aws", "ClusterNetworkPolicy.policy.networking.k8s.io"
BASE = (k8s.namespace("app"), k8s.node("node-a", "192.168.0.1"), k8s.pod("app/web", "10.0.0.1", app="web"))
CLASSIC = k8s.network_policy("p", {"policyTypes": ["Egress"]})
OURS, OTHERS = (make("guard", {"priority": 7}) for make in (k8s.aws_cluster_policy, k8s.cluster_policy))
REMEMBERED = (CLASSIC, OURS, OTHERS, k8s.settings(default="audit"))
UNREADABLE = Problem(object="x.yaml", path="line 1", message="not YAML", file="x.yaml")


def say(*objects: k8s.Obj) -> list[ManifestEvent]:
    return [ManifestEvent(FILE, obj=obj) for obj in objects]


def unread(*kinds: str) -> ManifestEvent:
    return ManifestEvent(FILE, unread=frozenset(kinds))


def restart(*events: ManifestEvent) -> tuple[Inventory, State]:
    """A controller that a former one has left everything, and that is told this."""
    former, inventory, state = State(), Inventory(), State()
    for obj in (*BASE, *REMEMBERED):
        former.upsert(obj)
    inventory.take([*say(*BASE), *events])
    inventory.fill(state, former.rows())
    return inventory, state


def follow(inventory: Inventory, state: State, *events: ManifestEvent) -> None:
    inventory.take(events)
    inventory.follow(state, events)


def in_force(state: State) -> set[str]:
    """The kinds of which something is in force, and remembered for the next controller."""
    rows = state.rows()
    kinds = {key[0] for obj in REMEMBERED if (key := identify(obj)) and wire.subject_source(*key) in rows}
    assert {policy.key[0] for policy in state.policies} == kinds - {"ConfigMap"}
    return kinds


def test_of_an_unread_kind_what_was_remembered_stays_and_of_a_read_one_it_goes() -> None:
    """By kind, group included: two kinds have one name. What stays is a problem by its own name."""
    for kinds in ((AWS,), (UPSTREAM,), (AWS, UPSTREAM)):
        _, state = restart(unread(*kinds))
        assert in_force(state) == set(kinds)
        assert {(each.message, each.severity) for each in state.problems()} == {(UNSEEN, "warning")}
        assert [each.object for each in state.problems()] == [f"{kind} guard" for kind in kinds]


def test_where_everything_is_read_what_is_not_there_is_gone() -> None:
    """Nothing is kept, and nothing is said."""
    for events in ((), (unread(),)):
        _, state = restart(*events)
        assert in_force(state) == set() and state.problems() == []


def test_a_present_object_counts_even_where_its_kind_is_unread() -> None:
    """What is there is no matter of doubt."""
    _, state = restart(*say(k8s.aws_cluster_policy("guard", {"priority": 8})), unread(AWS))
    assert [policy.priority for policy in state.policies] == [8] and state.problems() == []


def test_what_was_kept_goes_when_its_kind_is_read_without_it() -> None:
    """Kind by kind; read again with it, or with its kind still unread, it stays."""
    inventory, state = restart(unread(AWS, UPSTREAM))
    follow(inventory, state, *say(CLASSIC))
    assert in_force(state) == {AWS, UPSTREAM, "NetworkPolicy"}
    follow(inventory, state, *say(OTHERS), unread(AWS))
    assert in_force(state) == {AWS, UPSTREAM, "NetworkPolicy"}
    assert [each.object for each in state.problems()] == [f"{AWS} guard"]
    follow(inventory, state, unread())
    assert in_force(state) == {UPSTREAM, "NetworkPolicy"} and state.problems() == []


def test_what_was_kept_is_not_dropped_by_a_kind_that_is_unread_again() -> None:
    """Read, then unread once more, before a term has followed either: the present counts."""
    inventory, state = restart(unread(AWS))
    follow(inventory, state, unread(), unread(AWS))
    assert in_force(state) == {AWS}


def test_a_term_later_it_is_kept_as_well() -> None:
    """A fresh state of the same process, from what the last one left."""
    inventory, state = restart(unread(AWS))
    later = State()
    inventory.fill(later, state.rows())
    assert in_force(later) == {AWS} and later.rows() == state.rows()


def test_while_a_file_cannot_be_read_nothing_is_known_to_be_gone() -> None:
    """Of no kind, the settings included; once it can be read what no file holds is gone."""
    inventory, state = restart(ManifestEvent("x.yaml", problems=(UNREADABLE,)))
    assert in_force(state) == {AWS, UPSTREAM, "NetworkPolicy", "ConfigMap"}
    assert len(state.problems()) == len(REMEMBERED)
    follow(inventory, state, ManifestEvent("x.yaml", problems=()), unread(AWS))
    assert in_force(state) == {AWS}
