"""What a person applies by the README, and what a kubelet makes of it: mounted files, a container's environment.

Read from ``deploy/base`` and from what ``yett keys`` prints, so that what runs here is what is shipped.
"""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from services.access.kubernetes import MOUNTED, SERVICE_HOST
from services.demo.topology import NODES
from tests.deploy.test_overlays import DEPLOY, Object, render

READER = "demo"
SERVICE_VARIABLE = "$(YETT_NATS_SERVICE_HOST)"


def run_yett(*arguments: str) -> str:
    """The command's output; it must succeed."""
    command = [sys.executable, "-m", "services.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


class Shipped:
    """``folder``: where the keys are made and what is mounted lies. ``nats_host``: what the Service's address is."""

    def __init__(self, folder: Path, nats_host: str) -> None:
        self.keys = folder / "keys"
        self._mounts = folder / "mounts"
        self._nats_host = nats_host
        nodes = [argument for node in NODES for argument in ("--node", node.name)]
        options = ["--host", SERVICE_HOST, "--mounted", MOUNTED, "--reader", READER, *nodes]
        run_yett("keys", "init", str(self.keys), *options)
        secrets = list(yaml.safe_load_all(run_yett("keys", "kubernetes", str(self.keys))))
        self.objects: list[Object] = [*render(DEPLOY / "base"), *secrets]
        for each in self.objects:
            if each["kind"] in ("Secret", "ConfigMap"):
                self._mount(each)

    def find(self, kind: str, name: str) -> Object:
        """One of the objects."""
        (found,) = [each for each in self.objects if (each["kind"], each["metadata"]["name"]) == (kind, name)]
        return found

    def mounted(self, name: str) -> Path:
        """The files of a Secret or ConfigMap."""
        return self._mounts / name

    def environment(self, container: str, *, node: str = "", pod: str = "") -> dict[str, str]:
        """What the container's process is told, with the paths that its mounts have here."""
        spec, found = self._find_container(container)
        fields = {"spec.nodeName": node, "metadata.name": pod, "metadata.namespace": "yett-system"}
        values = {each["name"]: self._read(each, fields) for each in found["env"]}
        places = self._find_places(spec, found, values)
        return {name: self._move(value, places) for name, value in values.items()}

    def write_nats(self, folder: Path) -> Path:
        """The server's configuration and keys in ``folder``; its file."""
        keys = folder / "keys"
        keys.mkdir(parents=True, exist_ok=True)
        for path in self.mounted("yett-nats").iterdir():
            if path.name != "nats.conf":
                (keys / path.name).write_text(path.read_text().replace(MOUNTED, str(keys)))
        configuration = folder / "nats.conf"
        text = self.find("ConfigMap", "yett-nats")["data"]["nats.conf"]
        configuration.write_text(text.replace("/data", str(folder / "data")))
        return configuration

    def _mount(self, obj: Object) -> None:
        folder = self._mounts / obj["metadata"]["name"]
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in obj["data"].items():
            (folder / name).write_bytes(base64.b64decode(value) if obj["kind"] == "Secret" else value.encode())

    def _find_container(self, name: str) -> tuple[Object, Object]:
        specs = [each["spec"]["template"]["spec"] for each in self.objects if "template" in each.get("spec", {})]
        ((spec, found),) = [(spec, one) for spec in specs for one in spec["containers"] if one["name"] == name]
        return spec, found

    def _read(self, variable: Object, fields: dict[str, str]) -> str:
        source: dict[str, Any] = variable.get("valueFrom", {})
        if reference := source.get("configMapKeyRef"):
            return str(self.find("ConfigMap", reference["name"])["data"][reference["key"]])
        if reference := source.get("fieldRef"):
            return fields[reference["fieldPath"]]
        return str(variable["value"]).replace(SERVICE_VARIABLE, self._nats_host)

    def _find_places(self, spec: Object, container: Object, values: dict[str, str]) -> dict[str, str]:
        """Where in the container -> where here."""
        volumes = {each["name"]: each for each in spec["volumes"]}
        places = {}
        for mount in container["volumeMounts"]:
            volume = volumes[mount["name"]]
            name = volume.get("secret", {}).get("secretName") or volume.get("configMap", {}).get("name")
            part = mount.get("subPathExpr", "").replace("$(YETT_NODE)", values.get("YETT_NODE", ""))
            if name:
                places[mount["mountPath"]] = str(self.mounted(name) / part)
        return places

    def _move(self, value: str, places: dict[str, str]) -> str:
        for inside, here in places.items():
            if value == inside or value.startswith(inside + "/"):
                return here + value[len(inside) :]
        return value
