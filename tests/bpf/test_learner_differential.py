"""The kernel's learner and a reference learn the same of valid, mutated and hostile answers."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from services.nodeagent import mapcodec
from services.nodeagent.tables import ConfigEntry
from tests.bpf import packets, reference
from tests.bpf.messages import AAAA, HTTPS, NS, OPT, TXT, A, Message, Record, alias, wire_name
from tests.bpf.prog_run import Kernel, boot_seconds
from tests.bpf.worlds import NETWORK_POLICY, POD4, RESOLVER, add_pattern, make_tables, with_dns

pytestmark = pytest.mark.kernel
MESSAGES = int(os.environ.get("YETT_LEARNER_MESSAGES", "10000"))
SEED = int(os.environ.get("YETT_SEED", "1"))
SUFFIXES = ("svc.cluster.local", "cluster.local")
ROW, EXACT_ROW = 7, 8
GRACE, TTL_MIN, TTL_MAX = 60, 30, 3600
NAMES = (
    "a.test",
    "www.b.test",
    "deep.er.and.deeper.c.test",
    "exact.example",
    "un.covered",
    "A.TeSt",
    "x" * 63 + ".test",
)


def covering_row(name: str) -> int:
    """0 if no pattern covers it."""
    if name == "exact.example":
        return EXACT_ROW
    return ROW if name.endswith(".test") else 0


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
    records = [random_record(rng, kind, name) for _ in range(rng.choice([0, 1, 2, 4, 8, 40, 80]))]
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


def make_message(rng: random.Random) -> bytes:
    message = bytearray(make_valid(rng))
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


def exchange(kernel: Kernel, query: bytes, message: bytes) -> None:
    kernel.from_pod(packets.ip(POD4, RESOLVER, packets.UDP, packets.udp(4000, 53, query)))
    kernel.to_pod(packets.ip(RESOLVER, POD4, packets.UDP, packets.udp(53, 4000, message)))


def take_learned(kernel: Kernel) -> dict[tuple[bytes, int], int]:
    """(address, row) -> seconds left; and forget it."""
    resolutions = kernel.maps["resolutions"]
    found = {}
    for key, value in list(resolutions.items()):
        for row, expiry in mapcodec.decode_names(value).slots:
            if row:
                found[(key[:16], row)] = expiry - boot_seconds()
        resolutions.delete(key)
    return found


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


def test_the_kernel_learns_what_the_reference_learns(kernel: Kernel) -> None:
    """Of thousands of messages both learn the same names, addresses and lifetimes, and dnspython where it can read."""
    tables = with_dns(make_tables(egress={"isolated": True}, ingress={"isolated": True}))
    add_pattern(tables, "*.test", ROW, 1 << NETWORK_POLICY)
    add_pattern(tables, "exact.example", EXACT_ROW, 1 << NETWORK_POLICY)
    tables.config = ConfigEntry(names_per_endpoint=1 << 30, search_suffixes=SUFFIXES)
    kernel.fill(tables)
    rng = random.Random(SEED)
    taught = followed = 0
    for number in range(MESSAGES):
        message = make_message(rng)
        query = make_query(message)
        exchange(kernel, query, message)
        found = take_learned(kernel)
        learned = reference.learn(message, query, SUFFIXES)
        expected = expect_learned(learned)
        where = f"message {number} of seed {SEED}: {message.hex()}"
        assert found.keys() == expected.keys(), where
        for key, lifetime in expected.items():
            assert lifetime - 2 <= found[key] <= lifetime, where
        strict = reference.follow(message)
        if learned and strict is not None:
            followed += 1
            mapped = {data for data in strict if data[:12] == bytes(10) + b"\xff\xff"}
            assert {data for _, data, _ in learned} == strict - mapped, where
        taught += bool(expected)
    assert taught > MESSAGES // 10 and followed > MESSAGES // 20, (taught, followed)
