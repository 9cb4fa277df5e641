"""The way to a cluster's bus for a person with a kubeconfig: a credential from a Secret, and a port-forward to NATS.

``yett keys kubernetes`` makes the Secrets: ``yett-reader``, which can read and do nothing else, and ``yett-operator``,
which can also make nodes forget names. Whoever may get the Secret and forward a port has what it gives: that is decided
by the cluster's own RBAC.
"""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from services.access.accounts import API_PREFIX, inbox_prefix
from services.access.kubernetes import NAMESPACE, OPERATOR_SECRET, READER_SECRET, SERVICE_HOST
from services.common.settings import SettingsError
from services.controller.kube_api import Api, KubeError
from services.operate.forward import forwarded
from services.operate.way import NoWay, Way

NATS_PORT = 4222
NATS_PODS = "app.kubernetes.io/part-of=yett,app.kubernetes.io/component=nats"
NOT_FOUND = 404


def find_kubeconfig(given: str = "") -> str:
    """The option, $KUBECONFIG's first file, the one in the home folder; empty: this is a pod, or there is none."""
    if given:
        return given
    named = [one for one in os.environ.get("KUBECONFIG", "").split(os.pathsep) if one]
    own = Path.home() / ".kube" / "config"
    return named[0] if named else str(own) if own.exists() else ""


@asynccontextmanager
async def open_api(kubeconfig: str = "") -> AsyncIterator[Api]:
    """The API server that a kubeconfig names. NoWay if none does, or if it refuses what the block asks of it."""
    try:
        api = await Api.open(find_kubeconfig(kubeconfig))
    except SettingsError as error:
        raise NoWay(f"no API server: {error}") from error
    try:
        yield api
    except KubeError as error:
        raise NoWay(str(error)) from error
    finally:
        await api.close()


@asynccontextmanager
async def reaching(kubeconfig: str = "", *, secret: str = READER_SECRET) -> AsyncIterator[Way]:
    """The way, for as long as the block lasts. NoWay."""
    async with open_api(kubeconfig) as api:
        keys = await _read_secret(api, secret)
        pod = await _find_pod(api)
        with tempfile.TemporaryDirectory(prefix="yett-") as folder:
            settings = _write_keys(Path(folder), secret, keys)
            async with forwarded(api, NAMESPACE, pod, NATS_PORT) as port:
                yield Way(f"tls://127.0.0.1:{port}", settings)


async def _read_secret(api: Api, name: str) -> dict[str, str]:
    try:
        secret = msgspec.json.decode(await api.get(f"/api/v1/namespaces/{NAMESPACE}/secrets/{name}"))
        return {key: base64.b64decode(text).decode() for key, text in secret["data"].items()}
    except KubeError as error:
        hint = ": yett keys init FOLDER, yett keys kubernetes FOLDER | kubectl apply -f -"
        raise NoWay(f"Secret {NAMESPACE}/{name}: {error}{hint if error.code == NOT_FOUND else ''}") from error
    except (msgspec.DecodeError, KeyError, ValueError) as error:
        raise NoWay(f"Secret {NAMESPACE}/{name}: not what yett keys kubernetes makes") from error


async def _find_pod(api: Api) -> str:
    try:
        answer = await api.get(f"/api/v1/namespaces/{NAMESPACE}/pods", {"labelSelector": NATS_PODS})
    except KubeError as error:
        raise NoWay(f"pods of NATS: {error}") from error
    pods: list[dict[str, Any]] = msgspec.json.decode(answer)["items"]
    running = sorted(one["metadata"]["name"] for one in pods if one.get("status", {}).get("phase") == "Running")
    if not running:
        raise NoWay(f"no pod with {NATS_PODS} runs in {NAMESPACE}: kubectl get pods -n {NAMESPACE}")
    return str(running[0])


def _write_keys(folder: Path, secret: str, keys: dict[str, str]) -> dict[str, str]:
    """Files that the client wants as files, readable by their owner alone, and the settings that name them."""
    if missing := {"seed.nk", "ca.pem", "name"} - keys.keys():
        raise NoWay(f"Secret {NAMESPACE}/{secret} lacks {', '.join(sorted(missing))}")
    for name in ("seed.nk", "ca.pem"):
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(keys[name])
    settings = {
        "YETT_NATS_NKEY": str(folder / "seed.nk"),
        "YETT_NATS_CA": str(folder / "ca.pem"),
        "YETT_NATS_TLS_NAME": SERVICE_HOST,
    }
    kind = "operators" if secret == OPERATOR_SECRET else "readers"
    settings["YETT_NATS_INBOX_PREFIX"] = inbox_prefix(kind, keys["name"])
    return settings | ({"YETT_NATS_API_PREFIX": API_PREFIX} if kind == "readers" else {})
