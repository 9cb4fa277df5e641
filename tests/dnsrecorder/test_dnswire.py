"""What the recorder reads in a DNS answer."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.terms import Reason
from services.dnsrecorder.dnswire import AnswerError, Record, parse_answer

SUFFIXES = ("svc.cluster.local", "cluster.local")


def make_answer(name: str, *records: tuple[str, str, str], kind: str = "A", rcode: int = 0) -> bytes:
    """Wire form of an answer; a record is (owner, type, data)."""
    query = dns.message.make_query(name, kind)
    answer = dns.message.make_response(query)
    answer.set_rcode(rcode)
    for owner, rdtype, data in records:
        answer.answer.append(dns.rrset.from_text(owner, 60, "IN", rdtype, data))
    return answer.to_wire()


def test_addresses_belong_to_the_name_that_was_asked() -> None:
    """A chain of CNAMEs inside the answer is the resolver's affair."""
    message = make_answer("A.Example.COM.", ("a.example.com.", "CNAME", "b.net."), ("b.net.", "A", "192.0.2.1"))
    answer = parse_answer(message)
    assert answer.name == "a.example.com"
    assert answer.records == (Record("192.0.2.1", 60),)


def test_records_of_another_type_than_asked_are_left_out() -> None:
    """An AAAA in the answer to a question for A is not an answer to it."""
    message = make_answer("x.test.", ("x.test.", "A", "192.0.2.1"), ("x.test.", "AAAA", "2001:db8::1"))
    assert parse_answer(message).addresses == ("192.0.2.1",)


def test_an_ipv6_address_is_read_in_canonical_form() -> None:
    """Whatever the resolver writes, one address has one text."""
    message = make_answer("x.test.", ("x.test.", "AAAA", "2001:db8:0:0::1"), kind="AAAA")
    assert parse_answer(message).addresses == ("2001:db8::1",)


def test_autopath_gives_the_addresses_to_the_name_without_the_suffix() -> None:
    """CoreDNS autopath: asked with a search suffix, answered with a CNAME to exactly the name without it."""
    asked = "example.com.app.svc.cluster.local."
    message = make_answer(asked, (asked, "CNAME", "example.com."), ("example.com.", "A", "192.0.2.1"))
    assert parse_answer(message, SUFFIXES).name == "example.com"


def test_a_cname_to_another_name_is_no_autopath() -> None:
    """Only the name without the suffix; anything else belongs to the name that was asked."""
    asked = "example.com.app.svc.cluster.local."
    message = make_answer(asked, (asked, "CNAME", "example.org."), ("example.org.", "A", "192.0.2.1"))
    assert parse_answer(message, SUFFIXES).name == asked.rstrip(".")


def test_a_suffix_that_is_not_configured_is_no_autopath() -> None:
    """Nobody may lend their addresses to another's name by a CNAME from their own domain."""
    asked = "example.com.evil.test."
    message = make_answer(asked, (asked, "CNAME", "example.com."), ("example.com.", "A", "192.0.2.1"))
    assert parse_answer(message, SUFFIXES).name == "example.com.evil.test"


def test_a_refusal_has_its_code_and_no_addresses() -> None:
    """NXDOMAIN is an answer too: it tells policy from DNS."""
    answer = parse_answer(make_answer("x.test.", rcode=3))
    assert (answer.rcode, answer.addresses) == (3, ())


@pytest.mark.parametrize("octets", [b"\x03a.b\x04test\x00", b"\x03a b\x04test\x00", b"\x03a*b\x04test\x00"])
def test_a_name_with_an_illegal_character_is_refused(octets: bytes) -> None:
    """A dot, a blank or a star inside a label cannot travel as tokens of a subject."""
    header = b"\x00\x01\x81\x80\x00\x01\x00\x00\x00\x00\x00\x00"
    with pytest.raises(AnswerError) as caught:
        parse_answer(header + octets + b"\x00\x01\x00\x01")
    assert caught.value.reason == Reason.LEARN_BAD_NAME


def test_a_query_is_no_answer() -> None:
    """A message without the QR flag teaches nothing."""
    with pytest.raises(AnswerError, match="a query"):
        parse_answer(dns.message.make_query("x.test.", "A").to_wire())


def test_two_questions_teach_nothing() -> None:
    """One question, or we cannot tell whose addresses they are."""
    message = dns.message.make_query("x.test.", "A")
    message.question.append(dns.rrset.RRset(message.question[0].name, 1, 28))
    message.flags |= dns.flags.QR
    with pytest.raises(AnswerError, match="2 questions"):
        parse_answer(message.to_wire())


@given(st.binary(max_size=300))
def test_garbage_is_refused_and_never_raises_anything_else(message: bytes) -> None:
    """Whatever the bytes, the outcome is an answer or an AnswerError."""
    try:
        answer = parse_answer(message, SUFFIXES)
    except AnswerError as error:
        assert error.reason in (Reason.LEARN_MALFORMED, Reason.LEARN_BAD_NAME)
    else:
        assert answer.name
