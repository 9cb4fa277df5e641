"""bpf(2) through ctypes: pinned maps, ring buffers and test runs, without bcc (which costs a daemon 60 MB).

Rules of this module:

* Everything is opened by its pin; what ``create_map`` makes is pinned by others, or by nobody.
* Errors are translated once: ``BpfError`` names the operation and the map or program.
* Zero is absent: an array cannot forget an entry, so ``delete`` writes zeros and ``items`` leaves zeros out.

Deliberately absent: layouts (``nodeagent.mapcodec``), which maps there are (``bpf/maps.h``), loading (the loader).
Source of the structures: linux/bpf.h, union bpf_attr.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Self

_SYSCALL_NUMBERS = {"x86_64": 321, "aarch64": 280}

MAP_CREATE = 0
MAP_LOOKUP = 1
MAP_UPDATE = 2
MAP_DELETE = 3
MAP_NEXT_KEY = 4
PROGRAM_LOAD = 5
OBJECT_PIN = 6
OBJECT_GET = 7
PROGRAM_TEST_RUN = 10
OBJECT_INFO = 15
PROGRAM_QUERY = 16
MAP_LOOKUP_BATCH = 24
MAP_UPDATE_BATCH = 26
MAP_DELETE_BATCH = 27

ANY = 0
NOEXIST = 1
EXIST = 2

TYPE_HASH = 1
TYPE_ARRAY = 2
TYPE_PROGRAM_ARRAY = 3
TYPE_PERCPU_HASH = 5
TYPE_PERCPU_ARRAY = 6
TYPE_LRU_HASH = 9
TYPE_LRU_PERCPU_HASH = 10
TYPE_LPM_TRIE = 11
TYPE_ARRAY_OF_MAPS = 12
TYPE_RING_BUFFER = 27
_PERCPU_TYPES = frozenset({TYPE_PERCPU_HASH, TYPE_PERCPU_ARRAY, TYPE_LRU_PERCPU_HASH})
_ARRAY_TYPES = frozenset({TYPE_ARRAY, TYPE_PERCPU_ARRAY})

_ATTRIBUTE_BYTES = 144
_BATCH = 4096
"""Entries a batch call: 1 MiB of the widest key (domains), and few enough calls that their cost vanishes."""
_ENOTSUPP = 524
"""The kernel's own "not supported", which has no name in errno."""
_NO_BATCH = frozenset({errno.EINVAL, errno.EOPNOTSUPP, _ENOTSUPP})


class BpfError(OSError):
    """A bpf(2) call that failed. ``operation`` and ``target`` say what was tried, ``errno`` why not."""

    def __init__(self, number: int, operation: str, target: str) -> None:
        super().__init__(number, f"{operation} {target}: {os.strerror(number)}")
        self.operation = operation
        self.target = target


def _load_syscall() -> tuple[ctypes._NamedFuncPointer, int]:
    machine = platform.machine()
    if machine not in _SYSCALL_NUMBERS:
        raise BpfError(errno.ENOSYS, "bpf(2) on", machine)
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.restype = ctypes.c_long
    return function, _SYSCALL_NUMBERS[machine]


_syscall, _number = _load_syscall()


def _call(command: int, attribute: ctypes.Array[ctypes.c_char]) -> int:
    """The system call; the result, or minus errno."""
    result = int(_syscall(_number, command, attribute, len(attribute)))
    return -ctypes.get_errno() if result < 0 else result


def _attribute(layout: struct.Struct, *values: int | bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(layout.pack(*values), _ATTRIBUTE_BYTES)


def _checked(command: int, attribute: ctypes.Array[ctypes.c_char], operation: str, target: str) -> int:
    result = _call(command, attribute)
    if result < 0:
        raise BpfError(-result, operation, target)
    return result


_CREATE = struct.Struct("=IIIIIII16s")
_ELEMENT = struct.Struct("=IxxxxQQQ")
_OBJECT = struct.Struct("=QII")
_LOAD = struct.Struct("=IIQQIIQII16s")
_INFO = struct.Struct("=IIQ")
_BATCH_ATTRIBUTE = struct.Struct("=QQQQIIQQ")
_QUERY = struct.Struct("=IIIIQIxxxx")
_TEST_RUN = struct.Struct("=IIIIQQIIIIQQIII")
_MAP_INFO = struct.Struct("=IIIIII16s")
_PROGRAM_INFO = struct.Struct("=II8s")


def open_object(path: Path) -> int:
    """A file descriptor for what is pinned at ``path``."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return _checked(OBJECT_GET, _attribute(_OBJECT, ctypes.addressof(name), 0, 0), "open", str(path))


def pin_object(fd: int, path: Path) -> None:
    """Pin a map or program; the pin keeps it alive after the process."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    _checked(OBJECT_PIN, _attribute(_OBJECT, ctypes.addressof(name), fd, 0), "pin", str(path))


def _read_info(fd: int, size: int, target: str) -> bytes:
    buffer = ctypes.create_string_buffer(size)
    _checked(OBJECT_INFO, _attribute(_INFO, fd, size, ctypes.addressof(buffer)), "inspect", target)
    return buffer.raw


@dataclass(frozen=True, slots=True)
class MapInfo:
    """What the kernel says of a map: its layout is these five numbers."""

    type: int
    key_bytes: int
    value_bytes: int
    max_entries: int
    flags: int
    id: int
    name: str


def read_map_info(fd: int, target: str) -> MapInfo:
    """Type, sizes and flags of an open map."""
    kind, number, key, value, entries, flags, name = _MAP_INFO.unpack_from(_read_info(fd, 80, target))
    return MapInfo(kind, key, value, entries, flags, number, name.rstrip(b"\0").decode())


def read_program_tag(fd: int, target: str) -> tuple[int, str]:
    """(id, tag) of an open program; equal tags are equal instructions."""
    _, number, tag = _PROGRAM_INFO.unpack_from(_read_info(fd, 64, target))
    return number, tag.hex()


TCX_HOOKS = (46, 47)
"""BPF_TCX_INGRESS and BPF_TCX_EGRESS."""


_INSTRUCTION_BYTES = 8
PROGRAM_SCHED_CLS = 3
_LOG_BYTES = 1 << 20
_LOG_KEPT = 400


def load_program(code: bytes, name: str, licence: str) -> int:
    """File descriptor of a TC program that the kernel took; BpfError with the verifier's last words.

    The verifier is asked to explain only what it refuses: its log costs more than verifying does.
    """
    text, terms = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(licence.encode())
    log = ctypes.create_string_buffer(_LOG_BYTES)

    def call(level: int) -> int:
        said = (level, _LOG_BYTES, ctypes.addressof(log)) if level else (0, 0, 0)
        count = len(code) // _INSTRUCTION_BYTES
        pointers = (ctypes.addressof(text), ctypes.addressof(terms))
        values = (PROGRAM_SCHED_CLS, count, *pointers, *said, 0, 0, name.encode()[:15])
        return _call(PROGRAM_LOAD, _attribute(_LOAD, *values))

    if (fd := call(0)) >= 0 or (fd := call(1)) >= 0:
        return fd
    words = log.value.decode(errors="replace").strip()[-_LOG_KEPT:]
    raise BpfError(-fd, "load", f"{name} ({words})" if words else name)


def count_tcx_programs(ifindex: int, hook: int) -> int:
    """Programs attached to an interface of this network namespace by tcx; 0 where the kernel has none (before 6.6)."""
    attribute = _attribute(_QUERY, ifindex, hook, 0, 0, 0, 0)
    if _call(PROGRAM_QUERY, attribute) < 0:  # no such hook, or no such interface any more
        return 0
    return int(struct.unpack_from("=I", attribute, 24)[0])


def create_map(
    kind: int, key_bytes: int, value_bytes: int, max_entries: int, *, name: str = "test", flags: int = 0, inner: int = 0
) -> BpfMap:
    """A new map that nothing pins. ``inner``: descriptor of a map like those that a map of maps holds."""
    attribute = _attribute(_CREATE, kind, key_bytes, value_bytes, max_entries, flags, inner, 0, name.encode()[:15])
    return BpfMap.from_fd(_checked(MAP_CREATE, attribute, "create", name), name)


def wait_for_programs() -> None:
    """Return when every program that was running has ended: those that run now see what was written before.

    A write to a map of maps waits for that. Source: kernel/bpf/syscall.c, maybe_wait_bpf_programs.
    """
    with (
        create_map(TYPE_ARRAY, 4, 4, 1, name="waited") as inner,
        create_map(TYPE_ARRAY_OF_MAPS, 4, 4, 1, name="waits", inner=inner.fd) as outer,
    ):
        outer.put(bytes(4), inner.fd.to_bytes(4, sys.byteorder))


class BpfMap:
    """One map, opened by its pin. Keys and values are bytes of exactly the map's sizes.

    Values of per-CPU maps are all CPUs' values one after another, each padded to 8 bytes.
    """

    def __init__(self, path: Path) -> None:
        self._own(open_object(path), path.name)

    @classmethod
    def from_fd(cls, fd: int, name: str) -> Self:
        """Take over an open descriptor."""
        self = cls.__new__(cls)
        self._own(fd, name)
        return self

    def _own(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name
        self.info = read_map_info(fd, name)
        self.value_bytes = self.info.value_bytes
        if self.info.type in _PERCPU_TYPES:
            self.value_bytes = (self.value_bytes + 7) // 8 * 8 * count_possible_cpus()
        self._is_array = self.info.type in _ARRAY_TYPES
        self._key = ctypes.create_string_buffer(self.info.key_bytes or 1)
        self._value = ctypes.create_string_buffer(self.value_bytes or 1)
        self._element = _attribute(_ELEMENT, fd, ctypes.addressof(self._key), ctypes.addressof(self._value), 0)
        self._key_only = _attribute(_ELEMENT, fd, ctypes.addressof(self._key), 0, 0)

    def close(self) -> None:
        """Close the descriptor; the pin stays."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, what: bytes, size: int, operation: str) -> None:
        if len(what) != size:
            raise ValueError(f"{operation} {self.name}: {len(what)} bytes, the map has {size}")

    def get(self, key: bytes) -> bytes | None:
        """The value of ``key``, or None. An LRU counts this as a use."""
        self._check(key, self.info.key_bytes, "get")
        self._key.raw = key
        result = _call(MAP_LOOKUP, self._element)
        if result == -errno.ENOENT:
            return None
        if result < 0:
            raise BpfError(-result, "get", self.name)
        return self._value.raw

    def put(self, key: bytes, value: bytes, flag: int = ANY) -> None:
        """Write one entry. With NOEXIST or EXIST a refusal is a BpfError with EEXIST or ENOENT; full is E2BIG."""
        self._check(key, self.info.key_bytes, "put")
        self._check(value, self.value_bytes, "put")
        self._key.raw = key
        self._value.raw = value
        struct.pack_into("=Q", self._element, 24, flag)
        result = _call(MAP_UPDATE, self._element)
        struct.pack_into("=Q", self._element, 24, 0)
        if result < 0:
            raise BpfError(-result, "put", self.name)

    def delete(self, key: bytes) -> bool:
        """Whether there was such an entry. In an array: write zeros."""
        if self._is_array:
            had = any(self.get(key) or b"")
            self.put(key, bytes(self.value_bytes))
            return had
        self._check(key, self.info.key_bytes, "delete")
        self._key.raw = key
        result = _call(MAP_DELETE, self._key_only)
        if result < 0 and result != -errno.ENOENT:
            raise BpfError(-result, "delete", self.name)
        return result == 0

    def keys(self) -> list[bytes]:
        """All keys now; an entry written meanwhile may be missing. Arrays: keys of entries that are not zero."""
        return [key for key, _ in self.items()]

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries, by batch where the map can. Entries changed meanwhile may appear in either form."""
        zero = bytes(self.value_bytes) if self._is_array else b""
        for key, value in self._items_by_batch():
            if value != zero:
                yield key, value

    def _items_by_batch(self) -> Iterator[tuple[bytes, bytes]]:
        key_size, value_size = self.info.key_bytes, self.value_bytes
        size = min(_BATCH, max(self.info.max_entries, 16))
        cursor = ctypes.create_string_buffer(max(key_size, 8))
        first = True
        while True:
            keys = ctypes.create_string_buffer(key_size * size)
            values = ctypes.create_string_buffer(value_size * size)
            result, count = self._batch(MAP_LOOKUP_BATCH, keys, values, size, None if first else cursor, cursor)
            if result == -errno.ENOSPC:  # one hash bucket is longer than the buffer
                size *= 2
                continue
            if first and -result in _NO_BATCH:
                yield from self._items_by_key()
                return
            if result < 0 and result != -errno.ENOENT:
                raise BpfError(-result, "read", self.name)
            raw_keys, raw_values = keys.raw, values.raw
            for index in range(count):
                yield (
                    raw_keys[index * key_size : (index + 1) * key_size],
                    raw_values[index * value_size : (index + 1) * value_size],
                )
            if result == -errno.ENOENT:
                return
            first = False

    def _items_by_key(self) -> Iterator[tuple[bytes, bytes]]:
        following = ctypes.create_string_buffer(self.info.key_bytes)
        current = ctypes.create_string_buffer(self.info.key_bytes)
        address = 0
        while True:
            attribute = _attribute(_ELEMENT, self.fd, address, ctypes.addressof(following), 0)
            result = _call(MAP_NEXT_KEY, attribute)
            if result == -errno.ENOENT:
                return
            if result < 0:
                raise BpfError(-result, "read", self.name)
            key = following.raw
            value = self.get(key)
            if value is not None:
                yield key, value
            current.raw = key
            address = ctypes.addressof(current)

    def put_many(self, entries: Mapping[bytes, bytes]) -> None:
        """Write all entries, by batch where the map can. On an error some are written and the rest are not."""
        pending = iter(entries.items())
        while chunk := list(islice(pending, _BATCH)):
            for key, value in chunk:
                self._check(key, self.info.key_bytes, "put")
                self._check(value, self.value_bytes, "put")
            keys = ctypes.create_string_buffer(b"".join(key for key, _ in chunk))
            values = ctypes.create_string_buffer(b"".join(value for _, value in chunk))
            result, done = self._batch(MAP_UPDATE_BATCH, keys, values, len(chunk))
            if -result in _NO_BATCH and done in (0, len(chunk)):
                for key, value in chunk:
                    self.put(key, value)
            elif result < 0:
                raise BpfError(-result, "put", self.name)

    def delete_many(self, keys: Iterable[bytes]) -> None:
        """Delete those that exist; unknown keys are fine. In an array: write zeros."""
        if self._is_array:
            self.put_many(dict.fromkeys(keys, bytes(self.value_bytes)))
            return
        pending = iter(keys)
        while chunk := list(islice(pending, _BATCH)):
            for key in chunk:
                self._check(key, self.info.key_bytes, "delete")
            buffer = ctypes.create_string_buffer(b"".join(chunk))
            result, _ = self._batch(MAP_DELETE_BATCH, buffer, None, len(chunk))
            if result < 0:  # one is unknown, or the map has no batches: one by one, those already gone are fine
                for key in chunk:
                    self.delete(key)

    def _batch(
        self,
        command: int,
        keys: ctypes.Array[ctypes.c_char],
        values: ctypes.Array[ctypes.c_char] | None,
        count: int,
        cursor_in: ctypes.Array[ctypes.c_char] | None = None,
        cursor_out: ctypes.Array[ctypes.c_char] | None = None,
    ) -> tuple[int, int]:
        """(0 or minus errno, entries done)."""
        attribute = _attribute(
            _BATCH_ATTRIBUTE,
            ctypes.addressof(cursor_in) if cursor_in is not None else 0,
            ctypes.addressof(cursor_out) if cursor_out is not None else 0,
            ctypes.addressof(keys),
            ctypes.addressof(values) if values is not None else 0,
            count,
            self.fd,
            0,
            0,
        )
        result = _call(command, attribute)
        return result, int(struct.unpack_from("=I", attribute, 32)[0])


def count_possible_cpus() -> int:
    """CPUs that the kernel keeps per-CPU values for; the range list in sysfs may have holes."""
    text = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii").strip()
    return int(text.replace(",", "-").rsplit("-", 1)[-1]) + 1


_RING_BUSY = 1 << 31
_RING_DISCARDED = 1 << 30
_RING_HEADER = 8


class RingBuffer:
    """The consuming side of a pinned ring buffer. One consumer at a time: the position is shared by all.

    ``fileno`` is readable while records wait (level-triggered), so ``loop.add_reader(ring, ...)`` with a bounded
    ``consume`` never loses one. Source: kernel/bpf/ringbuf.c: consumer page, producer page, data mapped twice.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._fd = open_object(path)
        info = read_map_info(self._fd, self.name)
        if info.type != TYPE_RING_BUFFER:
            os.close(self._fd)
            raise BpfError(errno.EINVAL, "open ring buffer", str(path))
        self._size = info.max_entries
        page = mmap.PAGESIZE
        self._consumer = mmap.mmap(self._fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        self._producer = mmap.mmap(self._fd, page + 2 * self._size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._consumer_position = memoryview(self._consumer)[:8].cast("Q")
        self._producer_position = memoryview(self._producer)[:8].cast("Q")
        self._lengths = memoryview(self._producer)[page:].cast("I")
        self._first_record = page + _RING_HEADER

    def fileno(self) -> int:
        """For select, epoll and asyncio."""
        return self._fd

    def consume(self, limit: int) -> list[bytes]:
        """At most ``limit`` records, oldest first; stops at one still being written. Never blocks."""
        records: list[bytes] = []
        position = self._consumer_position[0]
        producer = self._producer_position[0]
        start = position
        while position < producer and len(records) < limit:
            offset = position & (self._size - 1)
            length = self._lengths[offset >> 2]
            if length & _RING_BUSY:
                break
            size = length & ~_RING_DISCARDED
            if not length & _RING_DISCARDED:
                records.append(self._producer[self._first_record + offset : self._first_record + offset + size])
            position += (size + _RING_HEADER + 7) & ~7
        if position != start:
            self._consumer_position[0] = position
        return records

    def count_waiting_bytes(self) -> int:
        """Bytes between producer and consumer: how far this consumer is behind."""
        return int(self._producer_position[0] - self._consumer_position[0])

    def close(self) -> None:
        """Unmap and close; the pin and its records stay."""
        if self._fd >= 0:
            for view in (self._consumer_position, self._producer_position, self._lengths):
                view.release()
            self._consumer.close()
            self._producer.close()
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class TestRun:
    """``action``: what the program returned, signed (TC_ACT_UNSPEC is -1). ``nanos``: mean of one run."""

    __test__ = False  # not a test class

    action: int
    frame: bytes
    nanos: int


_SKB_BYTES = 192
_SKB_MARK = 8
_SKB_CB = slice(48, 68)
_SKB_INGRESS_IFINDEX = 36
_SKB_IFINDEX = 40
_SKB_GSO_SEGS = 164


def run_program(
    fd: int, frame: bytes, *, ifindex: int = 0, ingress_ifindex: int = 0, repeat: int = 1, name: str = "program"
) -> TestRun:
    """BPF_PROG_TEST_RUN of a TC program on one frame of at least 34 bytes.

    ``ifindex``: an interface of this network namespace, 0 for loopback. Raises BpfError (EINVAL: frame too short).
    """
    context = make_context(ifindex=ifindex, ingress_ifindex=ingress_ifindex)
    return PreparedRun(fd, frame, context, repeat=repeat, name=name)()


def make_context(*, ifindex: int = 0, ingress_ifindex: int = 0, gso_segs: int = 0) -> bytes:
    """``struct __sk_buff`` as a program of BPF_PROG_TEST_RUN shall see it.

    ``gso_segs``: into how many segments a super-packet would be cut, 0: it is none.
    """
    context = bytearray(_SKB_BYTES)
    struct.pack_into("=II", context, _SKB_INGRESS_IFINDEX, ingress_ifindex, ifindex)
    struct.pack_into("=I", context, _SKB_GSO_SEGS, gso_segs)
    return bytes(context)


class MarkedRun:
    """A program that is run many times at once and goes on each time where it was, in the packet's mark and cb.

    ``mark`` is where it is now.
    """

    def __init__(self, fd: int, mark: int, *, name: str = "program") -> None:
        self._fd, self._name = fd, name
        self.mark = mark
        self._cb = bytes(_SKB_CB.stop - _SKB_CB.start)

    def __call__(self, repeat: int) -> None:
        """BpfError: EINTR where a signal came; then ``mark`` is where it was."""
        frame = ctypes.create_string_buffer(64)
        told = bytearray(_SKB_BYTES)
        struct.pack_into("=I", told, _SKB_MARK, self.mark)
        told[_SKB_CB] = self._cb
        context = ctypes.create_string_buffer(bytes(told), _SKB_BYTES)
        skb = (_SKB_BYTES, _SKB_BYTES, ctypes.addressof(context), ctypes.addressof(context))
        frames = (len(frame), 0, ctypes.addressof(frame), 0)
        _checked(
            PROGRAM_TEST_RUN, _attribute(_TEST_RUN, self._fd, 0, *frames, repeat, 0, *skb, 0, 0, 0), "run", self._name
        )
        (self.mark,) = struct.unpack_from("=I", context, _SKB_MARK)
        self._cb = context.raw[_SKB_CB]


class PreparedRun:
    """One frame for one program, to be run as often as it is called with little between but the system call."""

    def __init__(self, fd: int, frame: bytes, context: bytes, *, repeat: int = 1, name: str = "program") -> None:
        self._name = name
        self._frame = ctypes.create_string_buffer(frame, len(frame))
        self._output = ctypes.create_string_buffer(len(frame) + 256)
        self._context = ctypes.create_string_buffer(context, _SKB_BYTES)
        sizes = (len(self._frame), len(self._output))
        frames = (ctypes.addressof(self._frame), ctypes.addressof(self._output))
        skb = (_SKB_BYTES, 0, ctypes.addressof(self._context), 0)
        self._attribute = _attribute(_TEST_RUN, fd, 0, *sizes, *frames, repeat, 0, *skb, 0, 0, 0)

    def __call__(self) -> TestRun:
        attribute = self._attribute
        struct.pack_into("=I", attribute, 12, len(self._output))  # where the last run wrote its frame's size
        _checked(PROGRAM_TEST_RUN, attribute, "run", self._name)
        (action,) = struct.unpack_from("=i", attribute, 4)
        (size,) = struct.unpack_from("=I", attribute, 12)
        (nanos,) = struct.unpack_from("=I", attribute, 36)
        return TestRun(action, self._output.raw[:size], nanos)
