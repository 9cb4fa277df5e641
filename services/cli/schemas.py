"""``yett schemas``: what Yett says on which subject, for integrations."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from schemas import wire


def command(
    *,
    asyncapi: Annotated[bool, typer.Option("--asyncapi", help="AsyncAPI 3.0, with the subjects.")] = False,
) -> None:
    """JSON Schema of every message and of a flow log's line, or AsyncAPI."""
    json.dump(wire.export_asyncapi() if asyncapi else wire.export_json_schema(), sys.stdout, indent=1)
    sys.stdout.write("\n")
