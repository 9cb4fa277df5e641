"""bpf(2) through ctypes."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from services.common import bpf

pytestmark = pytest.mark.kernel


def number(value: int) -> bytes:
    return value.to_bytes(4, "little")


@pytest.fixture
def table() -> Iterator[bpf.BpfMap]:
    with bpf.create_map(bpf.TYPE_HASH, 4, 4, 10_000) as made:
        yield made


def test_a_value_put_is_the_value_got(table: bpf.BpfMap) -> None:
    """get returns what put wrote, None where nothing is, and delete says whether there was something."""
    table.put(number(1), number(7))
    assert table.get(number(1)) == number(7)
    assert table.get(number(2)) is None
    assert table.delete(number(1)) and not table.delete(number(1))
    assert table.get(number(1)) is None


def test_noexist_refuses_a_second_write(table: bpf.BpfMap) -> None:
    """NOEXIST never overwrites; the error names operation and map."""
    table.put(number(1), number(7), bpf.NOEXIST)
    with pytest.raises(bpf.BpfError, match="put test") as caught:
        table.put(number(1), number(8), bpf.NOEXIST)
    assert caught.value.errno == errno.EEXIST
    assert table.get(number(1)) == number(7)


def test_wrong_sizes_never_reach_the_kernel(table: bpf.BpfMap) -> None:
    """A key or value of another size is refused: the kernel would read past it."""
    with pytest.raises(ValueError, match="the map has 4"):
        table.get(b"\0" * 5)
    with pytest.raises(ValueError, match="the map has 4"):
        table.put_many({number(1): b""})


@pytest.mark.parametrize("kind", [bpf.TYPE_HASH, bpf.TYPE_LRU_HASH, bpf.TYPE_LPM_TRIE])
def test_batches_write_read_and_delete_everything(kind: int) -> None:
    """put_many, items and delete_many agree for every kind of map, over more than one batch."""
    flags = 1 if kind == bpf.TYPE_LPM_TRIE else 0
    with bpf.create_map(kind, 8, 4, 20_000, flags=flags) as made:
        wanted = {number(32) + value.to_bytes(4, "big"): number(value) for value in range(9_000)}
        made.put_many(wanted)
        assert dict(made.items()) == wanted
        made.delete_many([*list(wanted)[:8_990], number(32) + b"\xff\xff\xff\xff"])
        assert sorted(made.keys()) == sorted(list(wanted)[8_990:])


def test_zero_is_absent_in_an_array() -> None:
    """An array's entries are there when they are not zero; delete writes zeros."""
    with bpf.create_map(bpf.TYPE_ARRAY, 4, 4, 5_000) as made:
        made.put_many({number(3): number(30), number(4_999): number(7)})
        assert dict(made.items()) == {number(3): number(30), number(4_999): number(7)}
        assert made.delete(number(3)) and not made.delete(number(3))
        made.delete_many([number(4_999)])
        assert dict(made.items()) == {}


def test_a_full_map_is_an_error_that_says_so() -> None:
    """Writing past max_entries is a BpfError with E2BIG, never a silent loss."""
    with bpf.create_map(bpf.TYPE_HASH, 4, 4, 16) as made, pytest.raises(bpf.BpfError) as caught:
        made.put_many({number(value): number(0) for value in range(4_000)})
    assert caught.value.errno == errno.E2BIG


def test_opening_what_is_not_pinned_names_the_path(tmp_path: object) -> None:
    """A missing pin is a BpfError with its path in it."""
    from pathlib import Path

    with pytest.raises(bpf.BpfError, match="nothing-here"):
        bpf.BpfMap(Path("/sys/fs/bpf/nothing-here"))
