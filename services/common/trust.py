"""The keys that the settings name, read once, at start; it is said aloud where they name none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from services.common.log import get_logger
from services.common.settings import SettingsError
from services.common.signing import KeyUnusableError, Signer, Verifier

_log = get_logger("trust")


def read_signer(path: str) -> Signer | None:
    """The controller's key from the file that its settings name; SettingsError. None where none is named."""
    if not path:
        _log.warning("revisions are not signed: who can write the stream can change policy", setting="YETT_SIGNING_KEY")
        return None
    try:
        return Signer(Path(path).read_text().strip())
    except (OSError, UnicodeDecodeError, KeyUnusableError) as error:
        problem = "not text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise SettingsError("YETT_SIGNING_KEY", f"{path}: {problem}") from error


def read_verifier(keys: Iterable[str]) -> Verifier:
    """The agent's verifier from its settings; SettingsError."""
    try:
        verifier = Verifier(keys)
    except KeyUnusableError as error:
        raise SettingsError("YETT_POLICY_KEYS", str(error)) from error
    if not verifier.is_on:
        _log.warning("signatures are not asked for: any policy in the stream is believed", setting="YETT_POLICY_KEYS")
    return verifier
