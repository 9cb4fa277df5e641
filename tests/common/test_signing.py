"""Signed revisions: what a signature covers, whose is believed, and which keys are none."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from schemas.policy import Revision
from schemas.terms import RevisionNumber
from services.common.settings import SettingsError
from services.common.signing import Signer, Verifier, make_seed, message_of, public_of
from services.common.trust import read_signer, read_verifier

SEED = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
PUBLIC = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
"""RFC 8032, section 7.1, test 1."""
REVISION = Revision(epoch="00ff", number=RevisionNumber(7), floor=RevisionNumber(1), digest="ab", term=3, trace="t")


def test_keys_are_those_of_the_rfc() -> None:
    """The public key of RFC 8032's seed is RFC 8032's."""
    assert public_of(SEED) == PUBLIC


def test_the_message_is_golden() -> None:
    """Were it to change, every agent would refuse every revision."""
    assert message_of(REVISION) == b"yett revision 1\n00ff\n7\n1\nab\n3"


def test_a_signature_covers_all_that_a_revision_says_of_policy() -> None:
    """Another epoch, number, floor, digest or term under the same signature is refused; the trace is not policy."""
    signed = Signer(SEED).sign(REVISION)
    verifier = Verifier([PUBLIC])
    assert verifier.find_fault(signed) == ""
    changes = ({"epoch": "00fe"}, {"number": 8}, {"floor": 0}, {"digest": "ac"}, {"term": 4})
    for change in changes:
        assert "none of the 1" in verifier.find_fault(msgspec.structs.replace(signed, **change)), change
    assert verifier.find_fault(msgspec.structs.replace(signed, trace="other")) == ""


@pytest.mark.parametrize("signature", ["00" * 64, "00", "x" * 128, "é" * 128, "0" * 129])
def test_what_is_no_signature_is_refused(signature: str) -> None:
    """Wrong, too short, too long, not hex: a fault and no exception."""
    assert "none of the" in Verifier([PUBLIC]).find_fault(msgspec.structs.replace(REVISION, signature=signature))


def test_an_unsigned_revision_is_refused_where_keys_are_given() -> None:
    """And believed where none is."""
    assert Verifier([PUBLIC]).find_fault(REVISION) == "revision 7 is not signed"
    assert Verifier().find_fault(REVISION) == ""


def test_two_keys_are_accepted_while_one_follows_the_other() -> None:
    """Rotation: the old and the new signer are both believed, a third is not; then the old one no longer."""
    old, new, other = (Signer(make_seed()) for _ in range(3))
    both = Verifier([old.public, new.public])
    assert both.find_fault(old.sign(REVISION)) == both.find_fault(new.sign(REVISION)) == ""
    assert both.find_fault(other.sign(REVISION)) != ""
    assert Verifier([new.public]).find_fault(old.sign(REVISION)) != ""


def test_yesterdays_signed_state_is_not_shown_again() -> None:
    """Within an epoch an older revision is refused however well it is signed; a new epoch begins anew."""
    signer = Signer(SEED)
    verifier, old = Verifier([PUBLIC]), signer.sign(REVISION)
    present = signer.sign(msgspec.structs.replace(REVISION, number=RevisionNumber(8)))
    assert verifier.find_fault(old, present) == "revision 7 is older than 8, which is in force"
    assert verifier.find_fault(present, present) == ""
    assert verifier.find_fault(old, msgspec.structs.replace(present, epoch="01")) == ""


def test_a_key_that_is_none_is_named_by_its_setting_and_not_shown(tmp_path: Path) -> None:
    """A file that is missing, or holds something else; the complaint does not hold the secret."""
    (tmp_path / "key").write_text("secret words")
    for path in (tmp_path / "key", tmp_path / "absent"):
        with pytest.raises(SettingsError, match="YETT_SIGNING_KEY") as caught:
            read_signer(str(path))
        assert "secret words" not in str(caught.value)
    with pytest.raises(SettingsError, match="YETT_POLICY_KEYS"):
        read_verifier(["12"])


def test_a_key_file_may_end_in_a_line_break(tmp_path: Path) -> None:
    """As editors write it."""
    (tmp_path / "key").write_text(SEED + "\n")
    signer = read_signer(str(tmp_path / "key"))
    assert signer is not None and signer.public == PUBLIC and read_signer("") is None
