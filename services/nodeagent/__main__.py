"""``python -m services.nodeagent [detach]``: settings from the environment, see ``services.common.settings``.

Exit status: 0 after a signal, 2 where a person must put something right.
"""

from __future__ import annotations

import sys

from services.common import nats
from services.common.bpf import BpfError
from services.common.log import setup_logging
from services.common.run import run
from services.common.settings import NodeagentSettings, SettingsError, load_settings
from services.common.telemetry import setup_telemetry
from services.nodeagent.app import App
from services.nodeagent.compiled import LoaderError
from services.nodeagent.detach import detach
from services.nodeagent.lock import AlreadyRunning
from services.nodeagent.nft import NftError
from services.nodeagent.strict import GateError

UNUSABLE = (
    *(SettingsError, nats.ServerTooOldError, AlreadyRunning, LoaderError),
    *(GateError, NftError, BpfError, PermissionError),
)


def main(arguments: list[str]) -> int:
    """The process's exit status."""
    status = 2
    try:
        settings = load_settings(NodeagentSettings)
        setup_logging(settings, "nodeagent")
        emitter = setup_telemetry(settings, "nodeagent")
        status = _detach(settings) if arguments == ["detach"] else run(lambda: App(settings, emitter).run())
    except* UNUSABLE as group:
        for error in group.exceptions:
            print(f"nodeagent: {error}", file=sys.stderr)
    return status


def _detach(settings: NodeagentSettings) -> int:
    print(f"nodeagent: {detach(settings)} interfaces let go", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
