"""What a fresh state is told: the present objects, and of what could not be read the last good versions."""

from __future__ import annotations

from schemas import wire
from schemas.policy import Config
from schemas.status import Problem
from schemas.terms import Default
from services.controller.inventory import Inventory
from services.controller.kube_kinds import kinds_read
from services.controller.manifests import ManifestEvent
from services.controller.policy.parse import identify
from services.controller.sources import KINDS
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


REFUSED = k8s.network_policy("p", {"policyTypes": ["Egress"], "egress": [{"to": [{"ipBlock": {"cidr": "nonsense"}}]}]})
OPEN = k8s.network_policy("p", {"policyTypes": ["Egress"], "egress": [{}]})


def restart_after_open(*events: ManifestEvent) -> tuple[Inventory, State]:
    """A controller after one that had accepted an open policy."""
    former, inventory, state = State(), Inventory(), State()
    for obj in (*BASE, OPEN):
        former.upsert(obj)
    inventory.take([*say(*BASE), *events])
    inventory.fill(state, former.rows())
    return inventory, state


def rules_in_force(state: State) -> list[int]:
    return [len(policy.egress) for policy in state.policies]


def test_what_was_deleted_while_nobody_looked_does_not_come_back() -> None:
    """A later object of its name that is refused isolates its pods, as one that was never known does; the deleted
    one's row leaves the stream with the first publication."""
    inventory, state = restart_after_open()
    assert rules_in_force(state) == [] and wire.subject_source("NetworkPolicy", "app", "p") not in state.rows()
    follow(inventory, state, *say(REFUSED))
    fresh = State()
    for obj in (*BASE, REFUSED):
        fresh.upsert(obj, FILE)
    assert rules_in_force(state) == [0] and state.policies == fresh.policies
    assert state.problems() == fresh.problems() and len(state.problems()) == 2
    follow(inventory, state, *say(OPEN))
    assert rules_in_force(state) == [1] and state.problems() == []


def test_what_was_kept_and_then_was_not_there_does_not_come_back() -> None:
    """Adopted while it was doubted, gone with the list that ended the doubt."""
    inventory, state = restart_after_open(unread("NetworkPolicy"))
    assert rules_in_force(state) == [1]
    follow(inventory, state, unread())
    follow(inventory, state, *say(REFUSED))
    assert rules_in_force(state) == [0]


def test_the_present_refused_version_of_what_is_known_or_doubted_opens_and_shuts_nothing() -> None:
    """Refused at the start, or in doubt and refused later: it was not seen to be gone, so the last good one stays."""
    _, state = restart_after_open(*say(REFUSED))
    assert rules_in_force(state) == [1]
    inventory, state = restart_after_open(unread("NetworkPolicy"))
    follow(inventory, state, *say(REFUSED))
    follow(inventory, state, unread())
    assert rules_in_force(state) == [1]


def test_every_kind_that_a_definition_may_take_away_is_remembered() -> None:
    """Of a custom kind the server may stop to serve the versions that are read, whatever it says."""
    assert {kind.key_kind for kind in kinds_read("yett-system") if kind.is_custom} <= KINDS


# -- node classes -----------------------------------------------------------------------------------------------------

ON_STRICT = (k8s.node("node-a", "192.168.0.1", **{"eks.amazonaws.com/nodeclass": "strict"}), *BASE[::2])
STRICT = k8s.policy("eks.amazonaws.com/v1", "NodeClass", "strict", {"networkPolicy": "DefaultDeny"})


def restart_on_strict(*events: ManifestEvent) -> tuple[Inventory, State]:
    """A controller after one that knew a node's class."""
    former, inventory, state = State(), Inventory(), State()
    for obj in (*ON_STRICT, STRICT):
        former.upsert(obj)
    assert node_defaults(former) == {"node-a": Default.DENY}
    inventory.take([*say(*ON_STRICT), *events])
    inventory.fill(state, former.rows())
    if events:
        assert state.rows() == former.rows()
    return inventory, state


def node_defaults(state: State) -> dict[str, Default]:
    config = wire.decode(wire.SUBJECT_CONFIG, state.rows()[wire.SUBJECT_CONFIG])
    assert isinstance(config, Config)
    return config.node_defaults


def test_the_default_of_an_unread_node_class_stays_and_its_name_is_said() -> None:
    """Every row, the pods' rulesets among them, is as it was; read again without the class, the default goes."""
    inventory, state = restart_on_strict(unread("NodeClass"))
    assert [(each.object, each.message) for each in state.problems()] == [("NodeClass strict", UNSEEN)]
    follow(inventory, state, unread())
    assert node_defaults(state) == {} and state.problems() == []
    assert wire.subject_source("NodeClass", "", "strict") not in state.rows()


def test_an_unread_node_class_that_is_read_again_counts_as_it_is_then() -> None:
    """Its present version, in the batch that ends the doubt."""
    inventory, state = restart_on_strict(unread("NodeClass"))
    lax = k8s.policy("eks.amazonaws.com/v1", "NodeClass", "strict", {"networkPolicy": "DefaultAllow"})
    follow(inventory, state, *say(lax), unread())
    assert node_defaults(state) == {"node-a": Default.ALLOW} and state.problems() == []


def test_a_node_class_in_a_file_that_cannot_be_read_stays() -> None:
    """It may be there; where every file is read it is gone."""
    _, state = restart_on_strict(ManifestEvent("x.yaml", problems=(UNREADABLE,)))
    assert node_defaults(state) == {"node-a": Default.DENY}
    _, state = restart_on_strict()
    assert node_defaults(state) == {} and state.problems() == []
