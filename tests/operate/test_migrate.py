"""The order of a migration: ours judges everywhere before theirs is turned off; what is there of theirs is listed."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from schemas.status import AgentStatus, ControllerStatus, EndpointStatus
from schemas.terms import NodeName, RevisionNumber
from services.operate.migrate import Found, Progress, find_unready, plan_steps, want_settings

OURS = {"default": "allow", "enforce": "true"}
LEADER = ControllerStatus(holder="x", revision=RevisionNumber(7), nodes={"a": RevisionNumber(7)})
THEIRS_FIRST = EndpointStatus(pod="a/b", interface="eni1", ifindex=3, state="foreign", foreign="bpf handle_ingress")
OURS_ALONE = EndpointStatus(pod="a/b", interface="eni1", ifindex=3, state="enforced")


def agent(endpoint: EndpointStatus = THEIRS_FIRST, **changes: object) -> dict[str, AgentStatus]:
    sound = AgentStatus(node=NodeName("a"), revision=RevisionNumber(7), endpoints=(endpoint,))
    return {"a": msgspec.structs.replace(sound, **changes)}


BEFORE = Found(switch="true", flag="true", endpoints=3, ours=OURS, controller=LEADER, agents=agent())


def progress(found: Found) -> dict[str, str]:
    return {step.name: step.progress.value for step in plan_steps(found)}


def test_steps_come_one_after_the_other() -> None:
    """At each the one before is done, and nothing of theirs is to be turned off before ours judges."""
    names = ["settings", "ready", "their-controller", "their-agents", "their-filters", "their-objects"]
    stages = [
        replace(BEFORE, ours=None),
        replace(BEFORE, agents=agent(revision=RevisionNumber(6))),
        BEFORE,
        replace(BEFORE, switch="false"),
        replace(BEFORE, switch="false", flag="false"),
        replace(BEFORE, switch="", flag="", agents=agent(OURS_ALONE)),
        replace(BEFORE, switch="", flag="", agents=agent(OURS_ALONE), endpoints=0),
    ]
    for place, found in enumerate(stages):
        told = progress(found)
        assert list(told) == names
        assert [told[name] for name in names[:place]] == ["done"] * place
        assert [told[name] for name in names[place : place + 1]] == ["todo"] * (place < len(names))
        assert set(list(told.values())[place + 1 :]) <= {"blocked", "done"}
    assert all(step.command for found in stages for step in plan_steps(found) if step.progress is not Progress.DONE)


@pytest.mark.parametrize(
    "changes",
    [
        {"controller": None},
        {"agents": {}},
        {"agents": agent(mode="strict")},
        {"agents": agent(torn=True)},
        {"agents": agent(revision=RevisionNumber(6))},
        {"agents": agent(enforcing=False)},
        {"agents": agent(msgspec.structs.replace(THEIRS_FIRST, state="waiting"))},
        {"agents": agent(msgspec.structs.replace(THEIRS_FIRST, state="claimed-twice"))},
    ],
)
def test_ours_is_not_ready_where_an_interface_might_be_open(changes: dict[str, object]) -> None:
    """Each of these keeps theirs on; without any of them it may go."""
    assert not find_unready(BEFORE)
    assert find_unready(replace(BEFORE, **changes))  # type: ignore[arg-type]
    assert progress(replace(BEFORE, **changes))["their-controller"] == "blocked"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("switch", "ours", "wanted"),
    [
        ("true", None, {"default": "allow", "enforce": "true"}),
        ("false", None, {"default": "allow", "enforce": "false"}),
        ("", None, {"default": "allow", "enforce": "false"}),
        ("true", {"enforce": "false"}, {"default": "allow", "enforce": "true"}),
        ("false", {"default": "deny"}, {"default": "deny", "enforce": "true"}),
        ("false", {"enforce": "false", "grace": "5"}, {"default": "allow", "enforce": "false", "grace": "5"}),
    ],
)
def test_settings_that_mean_the_same(switch: str, ours: dict[str, str] | None, wanted: dict[str, str]) -> None:
    """We enforce where they do; what is ours already stays, and is never switched off by a migration."""
    assert want_settings(Found(switch=switch, ours=ours)) == wanted
