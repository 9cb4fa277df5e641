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

A, CNAME, AAAA = 1, 5, 28
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


def require(condition: object) -> None:
    if not condition:
        raise NotLearned


def read_question(message: bytes) -> tuple[tuple[bytes, ...], int, int, int]:
    """(labels lower case, type, class, where the records begin)."""
    parser = dns.wire.Parser(message, 12)
    labels = []
    while size := parser.get_uint8():
        require(size <= 63 and parser.current + size - 12 < 255)
        labels.append(parser.get_bytes(size).lower())
    require(parser.current - 12 <= 255)
    return tuple(labels), parser.get_uint16(), parser.get_uint16(), parser.current


def skip_owner(parser: dns.wire.Parser) -> None:
    start = parser.current
    for _ in range(OWNER_LABELS_MAX):
        size = parser.get_uint8()
        if size == 0:
            return
        if size >= 192:
            to = (size & 63) << 8 | parser.get_uint8()
            require(to < start)
            if to < 12:
                raise Declined
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


@dataclass(frozen=True, slots=True)
class Answer:
    """Of a message whose header and question are those of an answer that may teach something."""

    labels: tuple[bytes, ...]
    kind: int
    records: int
    start: int


def learn(message: bytes, asked: bytes, suffixes: tuple[str, ...]) -> Outcome:
    """What the answer teaches that was given to the query ``asked``."""
    read = Read.NO_ANSWER
    try:
        answer = _read_answer(message, asked)
        read = Read.MALFORMED
        return Outcome(Read.WHOLE, _read_records(message, answer, suffixes))
    except Declined:
        return Outcome(Read.DECLINED, set())
    except (NotLearned, dns.exception.FormError):
        return Outcome(read, set())


def _read_answer(message: bytes, asked: bytes) -> Answer:
    require(len(message) >= 17)
    header = dns.wire.Parser(message)
    identifier, flags, questions, answers = (header.get_uint16() for _ in range(4))
    labels, kind, klass, start = read_question(message)
    require(flags & dns.flags.QR and not flags & 0x7800 and questions == 1)
    require(identifier == int.from_bytes(asked[:2], "big") and read_question(asked)[:3] == (labels, kind, klass))
    require(not flags & 15 and klass == 1 and kind in (A, AAAA))
    require(labels and not any(b"." in one or b"\0" in one for one in labels))
    return Answer(labels, kind, answers, start)


def _read_records(message: bytes, answer: Answer, suffixes: tuple[str, ...]) -> Learned:
    labels, kind = answer.labels, answer.kind
    parser = dns.wire.Parser(message, answer.start)
    found: list[tuple[bytes, int]] = []
    for index in range(answer.records):
        skip_owner(parser)
        record, record_class, ttl, size = parser.get_struct("!HHIH")
        data = parser.get_bytes(size)
        if record == kind and record_class == 1:
            require(size == (4 if kind == A else 16))
            found.append((data, ttl))
        elif index == 0 and record == CNAME and record_class == 1:
            labels = strip_suffix(labels, data, suffixes)
    name = b".".join(labels).decode("latin-1")
    return {(name, data, ttl) for data, ttl in found if kind == A or not is_mapped(data)}


def is_mapped(data: bytes) -> bool:
    """Whether an IPv6 address has the form of a mapped IPv4 one, which no name may have."""
    return data[:12] == bytes(10) + b"\xff\xff"


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
