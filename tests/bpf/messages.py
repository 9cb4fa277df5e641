"""DNS messages by hand: whole ones, and ones that lie."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.bpf.packets import pack

A, NS, CNAME, TXT, AAAA, OPT, HTTPS = 1, 2, 5, 16, 28, 41, 65
QUESTION_POINTER = b"\xc0\x0c"


def wire_name(name: str) -> bytes:
    """Text to wire, uncompressed; raw labels where the text has them."""
    labels = [label.encode("latin-1") for label in name.split(".")] if name else []
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


@dataclass(frozen=True, slots=True)
class Record:
    """One resource record. ``owner``: wire form. ``size``: what rdlength says, if it lies."""

    kind: int
    data: bytes
    ttl: int = 300
    owner: bytes = QUESTION_POINTER
    klass: int = 1
    size: int | None = None

    def wire(self) -> bytes:
        size = len(self.data) if self.size is None else self.size
        return self.owner + struct.pack("!HHIH", self.kind, self.klass, self.ttl, size) + self.data


def address(value: str, *, ttl: int = 300, owner: bytes = QUESTION_POINTER) -> Record:
    """An A or AAAA record."""
    return Record(AAAA if ":" in value else A, pack(value), ttl, owner)


def alias(target: str, *, ttl: int = 300, owner: bytes = QUESTION_POINTER) -> Record:
    """A CNAME record."""
    return Record(CNAME, wire_name(target), ttl, owner)


@dataclass(frozen=True, slots=True)
class Message:
    """A query, or an answer to it."""

    name: str
    kind: int = A
    identifier: int = 0x1234
    answers: Sequence[Record] = ()
    others: Sequence[Record] = field(default_factory=tuple)
    """Records behind the answer section: counted as additional."""
    flags: int = 0x0100
    rcode: int = 0
    klass: int = 1
    questions: int = 1
    count: int | None = None
    """ANCOUNT, if it lies."""

    def wire(self) -> bytes:
        count = len(self.answers) if self.count is None else self.count
        header = struct.pack(
            "!HHHHHH", self.identifier, self.flags | self.rcode, self.questions, count, 0, len(self.others)
        )
        question = (wire_name(self.name) + struct.pack("!HH", self.kind, self.klass)) * self.questions
        return header + question + b"".join(one.wire() for one in (*self.answers, *self.others))


def query(name: str, kind: int = A, identifier: int = 0x1234) -> bytes:
    return Message(name, kind, identifier).wire()


def answer(
    name: str, *records: Record | str, kind: int | None = None, identifier: int = 0x1234, rcode: int = 0
) -> bytes:
    """An answer with these records; a string is an address with TTL 300."""
    made = [address(one) if isinstance(one, str) else one for one in records]
    asked = kind if kind is not None else next((one.kind for one in made if one.kind in (A, AAAA)), A)
    return Message(name, asked, identifier, made, flags=0x8180, rcode=rcode).wire()
