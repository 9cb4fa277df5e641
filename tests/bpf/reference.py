"""What an answer teaches, read the slow way: dnspython's wire parser, and the conditions of the design one by one.

Shares no table and no line with ``bpf/learn.h``. Owner names are measured, not followed: an answer's addresses belong
to the name that was asked, whatever the records say. ``follow`` is the strict second opinion, where dnspython decodes
the whole message.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.wire

A, CNAME, AAAA, IN = 1, 5, 28, 1
SIZES = {A: 4, AAAA: 16}
ANSWER_MASK = 0xF80F
"""Of the flags: response, opcode and rcode."""
OWNER_LABELS_MAX = 16
Learned = set[tuple[str, bytes, int]]
"""(name, address, TTL as answered)."""


class NotLearned(Exception):
    """The message teaches nothing."""


class Declined(NotLearned):
    """An owner name that others read and the kernel does not: more than 15 labels, or a pointer into the header."""


class Read(Enum):
    """How far a message was read."""

    NO_ANSWER = "header, rcode or question"
    MALFORMED = "records"
    DECLINED = "an owner name that is not read"
    WHOLE = "to its end"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a message teaches; nothing, unless it was read to its end."""

    read: Read
    learned: Learned


Question = tuple[tuple[bytes, ...], int, int, int]
"""(labels in lower case, type, class, where the records begin)."""


def learn(message: bytes, asked: bytes, suffixes: tuple[str, ...]) -> Outcome:
    """What the answer teaches that was given to the query ``asked``."""
    read = Read.NO_ANSWER
    try:
        question = read_answer(message, asked)
        read = Read.MALFORMED
        return Outcome(Read.WHOLE, read_records(message, question, suffixes))
    except (NotLearned, dns.exception.FormError) as error:
        return Outcome(Read.DECLINED if isinstance(error, Declined) else read, set())


def require(condition: object, otherwise: type[NotLearned] = NotLearned) -> None:
    if not condition:
        raise otherwise


def read_question(message: bytes) -> Question:
    parser = dns.wire.Parser(message, 12)
    labels = []
    while size := parser.get_uint8():
        require(size <= 63 and parser.current + size - 12 < 255)  # the end's byte makes it 255 at most
        labels.append(parser.get_bytes(size).lower())
    return tuple(labels), parser.get_uint16(), parser.get_uint16(), parser.current


def read_answer(message: bytes, asked: bytes) -> Question:
    flags, questions = dns.wire.Parser(message).get_struct("!2xHH")
    question = labels, kind, klass, _ = read_question(message)
    require(flags & ANSWER_MASK == dns.flags.QR and questions == 1)
    require(message[:2] == asked[:2] and question[:3] == read_question(asked)[:3])
    require(klass == IN and kind in SIZES and labels and not any(b"." in one or b"\0" in one for one in labels))
    return question


def skip_owner(parser: dns.wire.Parser) -> None:
    start = parser.current
    for _ in range(OWNER_LABELS_MAX):
        size = parser.get_uint8()
        if size >= 192:
            require((to := (size & 63) << 8 | parser.get_uint8()) < start)
            require(to >= 12, Declined)
        if size == 0 or size >= 192:
            return
        require(size <= 63)
        parser.get_bytes(size)
    raise Declined


def strip_suffix(labels: tuple[bytes, ...], target: bytes, suffixes: tuple[str, ...]) -> tuple[bytes, ...]:
    """The asked name, or what is before its search suffix where the first record's CNAME is exactly that."""
    for length in range(1, len(labels)):
        wire = b"".join(bytes([len(one)]) + one for one in labels[:length]) + b"\0"
        rest = b".".join(labels[length:]).decode("latin-1")
        if target.lower() == wire and any(rest == one or rest.partition(".")[2] == one for one in suffixes):
            return labels[:length]
    return labels


def read_records(message: bytes, question: Question, suffixes: tuple[str, ...]) -> Learned:
    labels, asked, _, start = question
    parser = dns.wire.Parser(message, start)
    found = []
    for index in range(int.from_bytes(message[6:8], "big")):
        skip_owner(parser)
        kind, klass, ttl = parser.get_struct("!HHI")
        data = parser.get_counted_bytes(2)
        if (kind, klass) == (asked, IN):
            require(len(data) == SIZES[kind])
            found.append((data, ttl))
        elif (index, kind, klass) == (0, CNAME, IN):
            labels = strip_suffix(labels, data, suffixes)
    return {(b".".join(labels).decode("latin-1"), data, ttl) for data, ttl in found if not is_mapped(data)}


def is_mapped(data: bytes) -> bool:
    """Whether an IPv6 address has the form of a mapped IPv4 one, which no name may have."""
    return len(data) == 16 and data[:12] == bytes(10) + b"\xff\xff"


CONDITIONS = (require, read_question, read_answer, skip_owner, strip_suffix, read_records, is_mapped, learn)
"""All that decides what is learned; the rest says how it is told."""


def follow(message: bytes) -> set[bytes] | None:
    """The addresses that dnspython itself finds, following every name; None if it refuses the message."""
    try:
        parsed = dns.message.from_wire(message, one_rr_per_rrset=True)
    except (dns.exception.DNSException, ValueError):
        return None
    if len(parsed.question) != 1:
        return None
    question = parsed.question[0]
    return {
        rdata.to_wire() or b""
        for rrset in parsed.answer
        for rdata in rrset
        if rrset.rdclass == 1 and rrset.rdtype == question.rdtype
    }
