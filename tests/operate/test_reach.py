"""Where a command finds its cluster: options, files of keys, kubeconfigs, Secrets."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.access.accounts import API_PREFIX
from services.access.folder import Folder
from services.access.kubernetes import MOUNTED, OPERATOR_SECRET, PERSON, READER_SECRET, make_objects
from services.cli.connection import find_server, read_credential
from services.operate.reach import find_kubeconfig


@pytest.fixture
def keys(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path / "keys", MOUNTED)
    folder.complete(hosts=["x"], nodes=["n"], readers=[PERSON, "ann"], operators=["ann"], now=datetime.now(UTC), days=1)
    return folder


def test_a_credential_of_the_folder_brings_what_goes_with_it(keys: Folder) -> None:
    """Authority, inbox and, for who is not in the streams' account, the prefix of the API; another's file is itself."""
    reader, operator = (read_credential(keys.path / kind / "ann.nk") for kind in ("readers", "operators"))
    assert reader["YETT_NATS_NKEY"] == str(keys.path / "readers" / "ann.nk")
    assert reader["YETT_NATS_CA"] == str(keys.path / "ca.pem") and reader["YETT_NATS_API_PREFIX"] == API_PREFIX
    assert operator["YETT_NATS_INBOX_PREFIX"] == "yett.inbox.operators.ann" and "YETT_NATS_API_PREFIX" not in operator
    assert read_credential(Path("/x/y.nk")) == {"YETT_NATS_NKEY": "/x/y.nk"}
    assert read_credential(Path("/x/y.creds")) == {"YETT_NATS_CREDS": "/x/y.creds"}


def test_secrets_for_people_hold_the_one_name_and_no_other(keys: Folder) -> None:
    """The reader ``kube``, whose Secret is there; nobody's operator, whose is not; no other person's seed is in any."""
    secrets = {one["metadata"]["name"]: one["data"] for one in make_objects(keys)}
    assert READER_SECRET in secrets and OPERATOR_SECRET not in secrets
    seed = base64.b64decode(secrets[READER_SECRET]["seed.nk"])
    assert seed == (keys.path / "readers" / f"{PERSON}.nk").read_bytes()
    ann = [(keys.path / kind / "ann.nk").read_bytes() for kind in ("readers", "operators")]
    held = {base64.b64decode(text) for name, data in secrets.items() if name != "yett-trust" for text in data.values()}
    assert held.isdisjoint(ann)


def test_an_address_wins_over_the_cluster_and_forgetting_takes_the_operators_secret() -> None:
    """``--kube`` is for who gave no URL."""
    assert find_server("nats://x:1", kube=True).url == "nats://x:1"
    assert find_server("", kube=True).secret == READER_SECRET
    assert find_server("", kube=True, is_operator=True).secret == OPERATOR_SECRET


def test_kubeconfigs_are_found_as_kubectl_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option, the first of $KUBECONFIG, the file in the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    assert find_kubeconfig() == ""
    (tmp_path / ".kube").mkdir()
    (tmp_path / ".kube" / "config").touch()
    assert find_kubeconfig() == str(tmp_path / ".kube" / "config")
    monkeypatch.setenv("KUBECONFIG", "/a:/b")
    assert find_kubeconfig() == "/a" and find_kubeconfig("/c") == "/c"
