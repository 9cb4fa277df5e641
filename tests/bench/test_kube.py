"""What the bench makes of an audit log and of its samples."""

from __future__ import annotations

from typing import Any

from bench.kube import MORE_PODS, Figures, count_requests, in_full, judge_cluster, judge_restart, make_more_pods
from schemas import wire


def entry(
    verb: str, resource: str, *, stage: str = "ResponseComplete", agent: str = "yett-controller"
) -> dict[str, Any]:
    return {"verb": verb, "stage": stage, "userAgent": agent, "objectRef": {"resource": resource}}


def test_requests_are_counted_once_and_ours_alone() -> None:
    """A watch has two lines in the log; it is counted when it begins. Others' requests are theirs."""
    entries = [
        entry("watch", "pods", stage="ResponseStarted"),
        entry("watch", "pods"),
        entry("list", "pods"),
        entry("list", "pods", agent="kube-controller-manager"),
    ]
    assert count_requests(entries) == {"watch pods": 1, "list pods": 1}


def test_watches_and_renewals_are_what_rest_may_cost() -> None:
    """Whatever else is asked misses the bound, and is named."""
    samples = [0.01 * number for number in range(1, 11)]
    quiet = Figures(samples, samples, samples, {"watch pods": 4, "update leases": 20})
    assert all(row.met for row in judge_cluster(quiet))
    busy = judge_cluster(Figures(samples, samples, samples, {"watch pods": 4, "list pods": 1}))
    assert [(row.value, row.met) for row in busy][-1] == (1, False) and "list pods" in busy[-1].spread


def test_a_restart_may_publish_its_mark_alone() -> None:
    """Any other message misses the bound."""
    found: dict[str, Any] = {"seconds": 1.0, "said": [wire.SUBJECT_LEADER], "rows": 9, "cpu": 1.0, "peak": 80}
    found |= {"listed": 3_000, "held": 150.0}
    assert [row.met for row in judge_restart(found)] == [True] * 4
    missed = {"said": [wire.SUBJECT_LEADER, wire.SUBJECT_REVISION], "seconds": 6.0, "listed": 3_001, "held": 151.0}
    assert [row.met for row in judge_restart(found | missed)] == [False] * 4


def test_the_pods_that_are_added_are_as_many_as_said_and_apart() -> None:
    """Each has an address of its own, and containers as a server asks for them."""
    pods = [obj for obj in make_more_pods() if obj["kind"] == "Pod"]
    assert len(pods) == len({pod["status"]["podIP"] for pod in pods}) == MORE_PODS
    bare = {"kind": "Pod", "spec": {"nodeName": "a"}}
    assert in_full(bare)["spec"] == {"nodeName": "a", "containers": [{"name": "main", "image": "none"}]}
