"""Commands that ask a bus give up, and say why."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from services.cli.__main__ import app

ASKING = [["status"], ["flows"], ["explain", "--from", "app/web", "--to", "app/db:80"]]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def ask(arguments: list[str], url: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*arguments, "--nats", url, "--wait", "0.3"])
    return result.exit_code, result.stderr


@pytest.mark.parametrize("arguments", ASKING, ids=lambda arguments: arguments[0])
def test_a_server_that_is_not_there_is_given_up(arguments: list[str], closed_port: int) -> None:
    """Exit 2 after the time that ``--wait`` gives, with the address and the cause; nobody waits for ever."""
    code, said = ask(arguments, f"nats://127.0.0.1:{closed_port}")
    assert code == 2
    assert f"no NATS at nats://127.0.0.1:{closed_port} in 0.3 s" in said and "Connect call failed" in said


@pytest.mark.parametrize("arguments", ASKING, ids=lambda arguments: arguments[0])
def test_a_server_that_says_nothing_is_given_up(arguments: list[str], silent_port: int) -> None:
    """Something that listens there and is no NATS holds nobody up either."""
    code, said = ask(arguments, f"nats://127.0.0.1:{silent_port}")
    assert code == 2 and "in 0.3 s" in said


@pytest.mark.parametrize("arguments", ASKING, ids=lambda arguments: arguments[0])
def test_a_url_that_is_none_is_refused_at_once(arguments: list[str]) -> None:
    """A typing error needs no waiting for."""
    code, said = ask(arguments, "nats://127.0.0.1:99999")
    assert code == 2 and "invalid connect url" in said and " in 0.3 s" not in said
