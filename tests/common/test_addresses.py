"""What a connection is told, before there is one."""

from __future__ import annotations

import asyncio

import pytest

from services.common import nats
from services.common.settings import CommonSettings, NodeagentSettings, RecorderSettings, SettingsError


@pytest.mark.parametrize(
    "url", ["", "tls://$(YETT_NATS_SERVICE_HOST):4222", "nats://a:4222,", "nats://a:port", "a:4222"]
)
def test_an_address_that_waiting_does_not_mend_is_refused(url: str) -> None:
    """A kubelet leaves the name of a Service that it does not know yet; the next start of the container knows it."""
    with pytest.raises(SettingsError, match="YETT_NATS_URL"):
        asyncio.run(nats.connect(CommonSettings(nats_url=url), "test"))


@pytest.mark.parametrize("kind", [NodeagentSettings, RecorderSettings])
def test_one_text_gives_every_node_its_own_inbox(kind: type[NodeagentSettings | RecorderSettings]) -> None:
    """A node's name is one token of a subject, dots and all."""
    settings = kind(node="ip-10-0-1-2.ec2.internal", nats_inbox_prefix="yett.inbox.nodes.{node}")
    prefix = nats.security_options(settings)["inbox_prefix"]
    assert prefix.startswith("yett.inbox.nodes.ip-10-0-1-2") and prefix.count(".") == 3


def test_a_service_without_a_node_has_no_name_to_put_there() -> None:
    """Else all controllers would share an inbox that is called ``{node}``."""
    with pytest.raises(SettingsError, match="YETT_NATS_INBOX_PREFIX"):
        nats.security_options(CommonSettings(nats_inbox_prefix="yett.inbox.nodes.{node}"))
