"""Commands run in the folder of the golden files, so that what they print names files as a user would."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from services.cli.__main__ import app

FOLDER = Path(__file__).parents[1] / "scenario" / "golden"


def yett(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    """One run; with YETT_WRITE_GOLDEN=1 the comparison below writes what it was given."""
    monkeypatch.chdir(FOLDER)
    return CliRunner().invoke(app, arguments)


def compare(name: str, printed: str) -> None:
    """Fails if what was printed is not the golden text."""
    path = FOLDER / f"{name}.txt"
    if os.environ.get("YETT_WRITE_GOLDEN"):
        path.write_text(printed)
    assert printed == path.read_text()
