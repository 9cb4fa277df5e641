"""A real API server for tests: etcd, kube-apiserver and, where a test needs it, kube-controller-manager.

Everything is on loopback, on free ports, in a folder of the test's: certificates of an authority of its own, static
tokens, RBAC, an audit log. Processes are stopped by their process id.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import yaml

ASSETS_SCRIPT = Path(__file__).parent / "assets.sh"
KUBECTL = Path(sys.executable).parent / "kubectl"
START_SECONDS = 90.0
"""On a loaded machine; 4 s where it is idle."""
STOP_SECONDS = 20.0
ADMIN_TOKEN, READER_TOKEN = "admin-token", "reader-token"
"""An administrator's, and one of a user who may do nothing until a test lets it."""
KEPT_NAMESPACES = frozenset({"default", "kube-system", "kube-public", "kube-node-lease"})
"""The server makes these again when they are missing, some time after it started."""
CONTROLLER_TOKEN, CONTROLLER_USER = "controller-token", "system:serviceaccount:yett-system:yett-controller"
SERVICE_RANGE = "10.96.0.0/16"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/yett-system/leases/yett-controller"
"""The controllers' election, by path."""

AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


def find_assets() -> tuple[Path | None, str]:
    """The folder of the servers; else None and what is missing. Never builds."""
    done = subprocess.run([ASSETS_SCRIPT, "--find"], capture_output=True, text=True, check=False)
    return (Path(done.stdout.strip()), "") if done.returncode == 0 else (None, done.stderr.strip())


class Process:
    """One server; ``command`` is started again as it was."""

    def __init__(self, name: str, folder: Path, command: list[str]) -> None:
        self.name = name
        self._command = command
        self._log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(how)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_SECONDS)
        self._process = None

    def tail(self) -> str:
        return f"{self.name}:\n" + "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])


class KubeServer:
    """One API server with its etcd. ``tokens``: token -> (user, groups); may be changed while it is stopped.

    ``service_ranges``: one, or one of each family.
    """

    def __init__(self, folder: Path, assets: Path, service_ranges: Sequence[str] = (SERVICE_RANGE,)) -> None:
        self.folder = folder
        self._service_ranges = service_ranges
        self.port, self._etcd_port, self._peer_port = find_free_ports(3)
        self.tokens: dict[str, tuple[str, tuple[str, ...]]] = {
            ADMIN_TOKEN: ("admin", ("system:masters",)),
            READER_TOKEN: ("reader", ()),
            CONTROLLER_TOKEN: (CONTROLLER_USER, ("system:serviceaccounts", "system:serviceaccounts:yett-system")),
        }
        self._assets = assets
        make_certificates(folder)
        (folder / "audit.yaml").write_text(yaml.safe_dump(AUDIT_POLICY))
        self.etcd = Process("etcd", folder, self._etcd_command())
        self.apiserver = Process("kube-apiserver", folder, self._apiserver_command())
        self.manager = Process("kube-controller-manager", folder, self._manager_command())
        self.admin = Client(self, ADMIN_TOKEN)

    # -- life

    def start(self) -> None:
        self.etcd.start()
        self.start_apiserver()

    def start_apiserver(self) -> None:
        """The API server alone; returns when it is ready."""
        self._write_tokens()
        self.apiserver.start()
        self.until(self._is_ready, START_SECONDS)

    def start_manager(self) -> None:
        """Without it a deleted namespace stays Terminating, and nothing is garbage collected."""
        self.kubeconfig("manager", ADMIN_TOKEN)
        self.manager.start()

    def stop(self) -> None:
        """Without a goodbye: the API server waits for its watches for as long as it is let, and nothing is kept."""
        for process in (self.manager, self.apiserver, self.etcd):
            process.stop(signal.SIGKILL)

    def until(self, is_true: Any, seconds: float) -> None:
        """Wait for another process's deed; RuntimeError with the logs if it does not come."""
        deadline = time.monotonic() + seconds
        while not is_true():
            ended = [process for process in (self.etcd, self.apiserver) if not process.is_running]
            if ended or time.monotonic() > deadline:
                raise RuntimeError("\n".join(process.tail() for process in (self.etcd, self.apiserver)))
            time.sleep(0.05)  # no event to wait on: the deed is another process's

    def _is_ready(self) -> bool:
        try:
            return (
                self.admin.request("GET", "/readyz")[0] == 200
                and self.admin.request("GET", "/api/v1/namespaces/kube-system")[0] == 200
            )
        except (OSError, http.client.HTTPException):
            return False

    def compact(self) -> None:
        """Let etcd forget every version but the last; the API server must be stopped."""
        revision = self._ask_etcd("range", {"key": "AA=="})["header"]["revision"]
        self._ask_etcd("compaction", {"revision": revision, "physical": True})

    def _ask_etcd(self, what: str, body: Mapping[str, Any]) -> Any:
        url = f"http://127.0.0.1:{self._etcd_port}/v3/kv/{what}"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def forget_all_but(self, namespaces: set[str]) -> None:
        """Delete every other namespace and every definition, with what is in them; returns when they are gone."""
        definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        # Objects first: a definition that is made anew too soon may find those of its predecessor.
        self._end_namespaces(self._names("/api/v1/namespaces") - namespaces - KEPT_NAMESPACES)
        for each in self.admin.call("GET", definitions)["items"]:
            group, version, plural = each["spec"]["group"], each["spec"]["versions"][0]["name"], each["spec"]["names"]
            for place in ("namespaces/default/", "") if each["spec"]["scope"] == "Namespaced" else ("",):
                self.admin.request("DELETE", f"/apis/{group}/{version}/{place}{plural['plural']}")
        self.admin.call("DELETE", "/api/v1/nodes")
        self.until(lambda: self._names("/api/v1/namespaces") <= namespaces | KEPT_NAMESPACES, 60)
        self.admin.call("DELETE", definitions)
        self.until(lambda: not self._names(definitions), 60)

    def _end_namespaces(self, names: set[str]) -> None:
        """With what is in them; the controller manager would let five seconds pass before it does the same."""
        for name in names:
            self.admin.call("DELETE", f"/api/v1/namespaces/{name}")
        for root in self._groups() if names else ():
            for each in self.admin.call("GET", root)["resources"]:
                if each["namespaced"] and "/" not in each["name"]:
                    for name in names:
                        self._delete_all(f"{root}/namespaces/{name}/{each['name']}", set(each["verbs"]))
        for name in names:
            # Refused where the manager was first.
            self.admin.request("PUT", f"/api/v1/namespaces/{name}/finalize", {"metadata": {"name": name}})

    def _delete_all(self, path: str, verbs: set[str]) -> None:
        if "deletecollection" in verbs:
            self.admin.call("DELETE", path)
        elif {"list", "delete"} <= verbs:  # Services
            for name in self._names(path):
                status, answer = self.admin.request("DELETE", f"{path}/{name}")
                assert status < 300 or status == HTTPStatus.NOT_FOUND, answer  # the manager was first

    def _groups(self) -> list[str]:
        """Paths of every group's versions that are preferred."""
        groups = self.admin.call("GET", "/apis")["groups"]
        return ["/api/v1", *(f"/apis/{each['preferredVersion']['groupVersion']}" for each in groups)]

    def _names(self, path: str) -> set[str]:
        return {each["metadata"]["name"] for each in self.admin.call("GET", path)["items"]}

    # -- who may ask

    def kubeconfig(self, name: str, token: str, *, port: int = 0) -> Path:
        """A kubeconfig for a token; ``port``: where not the server itself listens."""
        path = self.folder / f"{name}.kubeconfig"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": self._cluster(port or self.port)}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
            "current-context": "test",
        }
        path.write_text(yaml.safe_dump(content))
        return path

    def audit(self) -> list[dict[str, Any]]:
        """The audit log so far."""
        lines = (self.folder / "audit.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]

    def kubectl(self, *arguments: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """kubectl as the administrator."""
        return subprocess.run(
            [str(KUBECTL), "--kubeconfig", str(self.kubeconfig("admin", ADMIN_TOKEN)), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=check,
            timeout=60,
            env=os.environ | {"HOME": str(self.folder)},
        )

    def _cluster(self, port: int) -> dict[str, str]:
        return {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(self.folder / "ca.crt")}

    def _write_tokens(self) -> None:
        lines = [
            f'{token},{user},{index},"{",".join(groups)}"'
            for index, (token, (user, groups)) in enumerate(self.tokens.items())
        ]
        (self.folder / "tokens.csv").write_text("\n".join(lines) + "\n")

    def grant(self, name: str, user: str, *rules: Mapping[str, Any]) -> None:
        """A cluster role of this name, bound to a user."""
        root = "/apis/rbac.authorization.k8s.io/v1"
        self.admin.create(f"{root}/clusterroles", {"metadata": {"name": name}, "rules": rules})
        subject = {"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}
        reference = {"kind": "ClusterRole", "name": name, "apiGroup": "rbac.authorization.k8s.io"}
        binding = {"metadata": {"name": name}, "subjects": [subject], "roleRef": reference}
        self.admin.create(f"{root}/clusterrolebindings", binding)

    # -- commands

    def _etcd_command(self) -> list[str]:
        client, peer = (f"http://127.0.0.1:{port}" for port in (self._etcd_port, self._peer_port))
        return [
            str(self._assets / "etcd"),
            f"--data-dir={self.folder}/etcd",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
        ]

    def _apiserver_command(self) -> list[str]:
        folder = self.folder
        return [
            str(self._assets / "kube-apiserver"),
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self.port}",
            f"--tls-cert-file={folder}/server.crt",
            f"--tls-private-key-file={folder}/server.key",
            f"--client-ca-file={folder}/ca.crt",
            f"--token-auth-file={folder}/tokens.csv",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={folder}/server.key",
            f"--service-account-key-file={folder}/server.key",
            f"--service-cluster-ip-range={','.join(self._service_ranges)}",
            f"--feature-gates=IPv6DualStack={'true' if len(self._service_ranges) > 1 else 'false'}",
            "--authorization-mode=RBAC,Node",
            "--disable-admission-plugins=ServiceAccount",
            "--endpoint-reconciler-type=none",
            f"--audit-policy-file={folder}/audit.yaml",
            f"--audit-log-path={folder}/audit.log",
            # Far from the end of a test's life, so that watches end when a test says so.
            "--min-request-timeout=300",
        ]

    def _manager_command(self) -> list[str]:
        return [
            str(self._assets / "kube-controller-manager"),
            f"--kubeconfig={self.folder}/manager.kubeconfig",
            "--controllers=namespace,garbagecollector,serviceaccount",
            "--leader-elect=false",
            "--port=0",
            f"--secure-port={find_free_ports(1)[0]}",
            f"--cert-dir={self.folder}/manager",
        ]


class Client:
    """Requests of a test's own, as one user; plain HTTP, so that nothing of the product is in between."""

    def __init__(self, server: KubeServer, token: str) -> None:
        self._server = server
        self._token = token
        self._context = ssl.create_default_context(cafile=str(server.folder / "ca.crt"))

    def request(
        self, method: str, path: str, body: Any = None, *, content_type: str = "application/json", seconds: float = 15
    ) -> tuple[int, Any]:
        """Status and answer. OSError if there is no server."""
        connection = http.client.HTTPSConnection("127.0.0.1", self._server.port, context=self._context, timeout=seconds)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": content_type}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        is_json = "json" in (answer.getheader("Content-Type") or "")
        return answer.status, json.loads(text) if is_json else text.decode()

    def call(self, method: str, path: str, body: Any = None, *, content_type: str = "application/json") -> Any:
        """The answer of a request that must succeed."""
        status, answer = self.request(method, path, body, content_type=content_type)
        assert status < 300, f"{method} {path}: {status} {answer}"
        return answer

    def create(self, path: str, obj: Mapping[str, Any]) -> Any:
        return self.call("POST", path, obj)

    def create_namespace(self, name: str, **labels: str) -> None:
        self.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})

    def create_pod(self, namespace: str, name: str, *, address: str = "", node: str = "node-a", **labels: str) -> None:
        """A pod, bound to a node; with an address it runs: this test is the kubelet."""
        path = f"/api/v1/namespaces/{namespace}/pods"
        container = {"name": "c", "image": "none"}
        metadata = {"name": name, "labels": labels}
        # There is no kubelet to confirm an end, so none is waited for.
        spec = {"nodeName": node, "containers": [container], "terminationGracePeriodSeconds": 0}
        self.create(path, {"metadata": metadata, "spec": spec})
        if address:
            self.give_address(namespace, name, address)

    def give_address(self, namespace: str, name: str, address: str) -> None:
        """What the kubelet does when a pod runs."""
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
        path = f"/api/v1/namespaces/{namespace}/pods/{name}/status"
        self.call("PATCH", path, {"status": status}, content_type="application/merge-patch+json")


def find_free_ports(count: int) -> list[int]:
    """Ports that nobody holds now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def make_certificates(folder: Path) -> None:
    """An authority and a certificate for 127.0.0.1, by openssl."""
    (folder / "san.cnf").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nkeyUsage=digitalSignature\n")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    authority = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    signed = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "san.cnf"]
    for command in (
        ["req", "-x509", *key, "-days", "2", "-subj", "/CN=test", *authority, "-keyout", "ca.key", "-out", "ca.crt"],
        # In the old form, because the API server takes no PKCS 8 for the key of its service accounts.
        ["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "server.key"],
        ["req", "-new", "-key", "server.key", "-subj", "/CN=127.0.0.1", "-out", "server.csr"],
        ["x509", "-req", "-in", "server.csr", *signed, "-out", "server.crt"],
    ):
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)


@contextmanager
def kube_server(folder: Path, service_ranges: Sequence[str] = (SERVICE_RANGE,)) -> Iterator[KubeServer]:
    """A running API server, gone with the block."""
    assets, missing = find_assets()
    assert assets is not None, missing
    server = KubeServer(folder, assets, service_ranges)
    try:
        server.start()
        yield server
    finally:
        server.stop()
