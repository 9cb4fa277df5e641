"""The folder of keys: made, completed, rotated. Secrets are readable by their owner alone.

    ca.pem ca-key.pem                 the authority; its key belongs in a safe, nothing that runs needs it
    server/yett.conf                  ``include`` it in the server's configuration, beside its own listen and jetstream
    server/tls.pem tls-key.pem
    controller.nk signing.key         a controller's credential, and the key that signs revisions
    signing-next.key                  its successor, while both are believed
    policy-keys                       the public keys that agents believe, separated by commas
    nodes/<node>.nk readers/<name>.nk the credential of a node (agent and recorder), of an integration or a person
    operators/<name>.nk               the credential of a person who may make nodes forget names

What is there stays: to complete a folder and to make one are the same. Rotation removes, and completes again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import nkeys

from schemas import wire
from services.access import accounts, certificates
from services.common.signing import make_seed, public_of

SERVER_DAYS = 365.0
NAMED = ("nodes", "readers", "operators")
"""Kinds of credential of which there are several, each with a name."""
_SEED_BYTES = 32


class FolderError(Exception):
    """What the folder lacks or cannot take; for people."""


@dataclass(frozen=True, slots=True)
class Folder:
    """One cluster's keys. ``mounted``: the path of ``server/`` as the server sees it; empty: as it is here."""

    path: Path
    mounted: str = ""

    def complete(
        self,
        *,
        hosts: Iterable[str],
        nodes: Iterable[str],
        readers: Iterable[str],
        operators: Iterable[str] = (),
        now: datetime,
        days: float,
    ) -> None:
        """Make what is missing, and write the server's configuration anew. FolderError."""
        for folder in (self.path, *(self.path / name for name in ("server", *NAMED))):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._complete_tls(list(hosts), now, days)
        named = zip(NAMED, (nodes, readers, operators), strict=True)
        for path in [
            self.path / "controller.nk",
            *(path for kind, names in named for path in self._paths(kind, names)),
        ]:
            if not path.exists():
                _write_secret(path, make_nkey())
        if not self._signing.exists():
            _write_secret(self._signing, make_seed())
        self._write_public()

    def renew_server(self) -> None:
        """Forget the server's certificate; ``complete`` makes another."""
        for name in ("tls.pem", "tls-key.pem"):
            (self.path / "server" / name).unlink(missing_ok=True)

    def renew_credential(self, kind: str, name: str = "") -> None:
        """Forget a credential (``controller``, or one of ``NAMED``); FolderError if there is none."""
        path = self.path / "controller.nk" if kind == "controller" else self._paths(kind, [name])[0]
        if not path.exists():
            raise FolderError(f"no such credential: {path}")
        path.unlink()

    def rotate_signing(self) -> str:
        """First call: a successor that agents are to believe too. Second: it signs. What a person must do next."""
        successor = self.path / "signing-next.key"
        if not successor.exists():
            _write_secret(successor, make_seed())
            self._write_public()
            return "give every agent the keys in policy-keys, then rotate once more"
        successor.replace(self._signing)
        self._write_public()
        return "give the controllers signing.key; once a revision is signed by it, give the agents policy-keys"

    def public_key(self, kind: str, name: str = "") -> str:
        """The public key of a credential, as it stands in the server's configuration."""
        path = self.path / "controller.nk" if kind == "controller" else self._paths(kind, [name])[0]
        return _public(path)

    def environment(self, kind: str, name: str = "") -> dict[str, str]:
        """The settings that go with a credential; paths are as they are here."""
        here = self.path.resolve()
        self.public_key(kind, name)
        values = {"YETT_NATS_CA": f"{here}/ca.pem"}
        if kind == "controller":
            return values | {"YETT_NATS_NKEY": f"{here}/controller.nk", "YETT_SIGNING_KEY": f"{here}/signing.key"}
        values |= {"YETT_NATS_NKEY": f"{here}/{kind}/{name}.nk"}
        values |= {"YETT_NATS_API_PREFIX": accounts.API_PREFIX} if kind != "operators" else {}
        values |= {"YETT_NATS_INBOX_PREFIX": accounts.inbox_prefix(kind, name)}
        return values | ({"YETT_POLICY_KEYS": ",".join(self.policy_keys)} if kind == "nodes" else {})

    @property
    def policy_keys(self) -> list[str]:
        """The public keys that agents believe."""
        return (self.path / "policy-keys").read_text().strip().split(",")

    @property
    def _signing(self) -> Path:
        return self.path / "signing.key"

    def _paths(self, kind: str, names: Iterable[str]) -> list[Path]:
        return [self.path / kind / f"{_check_name(name)}.nk" for name in names]

    def _complete_tls(self, hosts: list[str], now: datetime, days: float) -> None:
        authority, key = self.path / "ca.pem", self.path / "ca-key.pem"
        if not authority.exists():
            made = certificates.make_authority(now)
            authority.write_bytes(made[0])
            _write_secret(key, made[1].decode())
        if (self.path / "server" / "tls.pem").exists():
            return
        if not hosts:
            raise FolderError("the server's certificate needs a host: a name or address that agents connect to")
        if not key.exists():
            raise FolderError(f"{key} is not here: bring it back to make a certificate")
        made = certificates.make_server(authority.read_bytes(), key.read_bytes(), hosts, now=now, days=days)
        (self.path / "server" / "tls.pem").write_bytes(made[0])
        _write_secret(self.path / "server" / "tls-key.pem", made[1].decode())

    def _write_public(self) -> None:
        seeds = [path.read_text().strip() for path in (self._signing, self.path / "signing-next.key") if path.exists()]
        (self.path / "policy-keys").write_text(",".join(public_of(seed) for seed in seeds) + "\n")
        server = self.mounted or str((self.path / "server").resolve())
        block = accounts.write_accounts([self.public_key("controller")], *map(self._users, NAMED))
        (self.path / "server" / "yett.conf").write_text(_TLS.format(server=server) + block)

    def _users(self, kind: str) -> dict[str, str]:
        return {_public(path): path.name.removesuffix(".nk") for path in sorted((self.path / kind).glob("*.nk"))}


_TLS = """# Made by yett keys: include it in the server's configuration. Reload the server after a change.
tls {{
  cert_file: "{server}/tls.pem"
  key_file: "{server}/tls-key.pem"
  handshake_first: true
  timeout: 5
}}
"""


def make_nkey() -> str:
    """The secret seed of a new NATS user."""
    return bytes(nkeys.encode_seed(os.urandom(_SEED_BYTES), nkeys.PREFIX_BYTE_USER)).decode()


def _public(path: Path) -> str:
    try:
        return bytes(nkeys.from_seed(bytearray(path.read_bytes().strip())).public_key).decode()
    except (OSError, ValueError, nkeys.NkeysError) as error:
        raise FolderError(f"{path}: not the seed of a NATS user") from error


def _check_name(name: str) -> str:
    """The name, which is then safe in a path too; FolderError."""
    try:
        wire.encode_name(name)
        return name
    except wire.WireError as error:
        raise FolderError(str(error)) from error


def _write_secret(path: Path, text: str) -> None:
    """Never readable by others, not for a moment; never over a file that is there."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text.rstrip("\n") + "\n")
