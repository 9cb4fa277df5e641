"""Fixtures of the ring `nats`."""

from tests.nats_server import nats_server

__all__ = ["nats_server"]
