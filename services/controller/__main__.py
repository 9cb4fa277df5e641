"""``python -m services.controller``: settings, connection, controller. Exit status 2: a person must put it right."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from services.common import nats
from services.common.log import setup_logging
from services.common.metrics import serve_metrics
from services.common.run import run
from services.common.settings import ControllerSettings, SettingsError, default_controller_name, load_settings
from services.common.streams import StreamError
from services.common.telemetry import setup_telemetry
from services.controller.app import Controller, Reporters, Watch
from services.controller.election import Election
from services.controller.kube import Cluster
from services.controller.kube_api import Api
from services.controller.kube_events import NodeEvents
from services.controller.kube_lease import LeaseElection
from services.controller.kube_status import StatusWriter
from services.controller.kube_taints import TaintRemover
from services.controller.kube_watch import Pace
from services.controller.manifests import watch
from services.controller.world import State

UNUSABLE = (SettingsError, nats.ServerTooOldError, StreamError, FileNotFoundError)


async def serve(settings: ControllerSettings) -> None:
    """Until cancelled. SettingsError if there is no folder of manifests and no API server."""
    async with _objects(settings) as (objects, election, reporters):
        connection = await nats.connect(settings, "yett-controller")
        try:
            controller = Controller(settings, connection, objects, State, election, reporters)
            end_metrics = serve_metrics(settings, controller.put_metrics)
            try:
                await controller.run()
            finally:
                await asyncio.to_thread(end_metrics)
        finally:
            await nats.close(connection)


@asynccontextmanager
async def _objects(settings: ControllerSettings) -> AsyncIterator[tuple[Watch, Election | None, Reporters | None]]:
    """Where objects come from, who may lead, who is told: the folder that the settings name, else the cluster."""
    if settings.manifests:
        folder = Path(settings.manifests)
        if not folder.is_dir():
            raise SettingsError("YETT_MANIFESTS", f"{folder}: no such folder")
        yield (lambda: watch(folder)), None, None
        return
    api = await Api.open(settings.kube_config)
    try:
        pace = Pace(page=settings.kube_page, watch_seconds=settings.kube_watch_seconds)
        name = settings.controller_name or default_controller_name()
        cluster = Cluster(api, settings.kube_namespace, pace)
        namespace = settings.kube_namespace
        taints = TaintRemover(api, settings.startup_taint) if settings.startup_taint else None
        reporters = StatusWriter(api, namespace), NodeEvents(api), taints
        yield cluster.watch, LeaseElection(api, namespace, name), reporters
    finally:
        await api.close()


def main() -> int:
    """The process's exit status."""
    status = 2
    try:
        settings = load_settings(ControllerSettings)
        setup_logging(settings, "controller")
        setup_telemetry(settings, "controller")
        status = run(lambda: serve(settings))
    except* UNUSABLE as group:
        for error in group.exceptions:
            print(f"yett-controller: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
