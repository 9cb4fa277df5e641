"""Every trace of an agent that does not run any more is removed: ``yett detach``."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from services.common import forgetting
from services.common.cache import PROGRAMS, RECORDER_MEMORY, RECORDER_STREAMS
from services.common.settings import NodeagentSettings
from services.nodeagent import gate, memory, nft, sourcecheck, statefile, usagebus
from services.nodeagent.lock import Lock
from services.nodeagent.netlink import detach_all


def detach(settings: NodeagentSettings) -> int:
    """Every trace of an agent that is not running: filters, marks, nftables, pins, state. How many interfaces it had.

    AlreadyRunning if an agent has them.
    """
    pin_root, state_dir = Path(settings.pin_root), Path(settings.state_dir)
    lock = Lock(pin_root)
    try:
        count = detach_all()
        for table in (gate.TABLE, sourcecheck.TABLE):
            nft.remove(table)
        shutil.rmtree(pin_root)
        for pattern in _STATE_FILES:
            for path in state_dir.glob(pattern):
                path.unlink(missing_ok=True)
        shutil.rmtree(state_dir / PROGRAMS, ignore_errors=True)
        with contextlib.suppress(OSError):  # somebody else's files are in it, or it never was
            state_dir.rmdir()
        return count
    finally:
        lock.release()


_REPLACED = (
    *(memory.FILE_NAME, statefile.FILE_NAME, usagebus.FILE_NAME),
    *(RECORDER_MEMORY, RECORDER_STREAMS, *forgetting.FILES),
)
"""Each may have left one beside it that was not renamed."""
_STATE_FILES = (*_REPLACED, *(f"{name}.new" for name in _REPLACED), "recorder.new", "layout-*")
