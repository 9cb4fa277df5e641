"""Settings: from the environment, from a file, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.settings import (
    SERVICES,
    CommonSettings,
    ControllerSettings,
    NodeagentSettings,
    SettingsError,
    load_settings,
)


def test_defaults_are_those_of_the_struct() -> None:
    """What is not set has its documented default."""
    settings = load_settings(ControllerSettings, {"YETT_MANIFESTS": "/m"})
    assert settings == ControllerSettings(manifests="/m")
    assert settings.nats_url == "nats://127.0.0.1:4222" and settings.revision_interval_millis == 50
    assert settings.otel_exporter == "auto"


def test_variables_are_read_by_the_fields_name() -> None:
    """YETT_ and the field's name in capitals; numbers are parsed, lists are comma separated."""
    environment = {
        "YETT_NODE": "n",
        "YETT_INTERFACES": "veth*, eni* ,",
        "YETT_MAP_FLOWS": "1024",
        "YETT_MODE": "strict",
    }
    settings = load_settings(NodeagentSettings, environment)
    assert settings.interfaces == ("veth*", "eni*") and settings.map_flows == 1024 and settings.mode == "strict"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("YETT_REVISION_INTERVAL_MILLIS", "often"),
        ("YETT_REVISION_INTERVAL_MILLIS", "-1"),
        ("YETT_LOG_LEVEL", "loud"),
        ("YETT_OTEL_EXPORTER", "carrier pigeon"),
    ],
)
def test_a_bad_value_names_its_variable(variable: str, value: str) -> None:
    """A value that does not fit is refused; the error names the variable and the value."""
    with pytest.raises(SettingsError, match=variable) as raised:
        load_settings(ControllerSettings, {"YETT_MANIFESTS": "/m", variable: value})
    assert raised.value.name == variable and repr(value) in str(raised.value)


def test_what_is_needed_and_missing_is_named() -> None:
    """A setting without a default that is not set is an error with its variable's name."""
    with pytest.raises(SettingsError, match="YETT_NODE: is needed"):
        load_settings(NodeagentSettings, {})


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    """A file named by YETT_CONFIG gives settings of any service; a variable overrides it."""
    file = tmp_path / "yett.yaml"
    file.write_text("node: from-file\nuplinks: [eth0]\nmanifests: /m\nmap_flows: 5\n")
    settings = load_settings(NodeagentSettings, {"YETT_CONFIG": str(file), "YETT_MAP_FLOWS": "7"})
    assert (settings.node, settings.uplinks, settings.map_flows) == ("from-file", ("eth0",), 7)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("nodee: x\n", "nodee"),
        ("map_flows: many\n", "map_flows"),
        ("- a list\n", "YETT_CONFIG"),
        ("a: b: c\n", "YETT_CONFIG"),
    ],
    ids=["unknown", "wrong type", "no mapping", "no YAML"],
)
def test_a_bad_file_is_refused_with_the_name(tmp_path: Path, content: str, named: str) -> None:
    """An unknown setting, a wrong type or an unreadable file is an error that names what is wrong."""
    file = tmp_path / "yett.yaml"
    file.write_text(content)
    with pytest.raises(SettingsError) as raised:
        load_settings(NodeagentSettings, {"YETT_CONFIG": str(file), "YETT_NODE": "n"})
    assert raised.value.name == named


def test_a_file_that_is_not_there_is_refused() -> None:
    """YETT_CONFIG that names no file is an error, not the defaults."""
    with pytest.raises(SettingsError, match="YETT_CONFIG"):
        load_settings(NodeagentSettings, {"YETT_CONFIG": "/nowhere/yett.yaml", "YETT_NODE": "n"})


def test_every_service_takes_the_common_settings() -> None:
    """All services are told where NATS is by the same name."""
    assert all(issubclass(kind, CommonSettings) for kind in SERVICES)
