"""The least that each row of the datapath can cost in its shape: the bare look-ups and writes that it must do.

A program of primitives for each row, timed in the same turns on the same frame: the tables that the row's programs must
ask, with keys and values of their sizes, one event and one counter where the row has them, and nothing in between.
What a row costs above its floor is the programs' own instructions; what it costs below a bound is what is left to save.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from services.common import bpf
from services.nodeagent import loader

REPEAT, TOLD = 100_000, 8_000
_RING_BYTES = 96
FLOORS = {
    "established_v4": "established",
    "established_v6": "established",
    "denial": "denied",
    "denial_names": "denied_names",
    "dns_answer_4_known": "answered",
}
"""Row -> the program that is its floor."""

FILTERS = {"nothing": "filters that do nothing", "counting": "filters that find a flow and count in it"}
"""Programs that are filters for comparison, and what they are in words."""

_PROGRAMS = """
#define INLINE inline __attribute__((always_inline))
#define TABLE(type, key, leaf, name, size, flags) BPF_F_TABLE(type, key, leaf, name, size, flags)
struct key8 { unsigned long long word; };
struct key16 { unsigned long long word[2]; };
struct key24 { unsigned long long word[3]; };
struct key32 { unsigned long long word[4]; };
struct prefix { unsigned int bits; unsigned char byte[4]; };
struct value { unsigned long long word[8]; };
TABLE("hash", struct key32, struct value, flows, 65536, 1);
TABLE("hash", struct key16, struct key8, addresses, 65536, 1);
TABLE("hash", struct key24, struct value, names, 65536, 1);
TABLE("lpm_trie", struct prefix, struct key8, prefixes, 65536, 1);
TABLE("array", unsigned int, struct value, slots, 65536, 0);
TABLE("percpu_array", unsigned int, struct value, scratch, 1, 0);
BPF_RINGBUF_OUTPUT(events, 512);

static INLINE struct value *at(unsigned int index)
{
    return slots.lookup(&index);
}

static INLINE struct value *find_flow(unsigned long long number)
{
    struct key32 key = {.word = {number}};
    return flows.lookup(&key);
}

static INLINE struct value *find_name(unsigned long long number)
{
    struct key24 key = {.word = {number}};
    return names.lookup(&key);
}

static INLINE void *find_prefix(unsigned char first, unsigned char second, unsigned char third)
{
    struct prefix key = {.bits = 32, .byte = {first, second, third, 80}};
    return prefixes.lookup(&key);
}

static INLINE int is_begun(void)
{
    unsigned int zero = 0;
    return at(1) && at(2) && scratch.lookup(&zero) && bpf_jiffies64(); // endpoint, epoch
}

int nothing(struct __sk_buff *skb)
{
    return -1;
}

int counting(struct __sk_buff *skb)
{
    struct key32 key = {.word = {skb->ifindex, skb->ingress_ifindex == skb->ifindex}};
    struct value *flow = flows.lookup(&key), first = {};

    if (!flow) {
        flows.update(&key, &first);
        return -1;
    }
    flow->word[0]++;
    flow->word[1] += skb->len;
    return -1;
}

int established(struct __sk_buff *skb)
{
    struct value *flow = find_flow(1);
    return is_begun() && flow && at(3) ? -1 : 2; // timeouts
}

static INLINE int is_asked(void)
{
    struct key16 address = {.word = {2}};
    return is_begun() && !find_flow(2) && at(4) && !addresses.lookup(&address) && find_prefix(100, 83, 136) && at(5) &&
           at(6) && at(7); // ruleset, row of the peers, class and row of the port
}

static INLINE int tell(struct __sk_buff *skb)
{
    struct value *counter = at(8), *event;

    if (!counter || !at(9) || !at(3)) // quota, settings
        return -1;
    __sync_fetch_and_add(&counter->word[0], 1);
    __sync_fetch_and_add(&counter->word[1], skb->len);
    event = events.ringbuf_reserve(96);
    if (!event)
        return -1;
    events.ringbuf_submit(event, 0);
    return 2;
}

int denied(struct __sk_buff *skb)
{
    return is_asked() ? tell(skb) : -1;
}

int denied_names(struct __sk_buff *skb)
{
    return is_asked() && find_name(1) && !find_name(9) && at(10) ? tell(skb) : -1; // this node's, others', its row
}

int answered(struct __sk_buff *skb)
{
    // The resolver (a key as long as a name's), the question, the flow; the name's row, what was told, four addresses.
    return is_begun() && find_name(5) && at(11) && find_flow(1) && at(3) && find_prefix(10, 0, 2) && at(12) &&
           find_name(1) && find_name(2) && find_name(3) && find_name(4) ? -1 : 2;
}
"""


@contextmanager
def floors(frame: bytes) -> Iterator[dict[str, Callable[[], int]]]:
    """Program -> one turn of it, in nanoseconds a run."""
    module = loader.Module(_PROGRAMS, ["-O2"])
    maps = {name: fd for name, (fd, _) in module.list_maps().items()}
    _fill(maps)
    pin = _make_pin("events")
    bpf.pin_object(maps["events"], pin)
    try:
        ring = bpf.RingBuffer(pin)
        loaded = {name: module.load_program(name) for name in sorted(set(FLOORS.values()))}

        def turn(name: str) -> int:
            ring.consume(1 << 20)
            done = bpf.run_program(loaded[name], frame, repeat=TOLD if name.startswith("denied") else REPEAT)
            expected = 2 if name.startswith("denied") else 0xFFFFFFFF
            if done.action & 0xFFFFFFFF != expected:
                raise RuntimeError(f"the floor {name} did not do all that it should")
            return done.nanos

        yield {name: lambda name=name: turn(name) for name in loaded}  # type: ignore[misc]
        ring.close()
    finally:
        pin.unlink()


@contextmanager
def pinned_filters() -> Iterator[dict[str, Path]]:
    """``FILTERS`` by their pins, each of which lets everything pass."""
    module = loader.Module(_PROGRAMS, ["-O2"])
    pins = {name: _make_pin(name) for name in FILTERS}
    try:
        for name, pin in pins.items():
            bpf.pin_object(module.load_program(name), pin)
        yield pins
    finally:
        for pin in pins.values():
            pin.unlink(missing_ok=True)


def _make_pin(name: str) -> Path:
    return Path("/sys/fs/bpf") / f"yett-floor-{os.getpid()}-{name}"


def _fill(maps: dict[str, int]) -> None:
    for name, key_bytes, numbers in (("flows", 32, (1,)), ("names", 24, (1, 2, 3, 4, 5))):
        table = bpf.BpfMap.from_fd(maps[name], name)
        for number in numbers:
            table.put(number.to_bytes(key_bytes, "little"), bytes(64))
    prefixes = bpf.BpfMap.from_fd(maps["prefixes"], "prefixes")
    thick = {(24).to_bytes(4, "little") + bytes((100, 64 + (n >> 8), n & 255, 0)): bytes(8) for n in range(10_000)}
    prefixes.put_many(thick | {(8).to_bytes(4, "little") + bytes((first, 0, 0, 0)): bytes(8) for first in (10, 192)})
