"""What a controller's page of metrics says, from its status. Pure."""

from __future__ import annotations

from schemas.status import ControllerStatus
from services.common.metrics import Family, Page

LEADING = Family("yett_leading", "gauge", "1 while this controller leads.")
TERM = Family("yett_term", "gauge", "Number of the leader's term.")
REVISION = Family("yett_revision_published", "gauge", "Newest policy revision.")
NODE_REVISION = Family("yett_node_revision", "gauge", "Policy revision that a node has acknowledged.", ("node",))
NODE_LAG = Family("yett_node_revision_lag", "gauge", "Revisions that a node is behind.", ("node",))
PROBLEMS = Family("yett_objects_with_problems", "gauge", "Objects refused, or read with a warning.", ("severity",))
REVISIONS = Family("yett_revisions_published_total", "counter", "Revisions published in this term.")
ROWS = Family("yett_rows_published_total", "counter", "Rows published in this term.")
FAMILIES = (LEADING, TERM, REVISION, NODE_REVISION, NODE_LAG, PROBLEMS, REVISIONS, ROWS)


def put_controller(page: Page, status: ControllerStatus, *, is_leading: bool) -> None:
    """All of it; who stands by says only that."""
    page.put(LEADING, 1 if is_leading else 0)
    page.put(TERM, status.term)
    page.put(REVISION, status.revision)
    page.put(REVISIONS, status.counters.get("revisions", 0))
    page.put(ROWS, status.counters.get("rows", 0))
    for severity in ("error", "warning"):
        objects = {problem.object for problem in status.problems if problem.severity == severity}
        page.put(PROBLEMS, len(objects), severity)
    for node, revision in (status.nodes if is_leading else {}).items():
        page.put(NODE_REVISION, revision, node)
        page.put(NODE_LAG, max(0, status.revision - revision), node)
