"""Ctrl-C ends the demo wherever it comes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator

import pytest
from rich.console import Console

from services.demo import app
from services.demo.runner import Demo, Options


@contextlib.contextmanager
def no_run(*, keep: bool = False) -> Iterator[None]:
    """Nothing that would have to be removed."""
    yield


def test_an_interruption_that_a_client_swallows_ends_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for an answer may take a cancellation for its end; the next stage is not begun."""
    begun: list[str] = []

    async def build(demo: Demo) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        begun.append("built")

    async def start_services(demo: Demo) -> None:
        begun.append("started")

    monkeypatch.setattr(app, "check_machine", lambda: None)
    monkeypatch.setattr(app, "owned_run", no_run)
    monkeypatch.setattr(Demo, "__init__", lambda demo, *of: None)
    monkeypatch.setattr(Demo, "build", build)
    monkeypatch.setattr(Demo, "start_services", start_services)
    monkeypatch.setattr(Demo, "close", lambda demo: asyncio.sleep(0))
    with pytest.raises(KeyboardInterrupt):
        app.run_demo(Options(), Console())
    assert begun == ["built"]
