"""The story that the README shows happens again: the same spans, parents, links and words in a fresh recording."""

from __future__ import annotations

import pytest

from services.story.__main__ import RECORDING
from services.story.record import record_story
from services.story.recording import describe_shape, read_recording

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def test_a_fresh_recording_has_the_shape_of_the_kept_one() -> None:
    """Who did what, for whose sake, linked with what, with which attributes; times and numbers are its own."""
    assert describe_shape(record_story()) == describe_shape(read_recording(RECORDING))
