"""One agent a node: a lock on its pins and one on its network namespace, both let go by the kernel when it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from pathlib import Path


class AlreadyRunning(RuntimeError):
    """Another agent has this pin folder, or this node."""


class Lock:
    """One agent a pin folder and one a network namespace: two with folders of their own would fight over filters.

    The kernel lets go of both when the process ends, however it ends.
    """

    def __init__(self, pin_root: Path) -> None:
        """AlreadyRunning if another process holds either."""
        pin_root.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(pin_root, os.O_RDONLY | os.O_CLOEXEC)
        self._name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._name.bind(_NODE_NAME)
        except BlockingIOError as error:
            self.release()
            raise AlreadyRunning(f"another agent has {pin_root}: end it first") from error
        except OSError as error:
            self.release()
            if error.errno != errno.EADDRINUSE:
                raise
            raise AlreadyRunning("another agent runs in this network namespace: end it first") from error

    def release(self) -> None:
        """Another agent may start."""
        os.close(self._handle)
        self._name.close()


_NODE_NAME = b"\0yett-nodeagent"
"""An abstract socket's name belongs to a network namespace (unix(7)), as the filters do."""
