"""The folder of keys as the Kubernetes objects that ``deploy/base`` mounts. Reads files, writes none."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.access.folder import Folder, FolderError

NAMESPACE = "yett-system"
MOUNTED = "/etc/nats/keys"
"""Where the server of deploy/base sees its part of the folder (``yett keys init --mounted``)."""
SERVICE_HOST = "yett-nats.yett-system.svc"
"""What services call the server; the certificate must have it (``yett keys init --host``)."""

READER_SECRET, OPERATOR_SECRET = "yett-reader", "yett-operator"
"""What ``yett --kube`` reads: the credential of the reader, and of the operator, that is named ``PERSON``."""
PERSON = "kube"

Manifest = dict[str, Any]


def make_objects(keys: Folder, *, is_server_ours: bool = True) -> list[Manifest]:
    """Secrets ``yett-nats``, ``yett-controller``, ``yett-nodes`` and ConfigMap ``yett-trust``; FolderError, OSError.

    With Secrets ``yett-reader`` and ``yett-operator`` where the folder has a reader, an operator, of the name ``kube``:
    nothing that runs mounts them, people reach the bus by them. The authority's key and all others' are in none.
    Without ``yett-nats`` where the server is not ours: it has its part of the folder from whoever runs it.
    """
    folder = keys.path
    authority = _read(folder / "ca.pem")
    nodes = {path.name: _read(path) for path in sorted((folder / "nodes").glob("*.nk"))}
    return [
        *([_secret("yett-nats", _read_server(folder) | {"ca.pem": authority})] if is_server_ours else []),
        _secret("yett-controller", {name: _read(folder / name) for name in ("controller.nk", "signing.key")}),
        _secret("yett-nodes", nodes),
        _object("ConfigMap", "yett-trust", data={"ca.pem": authority, "policy-keys": ",".join(keys.policy_keys)}),
        *(
            _secret(name, {"seed.nk": _read(path), "ca.pem": authority, "name": PERSON})
            for name, kind in ((READER_SECRET, "readers"), (OPERATOR_SECRET, "operators"))
            if (path := folder / kind / f"{PERSON}.nk").exists()
        ),
    ]


def _read_server(folder: Path) -> dict[str, str]:
    if f'"{MOUNTED}/tls.pem"' not in _read(folder / "server" / "yett.conf"):
        raise FolderError(f"{folder}: the server would look elsewhere: yett keys init --mounted {MOUNTED}")
    return {name: _read(folder / "server" / name) for name in ("yett.conf", "tls.pem", "tls-key.pem")}


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _secret(name: str, values: Mapping[str, str]) -> Manifest:
    encoded = {key: base64.b64encode(text.encode()).decode() for key, text in values.items()}
    return _object("Secret", name, type="Opaque", data=encoded)


def _object(kind: str, name: str, **body: Any) -> Manifest:
    labels = {"app.kubernetes.io/part-of": "yett"}
    metadata = {"name": name, "namespace": NAMESPACE, "labels": labels}
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **body}
