"""The size of every map is a setting."""

from __future__ import annotations

import msgspec

from services.common.settings import NodeagentSettings
from services.nodeagent.loader import DEFAULT_SIZES, POWERS_OF_TWO
from services.nodeagent.sizes import _SIZES, make_sizes


def test_every_size_of_the_loaders_has_a_setting_of_its_own() -> None:
    """And no setting of a map is without effect."""
    fields = {one.name for one in msgspec.structs.fields(NodeagentSettings)}
    assert _SIZES.keys() == DEFAULT_SIZES.keys()
    assert sorted(_SIZES.values()) == sorted(one for one in fields if one.startswith("map_"))


def test_a_size_is_what_was_set_or_the_next_power_of_two() -> None:
    """Each follows its own setting and leaves the others alone."""
    plain = make_sizes(NodeagentSettings(node="a"))
    for name, field in _SIZES.items():
        changed = make_sizes(msgspec.structs.replace(NodeagentSettings(node="a"), **{field: 1000}))
        assert changed == {**plain, name: 1024 if name in POWERS_OF_TWO else 1000}
