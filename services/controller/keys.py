"""Which labels identities tell apart: what policies name, and for a while what they named before.

A key that no policy names any more costs nothing but some identities too many; dropping it moves its bearers' rows. So
idle keys stay, that removing and re-adding a policy moves none, until many are idle; then they go all at once.
"""

from __future__ import annotations

from schemas.policy import IdentityRow
from services.controller.policy.model import NamedPort
from services.controller.policy.select import Named

IDLE_KEYS_MAX = 64
"""Label keys that no policy names any more and that identities still bear; beyond it they are dropped, all at once."""


class LabelKeys:
    """``told``: what identities are made of."""

    def __init__(self) -> None:
        self.told = Named()
        self._idle = Named()

    def restore(self, identity: IdentityRow) -> None:
        """What an identity of a former controller tells apart."""
        for key in identity.labels:
            port = NamedPort.of_label(key)
            if port is not None:
                self.told.ports.add(port)
            elif identity.namespace:
                self.told.pods.add(key)
            else:
                self.told.nodes.add(key)

    def advance(self, named: Named) -> Named:
        """``named``: by the policies in force now; -> what identities are made of from here on.

        A key that only now became idle stays for one more write: rulesets that name it are in force until the flip.
        """
        idle = self.told - named
        long_idle = idle & self._idle
        kept = idle - long_idle if len(long_idle) > IDLE_KEYS_MAX else idle
        self.told, self._idle = named | kept, idle
        return self.told
