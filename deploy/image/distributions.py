"""Which Python distributions each service's image has.

``python deploy/image/distributions.py`` writes ``<service>.txt``, one name a line: the closure of what the service
imports, and nothing that only tests, the demo or another service needs. A test holds the files to it.
``python deploy/image/distributions.py SERVICE`` prints those names as ``requirements.txt`` pins them, hashes and all:
the build of the image installs that.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
PINNED = FOLDER.parents[1] / "requirements.txt"
COMMON = (
    "msgspec",
    "nats-py",
    "nkeys",
    "opentelemetry-exporter-otlp",
    "opentelemetry-sdk",
    "prometheus-client",
    "pynacl",
    "pyyaml",
    "structlog",
    "tenacity",
    "uvloop",
)
"""Of ``schemas`` and ``services.common``."""
SERVICES = {
    "controller": (*COMMON, "aiohttp", "kubernetes-asyncio", "watchfiles"),
    "dnsrecorder": (*COMMON, "dnspython"),
    "nodeagent": (*COMMON, "pyroute2"),
}
"""Service -> distributions that it imports. bcc is Debian's, and in the node agent's image alone."""
ENVIRONMENT = {"python_version": "3.11", "python_full_version": "3.11.2", "sys_platform": "linux", "extra": ""}


def close(roots: tuple[str, ...]) -> list[str]:
    """The distributions and all that they require, by what is installed here."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: set[str] = set()
    waiting = [canonicalize_name(root) for root in roots]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            needed = (Requirement(text) for text in requires(name) or ())
            waiting += [
                canonicalize_name(each.name) for each in needed if not each.marker or each.marker.evaluate(ENVIRONMENT)
            ]
    return sorted(found)


def pin(names: list[str], text: str) -> str:
    """The lines of a ``requirements.txt`` that pin these names; KeyError for one that it has not."""
    blocks = re.split(r"(?m)^(?=[a-z0-9])", re.sub(r"(?m)^#.*\n", "", text))
    pins = {block.split("==")[0]: block for block in blocks if "==" in block}
    return "".join(pins[name] for name in names)


def main(arguments: list[str]) -> None:
    if arguments:
        names = (FOLDER / f"{arguments[0]}.txt").read_text().split()
        print(pin(names, PINNED.read_text()), end="")
        return
    for service, roots in SERVICES.items():
        (FOLDER / f"{service}.txt").write_text("\n".join(close(roots)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
