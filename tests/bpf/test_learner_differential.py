"""The kernel's learner and a reference learn the same of valid, mutated and hostile answers."""

from __future__ import annotations

import ast
import inspect
import os
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path

import pytest

from services.nodeagent import mapcodec
from services.nodeagent.tables import ConfigEntry
from tests.bpf import packets, reference
from tests.bpf.messages import AAAA, HTTPS, NS, OPT, TXT, A, Message, Record, alias, wire_name
from tests.bpf.prog_run import Kernel, boot_seconds
from tests.bpf.reference import Read
from tests.bpf.worlds import NETWORK_POLICY, POD4, POD_ID, RESOLVER, add_pattern, make_tables, with_dns

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(3600)]
MESSAGES = int(os.environ.get("YETT_LEARNER_MESSAGES", "200000"))
"""``make soak`` asks for more; an emulated processor gets less."""
TEMPLATES = 1_000
"""Messages made with care; the others are made of them by changing bytes, which costs a hundredth."""
FOLLOWED = 20
"""dnspython decodes every twentieth message that taught something as a whole, and every answer that taught nothing."""
CASES = Path(__file__).with_name("learner_cases.txt")
"""Messages that are replayed first: a name and hexadecimal digits a line. What was ever found belongs here."""
SEED = int(os.environ.get("YETT_SEED", "1"))
SUFFIXES = ("svc.cluster.local", "cluster.local")
GRACE, TTL_MIN, TTL_MAX = 60, 30, 3600
EXACT = ("a.test", "www.b.test", "deep.er.and.deeper.c.test", "exact.example", "x" * 63 + ".test")
NAMES = (*EXACT, "un.covered", "A.TeSt", "a.b.test", "er.deeper.c.test")
PATTERNS = (*EXACT, "*.test", "*.b.test", "*.deeper.c.test")
ROWS = {pattern: row for row, pattern in enumerate(PATTERNS, 7)}
"""A row for each name, so that one that is taken for another is seen, and for what changed bytes make of them."""


def covering_row(name: str) -> int:
    """0 if no pattern covers it."""
    labels = name.split(".")
    wider = (f"*.{'.'.join(labels[at:])}" for at in range(1, len(labels)))
    return next((ROWS[one] for one in (name, *wider) if one in ROWS), 0)


def random_record(rng: random.Random, kind: int, name: str) -> Record:
    owner = rng.choice([b"\xc0\x0c", wire_name(name), wire_name("cdn.example.net"), b"\0", b"\xc0\x0e"])
    ttl = rng.choice([0, 1, 29, 30, 300, 3600, 86400, (1 << 31) - 1, 1 << 31, (1 << 32) - 1])
    other = rng.choice([NS, TXT, HTTPS, OPT, 46, A, AAAA, 5])
    return rng.choices(
        [
            Record(kind, rng.randbytes(4 if kind == A else 16), ttl, owner),
            alias(rng.choice(NAMES), ttl=ttl, owner=owner),
            Record(other, rng.randbytes(rng.randrange(40)), ttl, owner),
            Record(kind, rng.randbytes(rng.choice([3, 5, 15, 17])), ttl, owner),
            Record(kind, rng.randbytes(4 if kind == A else 16), ttl, owner, klass=rng.choice([1, 3, 255])),
        ],
        [12, 2, 2, 0.15, 0.5],
    )[0]


def make_valid(rng: random.Random) -> bytes:
    kind = rng.choices([A, AAAA, HTTPS], [8, 6, 1])[0]
    name = rng.choice(NAMES)
    records = [
        random_record(rng, kind, name) for _ in range(rng.choices([0, 1, 2, 4, 8, 40, 80], [4, 10, 10, 8, 4, 1, 1])[0])
    ]
    if rng.random() < 0.2:
        target, name = name, f"{name}.{rng.choice(['ns.svc.cluster.local', 'svc.cluster.local', 'other.local'])}"
        records.insert(0, alias(target))
    rcode = rng.choices([0, 2, 3], [20, 1, 1])[0]
    flags = rng.choices([0x8180, 0x8580, 0x8380, 0x0100, 0xA980], [20, 4, 1, 1, 1])[0]
    extra = [Record(OPT, b"", owner=b"\0", klass=1232)] * rng.randrange(2)
    klass = rng.choices([1, 3], [30, 1])[0]
    message = Message(name, kind, rng.randrange(65536), records, extra, flags, rcode, klass).wire()
    return message if len(message) < 3400 else message[:3400]


def flip(rng: random.Random, message: bytearray) -> None:
    message[rng.randrange(len(message))] = rng.choice([0, 1, 4, 12, 63, 64, 0x80, 0xC0, 0xFF, rng.randrange(256)])


def cut(rng: random.Random, message: bytearray) -> None:
    del message[rng.randrange(13, len(message) + 1) :]


def grow(rng: random.Random, message: bytearray) -> None:
    message.extend(rng.randbytes(rng.randrange(1, 40)))


def splice(rng: random.Random, message: bytearray) -> None:
    at = rng.randrange(12, len(message))
    del message[at : at + rng.randrange(1, 5)]


def lie(rng: random.Random, message: bytearray) -> None:
    message[rng.randrange(4, 12)] = rng.choice([0, 0, 1, 2, 255])


MUTATIONS: tuple[Callable[[random.Random, bytearray], None], ...] = (flip, flip, flip, cut, grow, splice, lie)


def make_message(rng: random.Random, templates: list[bytes]) -> bytes:
    """A template with another id, and in two of three cases a few bytes changed."""
    message = bytearray(rng.choice(templates))
    message[:2] = rng.randbytes(2)
    for _ in range(rng.choices([0, 1, 2, 5], [4, 4, 2, 1])[0]):
        if len(message) > 17:
            rng.choice(MUTATIONS)(rng, message)
    return bytes(message)


def make_query(message: bytes) -> bytes:
    """The query that this answer would answer, if its question can be read; else some query."""
    try:
        end = reference.read_question(message)[3]
    except (reference.NotLearned, reference.dns.exception.FormError):
        return message[:2].ljust(2, b"\0") + b"\1\0\0\1\0\0\0\0\0\0" + wire_name("a.test") + b"\0\1\0\1"
    return message[:2] + b"\1\0\0\1\0\0\0\0\0\0" + message[12:end]


ENVELOPES = {
    "from_pod": packets.ip(POD4, RESOLVER, packets.UDP, packets.udp(4000, 53, bytes(64)))[:34],
    "to_pod": packets.ip(RESOLVER, POD4, packets.UDP, packets.udp(53, 4000, bytes(64)))[:34],
}
"""Ethernet and IPv4 headers; the length is put in."""


def make_frame(program: str, source: int, destination: int, message: bytes) -> bytes:
    header = ENVELOPES[program]
    length = len(message)
    udp = struct.pack("!HHHH", source, destination, 8 + length, 0)
    return header[:16] + (28 + length).to_bytes(2, "big") + header[18:] + udp + message


class Learner:
    """The kernel's learner behind two frames, and what it wrote, read without walking the map."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._resolutions, self._quotas = kernel.maps["resolutions"], kernel.maps["quotas"]
        self._charged = self._count_charged()

    def exchange(self, query: bytes, message: bytes) -> None:
        self._kernel.from_pod(make_frame("from_pod", 4000, 53, query))
        self._kernel.to_pod(make_frame("to_pod", 53, 4000, message))

    def take(self, expected: dict[tuple[bytes, int], int]) -> dict[tuple[bytes, int], int]:
        """(address, row) -> seconds left; and forget it. Expected keys are asked for; the quota tells of any other."""
        charged, now = self._count_charged(), boot_seconds()
        keys = {address + bytes(8): (address, row) for address, row in expected}
        values = {key: self._resolutions.get(key) for key in keys}
        there = {keys[key]: value for key, value in values.items() if value is not None}
        is_complete = charged - self._charged == len(there)
        self._charged = charged
        if not is_complete:
            return self._take_all(now)
        self._resolutions.delete_many(key for key, value in values.items() if value is not None)
        return {
            key: expiry - now for key, value in there.items() for row, expiry in decode_slots(value) if row == key[1]
        }

    def _take_all(self, now: int) -> dict[tuple[bytes, int], int]:
        found = {}
        for key, value in list(self._resolutions.items()):
            found.update({(key[:16], row): expiry - now for row, expiry in decode_slots(value)})
            self._resolutions.delete(key)
        return found

    def _count_charged(self) -> int:
        value = self._quotas.get(POD_ID.to_bytes(4, "little"))
        return int.from_bytes((value or bytes(36))[32:36], "little")


def decode_slots(value: bytes) -> list[tuple[int, int]]:
    return [(row, expiry) for row, expiry in mapcodec.decode_names(value).slots if row]


def expect_learned(learned: reference.Learned) -> dict[tuple[bytes, int], int]:
    expected: dict[tuple[bytes, int], int] = {}
    for name, data, ttl in learned:
        row = covering_row(name)
        if not row:
            continue
        packed = bytes(10) + b"\xff\xff" + data if len(data) == 4 else data
        lifetime = GRACE + min(max(ttl if ttl < 1 << 31 else 0, TTL_MIN), TTL_MAX)
        expected[(packed, row)] = max(expected.get((packed, row), 0), lifetime)
    return expected


def read_cases() -> list[tuple[str, bytes]]:
    lines = [line.partition(": ") for line in CASES.read_text().splitlines() if line and not line.startswith("#")]
    return [(name, bytes.fromhex(digits)) for name, _, digits in lines]


def make_messages() -> Iterator[tuple[str, bytes]]:
    """The kept ones, then thousands of random ones; each with a name."""
    yield from read_cases()
    rng = random.Random(SEED)
    templates = [make_valid(rng) for _ in range(TEMPLATES)]
    for number in range(MESSAGES):
        yield f"message {number} of seed {SEED}", make_message(rng, templates)


def test_the_kernel_learns_what_the_reference_learns(kernel: Kernel) -> None:
    """Of thousands of messages both learn the same names, addresses and lifetimes, and what dnspython finds."""
    tables = with_dns(make_tables(egress={"isolated": True}, ingress={"isolated": True}))
    for pattern, row in ROWS.items():
        add_pattern(tables, pattern, row, 1 << NETWORK_POLICY)
    tables.config = ConfigEntry(names_per_endpoint=1 << 30, search_suffixes=SUFFIXES)
    kernel.fill(tables)
    learner = Learner(kernel)
    taught: Counter[int] = Counter()
    followed: Counter[Followed] = Counter()
    for number, (name, message) in enumerate(make_messages()):
        query = make_query(message)
        learner.exchange(query, message)
        outcome = reference.learn(message, query, SUFFIXES)
        expected = expect_learned(outcome.learned)
        found = learner.take(expected)
        if found.keys() != expected.keys() or any(not life - 2 <= found[key] <= life for key, life in expected.items()):
            raise AssertionError(f"{name}: {found} for {expected}: {message.hex()}")
        taught.update(row for _, row in expected)
        if outcome.read is not Read.NO_ANSWER and (not outcome.learned or number % FOLLOWED == 0):
            followed[follow(name, message, outcome)] += 1
    assert all(taught[row] > MESSAGES // 2_000 for row in ROWS.values()), taught
    assert taught.total() > MESSAGES // 10 and followed[Followed.SAME] > MESSAGES // FOLLOWED // 20, (taught, followed)
    assert followed[Followed.NOTHING] and followed[Followed.DECLINED] <= MESSAGES // 10_000 + 2, followed
    assert list(kernel.maps["resolutions"].items()) == []


def test_the_reference_is_short_enough_to_be_believed() -> None:
    """At most 60 lines of code apply the conditions; dnspython's parser reads the bytes."""
    trees = [ast.parse(inspect.getsource(one)) for one in reference.CONDITIONS]
    assert sum(len(ast.unparse(strip_docstring(tree)).splitlines()) for tree in trees) <= 60


def strip_docstring(tree: ast.Module) -> ast.Module:
    (function,) = tree.body
    assert isinstance(function, ast.FunctionDef)
    function.body = function.body[ast.get_docstring(function) is not None :]
    return tree


class Followed(Enum):
    """What dnspython says of an answer whose header, rcode and question are in order."""

    UNREADABLE = 1
    NOTHING = 2
    """It finds no address either."""
    SAME = 3
    DECLINED = 4
    """It finds addresses behind an owner name that the design does not read."""


def follow(name: str, message: bytes, outcome: reference.Outcome) -> Followed:
    """Where dnspython reads the message, its addresses are those that were learned: none is wrongly refused."""
    strict = reference.follow(message)
    if strict is None:
        return Followed.UNREADABLE
    given = {data for data in strict if not reference.is_mapped(data)}
    if outcome.read is Read.DECLINED and given:
        return Followed.DECLINED
    assert {data for _, data, _ in outcome.learned} == given, f"{name}: {message.hex()}"
    return Followed.SAME if given else Followed.NOTHING
