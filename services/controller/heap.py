"""The collector of cycles, kept away from the cluster's objects.

A full collection walks every object there is, more than a tenth of a second in a cluster of 10,000 pods, and it comes
in the middle of some event. What a term begins with lives about as long as the term and has no cycles: it is frozen,
and collections walk only what came later. While it comes, nothing is collected at all: there is nothing to be found.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

YOUNG_MAX = 10_000
"""So many objects come, less those that go, before the young are looked through. By default it is 700, which one edit
of a policy of all pods exceeds ten times over, though it drops as many as it makes and leaves no cycle behind."""


def freeze_heap() -> None:
    """Take what is alive out of further collections; what a former call took out is looked at once more first."""
    gc.set_threshold(YOUNG_MAX)
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@contextmanager
def loading() -> Iterator[None]:
    """No collection while what stays is made."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
