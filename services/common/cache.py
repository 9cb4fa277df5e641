"""Where what can be made again is kept between runs of a person's commands."""

from __future__ import annotations

import os
from pathlib import Path

RECORDER_MEMORY = "recorder.msgpack"
"""What a node's recorder has told, beside the agent's state."""
RECORDER_STREAMS = "recorder-streams.msgpack"
"""Where in the streams that the kernel handed over to it a recorder was when it ended."""
PROGRAMS = "programs"
"""Compiled programs, in a folder of this name: a user's here, an agent's beside its state."""


def find_cache() -> Path:
    """Yett's folder of the user's cache; it may not exist. Source: XDG base directory specification."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yett"
