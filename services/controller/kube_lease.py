"""Leadership by a Kubernetes Lease of four seconds.

* Whoever finds the Lease unchanged for its whole duration, by its own clock, takes it; the write carries the version
  that was seen, so of two that try one is refused. Clocks of different machines are never compared.
* The Lease is watched: at rest a standby asks for nothing.
* A leader that cannot reach the API server goes on. Nothing is lost by it: without the server nobody else can take the
  Lease, and whoever does writes its mark, behind which the server of the stream refuses the old leader's rows.
* Who ends its term gives the Lease back, so that nobody waits for it to run out.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import msgspec

from services.common.log import get_logger
from services.controller.election import SayLeader
from services.controller.kube_api import Api, KubeError
from services.controller.kube_kinds import decode_failure, decode_line
from services.controller.leader import TermEndedError

LEASE_NAME = "yett-controller"
LEASE_SECONDS = 4
RENEW_SECONDS = 1.0
RETRY_SECONDS = 0.5
WATCH_SECONDS = 60
RESIGN_SECONDS = 1.0
CONFLICT, NOT_FOUND = 409, 404

_log = get_logger("lease")


class _Metadata(msgspec.Struct, rename="camel"):
    resource_version: str = ""


class _Spec(msgspec.Struct, rename="camel"):
    holder_identity: str | None = None
    lease_transitions: int | None = None


class _Lease(msgspec.Struct):
    metadata: _Metadata
    spec: _Spec = msgspec.field(default_factory=_Spec)


_LEASE = msgspec.json.Decoder(_Lease)


class LeaseElection:
    """``name``: this process among those that want to lead."""

    def __init__(self, api: Api, namespace: str, name: str) -> None:
        self._api = api
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._namespace = namespace
        self._name = name
        self._lease: _Lease | None = None
        self._seen_at = float("-inf")
        self._is_seeing = asyncio.Event()
        self._changed = asyncio.Event()

    # -- seeing

    async def follow(self) -> None:
        is_new = True
        while True:
            try:
                await self._read()
                # Time in which nothing could be seen is not time in which nothing was renewed.
                self._seen_at = self._now() if not self._is_seeing.is_set() else self._seen_at
                self._is_seeing.set()
                while True:
                    # From the version that was seen last: a watch that ends leaves no gap, and nothing is read again.
                    next_at = self._now() + RETRY_SECONDS
                    await self._watch()
                    await asyncio.sleep(max(0.0, next_at - self._now()))
            except KubeError as error:
                if is_new or self._is_seeing.is_set():
                    _log.warning("the lease cannot be seen", reason=str(error))
                is_new = False
                self._is_seeing.clear()
                await asyncio.sleep(RETRY_SECONDS)

    async def _read(self) -> None:
        try:
            self._see(_LEASE.decode(await self._api.get(f"{self._collection}/{LEASE_NAME}")))
        except KubeError as error:
            if error.code != NOT_FOUND:
                raise
            self._see(None)

    async def _watch(self) -> None:
        query = {
            "watch": "true",
            "fieldSelector": f"metadata.name={LEASE_NAME}",
            "timeoutSeconds": str(WATCH_SECONDS),
            "resourceVersion": self._lease.metadata.resource_version if self._lease else "0",
        }
        async with self._api.lines(self._collection, query, silence_seconds=WATCH_SECONDS + 5) as lines:
            async for line in lines:
                read = decode_line(line)
                if read.type == "ERROR":
                    raise KubeError(decode_failure(bytes(read.object)).message)
                self._see(None if read.type == "DELETED" else _LEASE.decode(bytes(read.object)))

    def _see(self, lease: _Lease | None) -> None:
        before = self._lease.metadata.resource_version if self._lease else ""
        after = lease.metadata.resource_version if lease else ""
        if before != after:
            self._lease, self._seen_at = lease, self._now()
        self._changed.set()
        self._changed = asyncio.Event()

    # -- leading

    async def win(self, say_leader: SayLeader) -> None:
        said = ""
        while True:
            await self._is_seeing.wait()
            holder = self._holder
            left_seconds = self._seen_at + LEASE_SECONDS - self._now()
            if holder and holder != self._name and left_seconds > 0:
                if holder != said:
                    say_leader(holder)
                    said = holder
                await self._until_changed(left_seconds)
                continue
            try:
                await self._write(self._name, is_new=True)
                return
            except KubeError as error:
                _log.info("the lease was not taken", reason=str(error))
                await self._look_again()

    async def hold(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            # Before the write too: who slept may have seen the next leader's Lease, and a write against it succeeds.
            self._check_ours()
            try:
                await self._write(self._name)
            except KubeError as error:
                if error.code != CONFLICT:
                    _log.debug("the lease was not renewed", reason=str(error))
                    continue
                await self._look_again()
            self._check_ours()

    async def resign(self) -> None:
        if self._holder != self._name:
            return
        try:
            async with asyncio.timeout(RESIGN_SECONDS):
                await self._write("")
        except (KubeError, TimeoutError) as error:
            _log.info("the lease was not given back", reason=str(error))

    def _check_ours(self) -> None:
        if self._holder not in ("", self._name):
            raise TermEndedError(f"{self._holder} has taken the lease")

    @property
    def _holder(self) -> str:
        return (self._lease.spec.holder_identity or "") if self._lease else ""

    async def _write(self, holder: str, *, is_new: bool = False) -> None:
        """Against the version that was seen; KubeError with ``CONFLICT`` where another was faster."""
        lease = self._lease
        transitions = (lease.spec.lease_transitions or 0) if lease else 0
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec: dict[str, Any] = {"holderIdentity": holder, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now}
        spec["leaseTransitions"] = transitions + (is_new and self._holder != holder)
        metadata = {"name": LEASE_NAME, "namespace": self._namespace}
        if is_new:
            spec["acquireTime"] = now
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
        if lease is None:
            answer = await self._api.send("POST", self._collection, body=body, content_type="application/json")
        else:
            metadata["resourceVersion"] = lease.metadata.resource_version
            path = f"{self._collection}/{LEASE_NAME}"
            answer = await self._api.send("PUT", path, body=body, content_type="application/json")
        self._see(_LEASE.decode(answer))

    async def _look_again(self) -> None:
        """What stands there now; where that cannot be seen, what was seen stays."""
        await asyncio.sleep(RETRY_SECONDS)
        try:
            await self._read()
        except KubeError as error:
            _log.debug("the lease cannot be seen", reason=str(error))

    async def _until_changed(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
