"""The collector of cycles, kept away from the cluster's objects.

A full collection walks every object there is, more than a tenth of a second in a cluster of 10,000 pods, and it comes
in the middle of some event. What a term begins with lives about as long as the term and has no cycles: it is frozen,
and collections walk only what came later.
"""

from __future__ import annotations

import gc


def freeze_heap() -> None:
    """Take what is alive out of further collections; what a former call took out is looked at once more first."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
