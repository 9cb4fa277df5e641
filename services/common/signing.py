"""Signed revisions: ed25519 over what a revision says, so that who can write the stream cannot change policy.

A revision's digest covers every cluster-wide row and, by the node rows, every endpoint: one signature covers them all.
Rules: the message signed is text of a fixed shape (``message_of``), with the leader's term in it; a verifier accepts
any of its keys, so that keys are rotated by adding the new one, signing with it, and removing the old one; within an
epoch it refuses to go back behind a revision it has accepted, or the signed states of yesterday could be shown again.

Pure. Deliberately absent: files and settings (``services.common.trust``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from schemas.policy import Revision

_HEX_KEY = re.compile(r"[0-9a-f]{64}\Z")
_HEX_SIGNATURE = re.compile(r"[0-9a-f]{128}\Z")


class KeyUnusableError(ValueError):
    """A key that is no ed25519 key of 64 hex digits. The text never holds the key."""


def message_of(revision: Revision) -> bytes:
    """The bytes that are signed. The epoch and the digest are hex, so a line break cannot be part of them."""
    fields = (revision.epoch, revision.number, revision.floor, revision.digest, revision.term)
    return "\n".join(["yett revision 1", *map(str, fields)]).encode()


def make_seed() -> str:
    """A new secret seed, 64 hex digits."""
    return SigningKey.generate().encode().hex()


def public_of(seed: str) -> str:
    """The public key of a seed, 64 hex digits; KeyUnusableError if it is no seed."""
    return _read_seed(seed).verify_key.encode().hex()


class Signer:
    """A controller's key."""

    def __init__(self, seed: str) -> None:
        self._key = _read_seed(seed)

    @property
    def public(self) -> str:
        """What the agents are given."""
        return self._key.verify_key.encode().hex()

    def sign(self, revision: Revision) -> Revision:
        """The revision with its signature."""
        return msgspec.structs.replace(revision, signature=self._key.sign(message_of(revision)).signature.hex())

    def has_signed(self, revision: Revision) -> bool:
        """Whether this key's signature is on it."""
        return not Verifier([self.public]).find_fault(revision)


class Verifier:
    """An agent's public keys, one of which must have signed. Without any it finds no fault: signing is off."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        """KeyUnusableError if one is no key."""
        self._keys = [VerifyKey(_read_hex(key)) for key in keys]

    @property
    def is_on(self) -> bool:
        return bool(self._keys)

    def find_fault(self, revision: Revision, present: Revision | None = None) -> str:
        """Why this revision must not be believed; empty if it may. ``present``: the one that is in force."""
        if not self._keys:
            return ""
        if not revision.signature:
            return f"revision {revision.number} is not signed"
        if not self._is_signed(revision):
            return f"revision {revision.number} is signed by none of the {len(self._keys)} known keys"
        if present and present.epoch == revision.epoch and revision.number < present.number:
            return f"revision {revision.number} is older than {present.number}, which is in force"
        return ""

    def _is_signed(self, revision: Revision) -> bool:
        if not _HEX_SIGNATURE.match(revision.signature):
            return False
        signature, message = bytes.fromhex(revision.signature), message_of(revision)
        return any(_verifies(key, message, signature) for key in self._keys)


def _verifies(key: VerifyKey, message: bytes, signature: bytes) -> bool:
    try:
        key.verify(message, signature)
    except BadSignatureError:
        return False
    return True


def _read_seed(seed: str) -> SigningKey:
    return SigningKey(_read_hex(seed))


def _read_hex(text: str) -> bytes:
    if not _HEX_KEY.match(text):
        raise KeyUnusableError("not an ed25519 key of 64 hex digits")
    return bytes.fromhex(text)
