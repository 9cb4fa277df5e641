"""``yett``: the command line. One file a command, no logic of its own."""

from __future__ import annotations

import io
import sys

import typer

from services.cli import (
    audit,
    check,
    demo,
    detach,
    diff,
    doctor,
    explain,
    flows,
    forget,
    keys,
    migrate,
    schemas,
    status,
    test,
    uninstall,
)

app = typer.Typer(
    help="Kubernetes network policy by name.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.command)
app.command("status")(status.command)
app.command("flows")(flows.command)
app.command("test")(test.command)
app.command("explain")(explain.command)
app.command("check")(check.command)
app.command("doctor")(doctor.command)
app.command("migrate")(migrate.command)
app.command("forget")(forget.command)
app.command("diff")(diff.command)
app.command("schemas")(schemas.command)
app.command("detach")(detach.command)
app.command("uninstall")(uninstall.command)
app.add_typer(audit.app, name="audit")
app.add_typer(keys.app, name="keys")


def main() -> None:
    """Entry point of the ``yett`` script."""
    speak_utf8()
    app()


def speak_utf8() -> None:
    """Answers are UTF-8 in every locale, as JSON and JUnit have to be; what it cannot say is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


if __name__ == "__main__":
    main()
