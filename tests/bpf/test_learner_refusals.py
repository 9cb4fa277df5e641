"""Which answers without an address are told: the gate is open for the name, and DNS said no."""

from __future__ import annotations

import pytest

from schemas.terms import Reason
from services.dnsrecorder.event import ResolutionEvent, decode_event
from tests.bpf import packets
from tests.bpf.messages import AAAA, HTTPS, A, Message, alias, answer
from tests.bpf.prog_run import Kernel
from tests.bpf.test_learner import NAME, PORT, ROW, WEB, ask, count, tables, tell
from tests.bpf.test_learner_pieces import Connection, prefixed
from tests.bpf.worlds import POD4, POD_ID, RESOLVER

pytestmark = pytest.mark.kernel
OTHER = "other.example.org"
WEB6 = "2001:db8::7"
BUDGET = 32
"""REFUSALS_PER_TICK, bpf/learn.h."""


@pytest.fixture
def dns(kernel: Kernel) -> Kernel:
    kernel.fill(tables())
    return kernel


def refusals(kernel: Kernel) -> list[ResolutionEvent]:
    """What the ring holds of them."""
    told = (decode_event(record) for record in kernel.resolutions.consume(1000))
    return [one for one in told if one.reason in (Reason.LEARN_RCODE, Reason.LEARN_NO_ADDRESS)]


def look_up(kernel: Kernel, message: bytes, *, name: str = NAME, kind: int = A) -> None:
    """One question and its answer, which reaches the pod."""
    assert ask(kernel, name, kind).passed
    assert tell(kernel, message).passed


@pytest.mark.parametrize("rcode", [2, 3, 5])
@pytest.mark.parametrize("kind", [A, AAAA])
def test_a_resolver_that_says_no_is_told_for_a_covered_name(dns: Kernel, rcode: int, kind: int) -> None:
    """SERVFAIL, NXDOMAIN, REFUSED: an event with the message, the pattern's row and the reason."""
    message = answer(NAME, kind=kind, rcode=rcode)
    look_up(dns, message, kind=kind)
    (told,) = refusals(dns)
    assert (told.reason, told.domain, told.answers, told.learned) == (Reason.LEARN_RCODE, ROW, 0, 0)
    assert (told.message, told.resolver, told.resolver_port) == (message, RESOLVER, 53)


@pytest.mark.parametrize(
    "message", [answer(NAME, kind=A), answer(NAME, alias("nothing.test"), kind=A)], ids=["no record", "an alias alone"]
)
def test_an_answer_without_an_address_is_told(dns: Kernel, message: bytes) -> None:
    """NOERROR and no record, or a chain of aliases that leads to none."""
    look_up(dns, message)
    (told,) = refusals(dns)
    assert (told.reason, told.domain, told.message) == (Reason.LEARN_NO_ADDRESS, ROW, message)
    assert count(dns, Reason.LEARN_NO_ADDRESS) == 1


def test_of_a_name_that_no_pattern_covers_nothing_is_told(dns: Kernel) -> None:
    """What a search path tries first (``ndots``) is not what any rule names."""
    for name in (f"{NAME}.app.svc.cluster.local", f"{NAME}.cluster.local", OTHER):
        look_up(dns, answer(name, rcode=3), name=name)
        look_up(dns, answer(name, kind=A), name=name)
    assert refusals(dns) == []
    assert count(dns, Reason.LEARN_NO_ADDRESS) == 0


def test_what_nobody_asked_is_told_of_nobody(dns: Kernel) -> None:
    """Neither unasked, nor under another id or name, nor from another address than the resolver's."""
    assert not tell(dns, answer(NAME, rcode=3)).passed
    ask(dns)
    tell(dns, answer(NAME, rcode=3, identifier=0x4321))
    tell(dns, answer("mail.wild.example", rcode=3))
    tell(dns, answer(NAME, kind=AAAA, rcode=3))
    tell(dns, answer(NAME, rcode=3), source="203.0.113.53")
    assert refusals(dns) == []


@pytest.mark.parametrize("rcode", [0, 3])
@pytest.mark.parametrize(("good", "kind"), [(WEB, AAAA), (WEB6, A)])
def test_no_address_of_one_family_beside_the_others_is_no_refusal(
    dns: Kernel, rcode: int, good: str, kind: int
) -> None:
    """Nearly every lookup brings an empty AAAA; some resolvers even say NXDOMAIN to it. Both are silent for ever."""
    asked = AAAA if kind == A else A
    for _ in range(3):
        look_up(dns, answer(NAME, good), kind=asked)
        look_up(dns, answer(NAME, kind=kind, rcode=rcode), kind=kind)
    assert refusals(dns) == []


@pytest.mark.parametrize("first", [A, AAAA])
def test_a_name_of_both_families_that_is_refused_now_is_told(dns: Kernel, first: int) -> None:
    """The family that answered before vouches for the other until it is refused itself."""
    look_up(dns, answer(NAME, WEB))
    look_up(dns, answer(NAME, WEB6), kind=AAAA)
    look_up(dns, answer(NAME, kind=first, rcode=3), kind=first)
    assert refusals(dns) == []
    second = AAAA if first == A else A
    look_up(dns, answer(NAME, kind=second, rcode=3), kind=second)
    look_up(dns, answer(NAME, kind=first, rcode=3), kind=first)
    assert len(refusals(dns)) == 2


def test_a_sinkhole_vouches_for_nothing(dns: Kernel) -> None:
    """An answer all of whose addresses are refused is no address of the other family."""
    guarded = tables()
    guarded.guard["127.0.0.0/8"] = True
    dns.fill(guarded)
    look_up(dns, answer(NAME, "127.0.0.1"))
    look_up(dns, answer(NAME, kind=AAAA), kind=AAAA)
    assert [one.reason for one in refusals(dns)] == [Reason.LEARN_NO_ADDRESS]


def test_a_cut_answer_is_asked_again_and_refuses_nothing(dns: Kernel) -> None:
    """TC with an empty answer section is how a resolver sends its client to TCP."""
    look_up(dns, Message(NAME, A, flags=0x8380).wire())
    assert refusals(dns) == []


def test_questions_for_other_types_are_not_told(dns: Kernel) -> None:
    """Nothing but A and AAAA opens anything, so nothing else is refused."""
    look_up(dns, answer(NAME, kind=HTTPS, rcode=5), kind=HTTPS)
    look_up(dns, answer(NAME, kind=HTTPS), kind=HTTPS)
    assert refusals(dns) == []


def test_who_asks_again_and_again_is_told_in_part_and_counted_in_full(dns: Kernel) -> None:
    """A budget of the endpoint's own; what it holds back is said by the next refusal that is told, and by no news."""
    asked = 3 * BUDGET
    for number in range(asked):
        ask(dns, identifier=number)
        assert tell(dns, answer(NAME, rcode=3, identifier=number)).passed
    told = refusals(dns)
    assert BUDGET <= len(told) <= 2 * BUDGET  # a tick may end in between
    look_up(dns, answer("a.wild.example", WEB), name="a.wild.example")
    assert [decode_event(record).suppressed for record in dns.resolutions.consume(10)] == [0]
    end_tick(dns)
    look_up(dns, answer(NAME, rcode=3))
    (last,) = refusals(dns)
    assert len(told) + sum(one.suppressed for one in told) + last.suppressed == asked


def end_tick(kernel: Kernel) -> None:
    """As if the endpoint's budget were of a second that is over. Layout: ``struct quota``, bpf/types.h."""
    key = POD_ID.to_bytes(4, "little")
    value = kernel.maps["quotas"].get(key)
    assert value is not None
    kernel.maps["quotas"].put(key, value[:12] + bytes(4) + value[16:])


def test_a_fragmented_refusal_is_told_by_its_beginning(dns: Kernel) -> None:
    """Header and question say it; the proofs of absence behind them are not waited for."""
    message = answer(NAME, rcode=3) + bytes(2000)
    body = packets.udp(53, PORT, message)
    ask(dns)
    first = packets.ipv4(RESOLVER, POD4, packets.UDP, body[:1480], more=True, identifier=9)
    assert dns.to_pod(packets.ethernet(packets.IPV4, first)).passed
    (told,) = refusals(dns)
    assert (told.reason, told.message) == (Reason.LEARN_RCODE, message[:1472])
    last = packets.ipv4(RESOLVER, POD4, packets.UDP, body[1480:], fragment=185, identifier=9)
    assert dns.to_pod(packets.ethernet(packets.IPV4, last)).passed
    assert refusals(dns) == []


def test_over_tcp_each_message_is_told(dns: Kernel) -> None:
    """Two pipelined answers in one segment, one refused and one not."""
    connection = Connection(dns)
    connection.ask()
    told = (answer(NAME, rcode=3), answer("a.wild.example", WEB), answer("b.wild.example", kind=A))
    connection.tell(b"".join(prefixed(one) for one in told))
    assert [one.reason for one in refusals(dns)] == [Reason.LEARN_RCODE, Reason.LEARN_NO_ADDRESS]


def test_what_is_given_again_after_a_refusal_is_news(dns: Kernel) -> None:
    """User space learns that one resolver's no was not the last word, though it knew the answer."""
    look_up(dns, answer(NAME, WEB))
    look_up(dns, answer(NAME, WEB))
    assert len(dns.drain()) == 1
    look_up(dns, answer(NAME, rcode=5))
    assert len(refusals(dns)) == 1
    look_up(dns, answer(NAME, WEB))
    (again,) = [decode_event(record) for record in dns.drain()]
    assert (again.reason, again.answers) == (0, 1)
    look_up(dns, answer(NAME, kind=AAAA), kind=AAAA)
    assert dns.drain() == []
