"""Golden text: what is compared with a file beside the tests; ``YETT_WRITE_GOLDEN=1`` writes it, git shows the diff."""

from __future__ import annotations

import os
from pathlib import Path


def compare(path: Path, text: str) -> None:
    """Fails if the text is not the file's."""
    if os.environ.get("YETT_WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"{path} differs: regenerate with YETT_WRITE_GOLDEN=1 and review the diff"
