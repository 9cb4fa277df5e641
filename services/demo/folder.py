"""Where the demo's objects go: a folder of manifests that the controller watches, unless somebody has another place.

In the folder files appear, change and vanish whole, by rename.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import resources
from pathlib import Path

from services.demo import objects


class Objects(ABC):
    """What the controller reads, written by the demo, file by file."""

    @abstractmethod
    def write(self, name: str, text: str) -> None:
        """The file ``name`` holds these objects, and no others any more."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """The file goes, and its objects with it; fine if it is gone."""

    def write_config(self, settings: dict[str, str]) -> None:
        """The ConfigMap with the cluster's settings, changed where ``settings`` say."""
        self.write("00-config.yaml", objects.render([objects.make_config(settings)]))

    def write_policy(self, name: str) -> None:
        """One of the demo's own manifests."""
        self.write(name, read_manifest(name))


class ManifestFolder(Objects):
    """Half-written files live beside it, never in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._staging = path.with_name(f"{path.name}.staging")
        for folder in (path, self._staging):
            folder.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, text: str) -> None:
        """The file ``name`` is ``text`` from one instant to the next."""
        staged = self._staging / name
        staged.write_text(text)
        staged.rename(self.path / name)

    def remove(self, name: str) -> None:
        """The file goes; fine if it is gone."""
        (self.path / name).unlink(missing_ok=True)


def read_manifest(name: str) -> str:
    """Text of a manifest that comes with the demo; FileNotFoundError if there is none."""
    return (resources.files("services.demo") / "manifests" / name).read_text()
