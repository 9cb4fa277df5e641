"""Whose an interface is: from the host's side, once, for its life."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec import structs

from schemas.policy import AddressRow, EndpointRow
from schemas.terms import IdentityId, NodeName, RulesetHash
from services.nodeagent.binding import Bound, Link, bind_links, compute_suffix, remember_bindings, take_answer
from services.nodeagent.cniresult import CniResult


def row(pod: str, *addresses: str) -> EndpointRow:
    return EndpointRow(
        node=NodeName("n"),
        namespace="ns",
        pod=pod,
        uid=f"uid-{pod}",
        identity=IdentityId(256),
        egress=RulesetHash("e"),
        ingress=RulesetHash("i"),
        addresses=addresses,
    )


def owned(address: str, pod: str) -> dict[str, AddressRow]:
    return {address: AddressRow(address=address, identity=IdentityId(256), uid=f"uid-{pod}")}


def test_the_suffix_is_that_of_the_cnis() -> None:
    """The first 11 hex digits of sha1("namespace.pod"), as the VPC CNI and Calico name their interfaces."""
    assert compute_suffix("default", "sample-pod") == "cc21c2d7785"


def test_found_by_name_before_any_address_is_known() -> None:
    """A pod that was bound to the node a moment ago is found by its interface's computed name."""
    link = Link(5, "cali" + compute_suffix("ns", "web"))
    assert bind_links([link], [row("web")], {}, Bound())[5].uid == "uid-web"


def test_found_by_address() -> None:
    """An interface of any name is found by the address that the host routes to it."""
    bindings = bind_links([Link(5, "veth1", ("10.0.0.7",))], [row("web")], owned("10.0.0.7", "web"), Bound())
    assert bindings[5].uid == "uid-web"


def test_an_address_row_wins_over_an_endpoints_own_list() -> None:
    """An address that belongs to a newer pod by its row does not bind to the older one that still lists it."""
    endpoints = [row("old", "10.0.0.7"), row("new")]
    bindings = bind_links([Link(5, "veth1", ("10.0.0.7",))], endpoints, owned("10.0.0.7", "new"), Bound())
    assert bindings[5].uid == "uid-new"


def test_a_binding_is_frozen() -> None:
    """An interface that was one pod's stays that pod's, whoever gets its address."""
    link = Link(5, "veth1", ("10.0.0.7",), life="one")
    bindings = bind_links([link], [row("old"), row("new")], owned("10.0.0.7", "new"), Bound({"one": "uid-old"}))
    assert bindings[5].uid == "uid-old"


def test_a_binding_ends_with_its_interface() -> None:
    """Another interface of the same number, name and address is whose the host says now."""
    link = Link(5, "veth1", ("10.0.0.7",), life="two")
    bindings = bind_links([link], [row("old"), row("new")], owned("10.0.0.7", "new"), Bound({"one": "uid-old"}))
    assert bindings[5].uid == "uid-new"


OLD, NEW = row("old", "10.0.0.7"), row("new", "10.0.0.7")
HEIR_ROW = structs.replace(OLD, uid="uid-heir")
FORMER = Link(4, "eni" + compute_suffix("ns", "old"), ("10.0.0.7",), life="former")
EARLY = Link(5, "eni" + compute_suffix("ns", "new"), ("10.0.0.7",), life="early")


def bind_on(bound: Bound, links: list[Link], rows: list[EndpointRow]) -> tuple[dict[int, str], Bound]:
    """One round; the address is the old pod's."""
    bindings = bind_links(links, rows, owned("10.0.0.7", "old"), bound)
    told = remember_bindings(bindings.values(), bound, {one.uid for one in rows})
    return {index: one.uid for index, one in bindings.items()}, told


def test_a_guess_by_address_gives_way_to_a_name() -> None:
    """An interface that was taken for the pod that had its address is its own pod's when that one's row comes, also if
    the former pod's is gone by then."""
    for rows in ([OLD, NEW], [NEW]):
        found, bound = bind_on(Bound(), [EARLY], [OLD])
        assert found == {5: "uid-old"}
        assert bind_on(bound, [EARLY], rows)[0] == {5: "uid-new"}


def test_a_guess_gives_way_to_no_other_address() -> None:
    """Whoever gets the address of an interface that nothing names, it stays whose it was."""
    link = Link(5, "veth1", ("10.0.0.7",), life="one")
    _, bound = bind_on(Bound(), [link], [OLD])
    bindings = bind_links([link], [OLD, NEW], owned("10.0.0.7", "new"), bound)
    assert bindings[5].uid == "uid-old"


def test_a_name_gives_way_to_nothing() -> None:
    """An interface that was found by its name is not that of the next pod of this name, as a StatefulSet makes them."""
    bound = Bound()
    for _ in range(3):
        _, bound = bind_on(bound, [FORMER], [OLD])
    assert bind_on(bound, [FORMER], [HEIR_ROW])[0] == {4: "uid-old"}


def test_a_pod_that_was_found_by_name_is_found_by_no_address() -> None:
    """Its interface is gone, its object is not: the next one with its address is nobody's until its pod is known."""
    _, bound = bind_on(Bound(), [FORMER], [OLD])
    found, bound = bind_on(bound, [EARLY], [OLD])
    assert found == {5: ""}
    assert bind_on(bound, [EARLY], [OLD, NEW])[0] == {5: "uid-new"}


def test_a_pod_has_a_second_interface_by_address_while_its_first_is_there() -> None:
    """As long as the interface with its name is there, another with an address of it is its own, too."""
    second = Link(6, "veth1", ("10.0.0.7",), life="second")
    first = replace(FORMER, addresses=("10.0.0.6",))
    _, bound = bind_on(Bound(), [first], [OLD])
    assert bind_on(bound, [first, second], [OLD])[0] == {4: "uid-old", 6: "uid-old"}


def test_a_named_pod_is_found_by_an_address_that_no_interface_of_its_had() -> None:
    """A sandbox that came after one with a name, and that nothing names, is its pod's as soon as the row lists its new
    address; by the former one's address it is not."""
    _, bound = bind_on(Bound(), [FORMER], [OLD])
    _, bound = bind_on(bound, [], [OLD])
    link, listed = Link(6, "veth1", ("10.0.0.9",), life="second"), structs.replace(OLD, addresses=("10.0.0.9",))
    found, bound = bind_on(bound, [link], [listed])
    assert found == {6: "uid-old"}
    assert bind_on(bound, [link], [listed])[0] == {6: "uid-old"}
    assert bind_on(bound, [EARLY], [listed])[0] == {5: ""}


def test_all_addresses_of_a_named_pod_are_known_while_its_row_is() -> None:
    """Those of each interface that it had, also after rounds without any; with the row they are forgotten."""
    _, bound = bind_on(Bound(), [FORMER], [OLD])
    _, bound = bind_on(bound, [], [OLD])
    _, bound = bind_on(bound, [replace(FORMER, life="next", addresses=("10.0.0.8",))], [OLD])
    _, bound = bind_on(bound, [], [OLD])
    assert bound.named == {"uid-old": {"10.0.0.7", "10.0.0.8"}}
    for address in ("10.0.0.7", "10.0.0.8"):
        heir, owner = Link(6, "veth1", (address,), life="heir"), structs.replace(OLD, addresses=(address,))
        assert bind_on(bound, [heir], [owner])[0] == {6: ""}
    assert bind_on(bound, [], [NEW])[1].named == {}


def test_a_pod_keeps_its_second_interface_when_its_first_is_not_seen() -> None:
    """For one round or for good: what a guess was is no new guess."""
    second = Link(6, "veth1", ("10.0.0.7",), life="second")
    first = replace(FORMER, addresses=("10.0.0.6",))
    _, bound = bind_on(Bound(), [first, second], [OLD])
    found, bound = bind_on(bound, [second], [OLD])
    assert found == {6: "uid-old"}
    assert bind_on(bound, [second], [OLD])[0] == {6: "uid-old"}
    assert bind_on(bound, [first, second], [OLD])[0] == {4: "uid-old", 6: "uid-old"}


def test_a_pod_whose_name_is_not_told_any_more_is_still_there() -> None:
    """A plugin's answer may go; as long as the interface that it named is there, addresses of its go on to another."""
    first, second = Link(4, "veth0", ("10.0.0.7",), life="first", pod="ns/old"), Link(6, "veth1", life="second")
    _, bound = bind_on(Bound(), [first], [OLD])
    moved = [replace(first, pod="", addresses=()), replace(second, addresses=("10.0.0.7",))]
    assert bind_on(bound, moved, [OLD])[0] == {4: "uid-old", 6: "uid-old"}


HEIRS_LINKS = {
    "by its interface's name": replace(FORMER, ifindex=5, addresses=("10.0.0.8",), life="heir"),
    "by its plugin's answer": Link(5, "veth1", ("10.0.0.8",), life="heir", pod="ns/old", is_bridged=True),
}


@pytest.mark.parametrize("named", list(HEIRS_LINKS))
@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize("meanwhile", ["seen", "not seen", "not seen by a build without guesses"])
def test_a_name_is_a_guess_at_whose_the_next_interface_is(named: str, meanwhile: str, is_there: bool) -> None:
    """A StatefulSet's next pod, whose interface is there before its row, has it as soon as the row comes, whether the
    former pod's interface was seen to go, or went while no agent ran, or is still there, and that one's for ever."""
    link = HEIRS_LINKS[named]
    lingering, theirs = ([FORMER], {4: "uid-old"}) if is_there else ([], {})
    _, bound = bind_on(Bound(), [FORMER], [OLD])
    if meanwhile == "seen":
        _, bound = bind_on(bound, lingering, [OLD])
    elif meanwhile != "not seen":
        bound = Bound(bound.uids)
    for rows, expected in (([OLD], "uid-old"), ([OLD], "uid-old"), ([], "uid-old"), ([HEIR_ROW], "uid-heir")):
        found, bound = bind_on(bound, [*lingering, link], rows)
        assert found == {5: expected, **theirs}
    assert bind_on(bound, [link], [structs.replace(OLD, uid="uid-third")])[0] == {5: "uid-heir"}


@pytest.mark.parametrize("named", list(HEIRS_LINKS))
def test_a_pods_next_sandbox_stays_its_own(named: str) -> None:
    """Its name, which is a guess then, may be told no more: it is the pod's as before."""
    _, bound = bind_on(Bound(), [FORMER], [OLD])
    _, bound = bind_on(bound, [HEIRS_LINKS[named]], [OLD])
    found, bound = bind_on(bound, [replace(HEIRS_LINKS[named], name="veth1", pod="")], [OLD])
    assert found == {5: "uid-old"}


def test_a_guess_that_a_name_confirms_is_one_no_more() -> None:
    """An answer that comes after the address was found is the first name of this pod: nothing takes its interface."""
    link = Link(5, "veth1", ("10.0.0.7",), life="one")
    _, bound = bind_on(Bound(), [link], [OLD])
    _, bound = bind_on(bound, [replace(link, pod="ns/old")], [OLD])
    assert bind_on(bound, [replace(link, pod="ns/old")], [HEIR_ROW])[0] == {5: "uid-old"}


def test_a_guess_whose_pod_is_gone_follows_its_address() -> None:
    """The former pod's row held the interface; without it the address is its next pod's, if it claims that alone."""
    link, rival = Link(5, "veth1", ("10.0.0.7",), life="one"), Link(6, "veth2", ("10.0.0.7",), life="two")
    _, early = bind_on(Bound(), [link], [OLD])
    news = owned("10.0.0.7", "new")
    assert bind_links([link], [OLD, NEW], news, early)[5].uid == "uid-old"
    assert bind_links([link], [NEW], news, early)[5].uid == "uid-new"
    assert bind_links([link], [NEW], news, early)[5].is_guess
    assert {index: one.uid for index, one in bind_links([link, rival], [NEW], news, early).items()} == {
        5: "uid-old",
        6: "uid-new",
    }
    assert bind_links([link], [row("other")], {}, early)[5].uid == "uid-old"
    assert bind_links([link], [NEW], news, Bound({"one": "uid-old"}))[5].uid == "uid-old"


def test_what_a_memory_without_guesses_knew_is_no_name() -> None:
    """An earlier build's bindings are frozen as they were; by address the pod is found again if its sandbox is new."""
    link, heir = Link(5, "veth1", ("10.0.0.7",), life="one"), Link(6, "veth2", ("10.0.0.7",), life="two")
    found, bound = bind_on(Bound({"one": "uid-old"}), [link], [OLD])
    assert found == {5: "uid-old"}
    assert bind_on(bound, [heir], [OLD])[0] == {6: "uid-old"}


def test_unknown_is_nobodys() -> None:
    """An interface that nothing proves belongs to no pod."""
    assert bind_links([Link(5, "veth1", ("10.0.0.8",))], [row("web", "10.0.0.7")], {}, Bound())[5].uid == ""


def test_two_that_claim_one_address_are_both_marked() -> None:
    """Neither of two interfaces with one address is believed; a third is unharmed."""
    links = [Link(5, "a", ("10.0.0.7",)), Link(6, "b", ("10.0.0.7", "10.0.0.8")), Link(7, "c", ("10.0.0.9",))]
    bindings = bind_links(links, [], {}, Bound())
    assert [bindings[index].claimed_twice for index in (5, 6, 7)] == [True, True, False]


def test_found_by_the_plugins_answer_before_any_address_is_known() -> None:
    """A bridge's port is its pod's as soon as the pod is bound to the node, whoever else lists the address."""
    link = Link(5, "veth1", ("10.0.0.7",), pod="ns/web", is_bridged=True)
    assert bind_links([link], [row("web"), row("other", "10.0.0.7")], {}, Bound())[5].uid == "uid-web"
    assert bind_links([link], [row("other", "10.0.0.7")], {}, Bound())[5].uid == "uid-other"


def answer(pod: str, *addresses: str) -> CniResult:
    return CniResult("veth1", "02:00:00:00:00:01", f"ns/{pod}", addresses)


def test_a_routed_interface_is_whose_its_answer_says() -> None:
    """Before any address is known, where routes lead to all that the answer names; routes may lead to more."""
    link = take_answer(Link(5, "veth1", ("10.0.0.7", "fd00::7")), answer("web", "10.0.0.7"))
    assert link == Link(5, "veth1", ("10.0.0.7", "fd00::7"), pod="ns/web")
    assert bind_links([link], [row("web"), row("other")], {}, Bound())[5].uid == "uid-web"


def test_routes_win_over_an_answer() -> None:
    """A former pod's, of an interface with the same name and hardware address: it is told, the pod is found by address
    as without an answer, and the addresses are those of the routes; one that is the same does not save the answer."""
    link = take_answer(Link(5, "veth1", ("10.0.0.8",)), answer("old", "10.0.0.7", "10.0.0.8"))
    assert link == Link(5, "veth1", ("10.0.0.8",), disputed=("10.0.0.7",))
    assert bind_links([link], [row("old", "10.0.0.7"), row("new")], {}, Bound())[5].uid == ""
    assert bind_links([link], [row("old", "10.0.0.7"), row("new", "10.0.0.8")], {}, Bound())[5].uid == "uid-new"


def test_a_bridges_port_has_its_answers_addresses() -> None:
    """It has no routes that could say otherwise."""
    link = take_answer(Link(5, "veth1", is_bridged=True), answer("web", "10.0.0.7"))
    assert (link.pod, link.addresses, link.disputed) == ("ns/web", ("10.0.0.7",), ())


def test_without_an_answer_nothing_is_known() -> None:
    """The interface as the routes have it."""
    link = Link(5, "veth1", ("10.0.0.7",))
    assert take_answer(link, None) is link
