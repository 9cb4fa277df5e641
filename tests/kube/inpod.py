"""A pod's way to the API server: a projected ServiceAccount token and ``ca.crt``, as a kubelet mounts and renews them.

The process is in a mount namespace of its own, in which that folder stands where every pod has it.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.bus.controllers import ControllerProcess, controller
from tests.kube.servers import KubeServer
from tests.nats_server import NatsServer

PLACE = "/var/run/secrets/kubernetes.io/serviceaccount"
MOUNT = 'mount -t tmpfs none /var/run && mkdir -p "$1" && mount --bind "$0" "$1" && shift && exec "$@"'
"""The host has no such folder, and gets none."""
NAMESPACE, NAME = "yett-system", "yett-controller"
LEEWAY_SECONDS = 60
"""For so long after its end an API server takes a token (go-jose's ``DefaultLeeway``)."""
COORDINATE_BYTES = 32
"""Of a signature by ES256."""


class Projected:
    """The mounted folder: every writing is a folder of its own, and a link to it is changed in one step."""

    def __init__(self, folder: Path, token: str, authority: str) -> None:
        self.folder = folder
        self._files = {"token": token, "ca.crt": authority, "namespace": NAMESPACE}
        self._writings = 0
        folder.mkdir()
        self._write()
        for name in self._files:
            (folder / name).symlink_to(f"..data/{name}")

    def renew(self, **files: str) -> None:
        """Other contents from now on; ``ca`` is ``ca.crt``."""
        self._files |= {{"ca": "ca.crt"}.get(name, name): text for name, text in files.items()}
        self._write()

    def _write(self) -> None:
        self._writings += 1
        written = self.folder / f"..{self._writings}"
        written.mkdir()
        for name, text in self._files.items():
            (written / name).write_text(text)
        link = self.folder / "..data_tmp"
        link.symlink_to(written.name)
        link.replace(self.folder / "..data")


def request_token(kube: KubeServer) -> str:
    """The controller's, by the TokenRequest API; it lives for ten minutes, which is the least there is."""
    return kube.kubectl("create", "token", NAME, "--namespace", NAMESPACE, "--duration", "10m").stdout.strip()


def request_brief_token(kube: KubeServer, seconds: float) -> str:
    """The same with another end, signed with the server's own key: not taken any more after so many seconds."""
    _, claims, _ = request_token(kube).split(".")
    read: Mapping[str, Any] = json.loads(_decode(claims))
    ends_at = int(time.time() + seconds) - LEEWAY_SECONDS
    signed = f"{_encode(json.dumps({'alg': 'ES256'}))}.{_encode(json.dumps({**read, 'exp': ends_at}))}"
    key = load_pem_private_key((kube.folder / "server.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    numbers = utils.decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(SHA256())))
    return f"{signed}.{_encode(b''.join(number.to_bytes(COORDINATE_BYTES) for number in numbers))}"


def in_pod(
    nats: NatsServer, projected: Projected, port: int, name: str, **more: str
) -> AbstractAsyncContextManager[ControllerProcess]:
    """A controller with what a pod has and no kubeconfig. ``port``: of the API server."""
    inside = ("unshare", "--mount", "--propagation", "private", "sh", "-c", MOUNT, str(projected.folder), PLACE)
    own = {"YETT_MANIFESTS": "", "KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(port)}
    return controller(nats, Path(), name, inside=inside, **(own | more))


def _encode(text: str | bytes) -> str:
    raw = text.encode() if isinstance(text, str) else text
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
