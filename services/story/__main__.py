"""``python -m services.story [record|draw]``: play the story and keep what a receiver got, or draw what was kept.

``record`` draws as well. What is kept is ``docs/story.json``, the picture ``docs/story.svg``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from services.demo.state import DemoError
from services.story.picture import draw
from services.story.recording import read_recording, write_recording

DOCS = Path(__file__).parents[2] / "docs"
RECORDING, PICTURE = DOCS / "story.json", DOCS / "story.svg"


def main(asked: list[str]) -> int:
    """Exit status: 2 if it is asked for something else, or cannot be recorded here."""
    if asked not in (["record"], ["draw"]):
        print(__doc__, file=sys.stderr)
        return 2
    if asked == ["record"]:
        from services.story.record import record_story

        try:
            write_recording(RECORDING, record_story())
        except DemoError as error:
            print(f"story: {error}", file=sys.stderr)
            return 2
    PICTURE.write_text(draw(read_recording(RECORDING)))
    print(f"{PICTURE.relative_to(DOCS.parent)} is drawn", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
