"""The digest that proves a replayed state: 256 buckets of hashed rows, recomputed only where a bucket changed.

Controller and agent must agree on it byte for byte, so it is part of what crosses the process boundary.
A plain sum would be forgeable and blind to swapped bodies; a sorted hash of hashes is neither.
"""

from __future__ import annotations

from hashlib import blake2b

BUCKETS = 256
_SIZE = 16


def hash_row(subject: str, body: bytes) -> bytes:
    """16 bytes for one live row; subject and body cannot be shifted into each other."""
    prefix = len(subject).to_bytes(4, "big")
    return blake2b(prefix + subject.encode() + body, digest_size=_SIZE).digest()


class Digest:
    """Live rows by subject. ``hexdigest`` costs the changed buckets only; two sets of rows are equal iff it is."""

    def __init__(self) -> None:
        self._rows: dict[int, dict[str, bytes]] = {}
        self._buckets = bytearray(_SIZE * BUCKETS)
        self._dirty: set[int] = set()

    def put(self, subject: str, body: bytes) -> None:
        """Add or replace a row."""
        index = _bucket(subject)
        rows = self._rows.get(index)
        if rows is None:
            rows = self._rows[index] = {}
        rows[subject] = hash_row(subject, body)
        self._dirty.add(index)

    def remove(self, subject: str) -> None:
        """Remove a row; unknown subjects are fine (a delete may come twice)."""
        index = _bucket(subject)
        rows = self._rows.get(index)
        if rows is not None and rows.pop(subject, None) is not None:
            self._dirty.add(index)
            if not rows:
                del self._rows[index]

    def __len__(self) -> int:
        return sum(len(rows) for rows in self._rows.values())

    def hexdigest(self) -> str:
        """32 hex digits over all live rows."""
        for index in self._dirty:
            rows = self._rows.get(index)
            start = index * _SIZE
            self._buckets[start : start + _SIZE] = _hash_bucket(rows) if rows else bytes(_SIZE)
        self._dirty.clear()
        return blake2b(self._buckets, digest_size=_SIZE).hexdigest()


def _hash_bucket(rows: dict[str, bytes]) -> bytes:
    return blake2b(b"".join(sorted(rows.values())), digest_size=_SIZE).digest()


def _bucket(subject: str) -> int:
    return blake2b(subject.encode(), digest_size=1).digest()[0]
