"""A container of ``deploy/base``, made of a built image without a daemon: what a kubelet's runtime does, by unshare.

The root file system is the image's, under an overlay for the mount points, and read-only; mounts, user, capabilities
and read-only are the shipped manifest's, entry point, user, folder and variables the image's own.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from services.demo.pipeline import Pipeline
from tests.deploy.test_overlays import DEPLOY, containers, render

BUILD = DEPLOY / "build-image.sh"
DEVICES = ("null", "zero", "random", "urandom")


def build_images() -> Path:
    """The folder of the root file systems; what has not changed is not built again. AssertionError with its words."""
    done = subprocess.run([BUILD], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return Path(done.stdout.split()[-1]).parent


@dataclass(frozen=True)
class Image:
    """One service's root file system, and what its image says of it."""

    service: str
    roots: Path

    @property
    def root(self) -> Path:
        return self.roots / self.service

    @cached_property
    def described(self) -> dict[str, Any]:
        """As ``buildah inspect`` gives it."""
        described: dict[str, Any] = json.loads((self.roots / f"{self.service}.json").read_text())
        return described

    @property
    def config(self) -> dict[str, Any]:
        """The OCI configuration: Entrypoint, Env, User, WorkingDir, Labels."""
        config: dict[str, Any] = self.described["OCIv1"]["config"]
        return config

    @cached_property
    def container(self) -> dict[str, Any]:
        """The container of ``deploy/base`` that runs it."""
        return containers(render(DEPLOY / "base"))[self.service]

    def command(
        self, folder: Path, environment: Mapping[str, str], mounts: Mapping[str, Path], arguments: Sequence[str] = ()
    ) -> list[str]:
        """What replaces itself by the entry point. ``folder``: for mounts. ``mounts``: place inside -> on the host."""
        place = folder / f"container-{self.service}"
        place.mkdir(parents=True, exist_ok=True)
        script = "\n".join((*self._mounting(place, mounts), shlex.join(self._entering(place, environment, arguments))))
        return ["unshare", "--mount", "--propagation", "private", "sh", "-e", "-c", script]

    def _mounting(self, place: Path, mounts: Mapping[str, Path]) -> list[str]:
        root = place / "root"
        layers = f"lowerdir={self.root},upperdir={place}/upper,workdir={place}/work"
        lines = [
            f"mount -t tmpfs tmpfs {place}",
            f"mkdir {place}/upper {place}/work {root}",
            f"mount -t overlay overlay -o {layers} {root}",
            *(f"mkdir -p {root}{inside}" for inside in mounts),
        ]
        if self.container["securityContext"]["readOnlyRootFilesystem"]:
            lines.append(f"mount -o remount,ro {root}")
        lines += [
            f"mount -t proc proc {root}/proc",
            f"mount -t sysfs -o ro sysfs {root}/sys",
            f"mount -t tmpfs -o mode=755 tmpfs {root}/dev",
            *(f"touch {root}/dev/{each}; mount --bind /dev/{each} {root}/dev/{each}" for each in DEVICES),
        ]
        return lines + [f"mount --bind {outside} {root}{inside}" for inside, outside in mounts.items()]

    def _entering(self, place: Path, environment: Mapping[str, str], arguments: Sequence[str]) -> list[str]:
        context = self.container["securityContext"]
        kept = ",".join(["-all", *(f"+{each.lower()}" for each in context["capabilities"].get("add", ()))])
        user = str(context.get("runAsUser", (self.config.get("User") or "0").split(":")[0]))
        variables = [*self.config["Env"], *(f"{name}={value}" for name, value in environment.items())]
        return [
            *("exec", "chroot", str(place / "root"), "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"),
            *(f"--bounding-set={kept}", f"--inh-caps={kept}", "--no-new-privs"),
            *("env", "-i", "-C", self.config["WorkingDir"], *variables, *self.config["Entrypoint"], *arguments),
        ]


class ImagePipeline(Pipeline):
    """Starts the services out of their images, and keeps to the lab's settings."""

    def __init__(self, lab: Any, roots: Path) -> None:
        super().__init__(lab)
        self.roots = roots

    def start_named(self, name: str, command: list[str], environment: Mapping[str, str]) -> Any:
        folder, (service, _, node) = self._lab.run.folder, name.partition("-")
        # Programs kept by others are not for it: its own compiler makes them.
        given = {key: value for key, value in environment.items() if key[:5] == "YETT_" and key != "YETT_PROGRAMS"}
        mounts = {"/tmp": folder / f"tmp-{name}"}
        if node:
            mounts |= {"/sys/fs/bpf": Path("/sys/fs/bpf"), "/var/lib/yett": Path(given["YETT_STATE_DIR"])}
            given["YETT_STATE_DIR"] = "/var/lib/yett"
        else:
            mounts |= {"/manifests": Path(given["YETT_MANIFESTS"])}
            given["YETT_MANIFESTS"] = "/manifests"
        mounts["/tmp"].mkdir(exist_ok=True)
        mounts["/tmp"].chmod(0o1777)
        contained = Image(service, self.roots).command(folder, given, mounts)
        # What the lab puts before the interpreter that stays: the node's network.
        entering = command[: command.index("--") + 1] if "nsenter" in command else []
        return super().start_named(name, [*entering, *contained], {})
