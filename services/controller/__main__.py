"""``python -m services.controller``: settings, connection, controller. Exit status 2: a person must put it right."""

from __future__ import annotations

import sys
from pathlib import Path

from services.common import nats
from services.common.log import setup_logging
from services.common.run import run
from services.common.settings import ControllerSettings, SettingsError, load_settings
from services.common.streams import StreamError
from services.common.telemetry import setup_telemetry
from services.controller.app import Controller
from services.controller.manifests import watch
from services.controller.world import State

UNUSABLE = (SettingsError, nats.ServerTooOldError, StreamError, FileNotFoundError)


async def serve(settings: ControllerSettings) -> None:
    """Until cancelled. SettingsError if there is no folder of manifests."""
    if not Path(settings.manifests).is_dir():
        raise SettingsError("YETT_MANIFESTS", f"{settings.manifests}: no such folder")
    connection = await nats.connect(settings, "yett-controller")
    try:
        await Controller(settings, connection, watch, State).run()
    finally:
        await nats.close(connection)


def main() -> int:
    """The process's exit status."""
    status = 2
    try:
        settings = load_settings(ControllerSettings)
        setup_logging(settings, "controller")
        setup_telemetry(settings, "controller")
        status = run(lambda: serve(settings))
    except* UNUSABLE as group:
        for error in group.exceptions:
            print(f"yett-controller: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
