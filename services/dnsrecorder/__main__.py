"""``python -m services.dnsrecorder``: settings from the environment, see ``services.common.settings``."""

from __future__ import annotations

import sys

from services.common.log import setup_logging
from services.common.run import run
from services.common.settings import RecorderSettings, SettingsError, load_settings
from services.common.telemetry import setup_telemetry
from services.dnsrecorder.app import main


def start() -> int:
    """Exit status: 0 after a signal, 2 for unusable settings."""
    try:
        settings = load_settings(RecorderSettings)
        setup_logging(settings, "dnsrecorder")
        setup_telemetry(settings, "dnsrecorder")
    except SettingsError as error:
        print(f"dnsrecorder: {error}", file=sys.stderr)
        return 2
    return run(lambda: main(settings))


if __name__ == "__main__":
    sys.exit(start())
