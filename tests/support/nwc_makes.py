"""NWC wallet services that we did not write, each with a wallet for the provider and one for the customer.

They run in Node (tests/live/node). Two stand in front of wallets of an LNbits, one in front of two LDK nodes.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from tests.support.lnbits import Account, Lnbits
from tests.support.node_programs import NodeProgram

PURSES_SATS = {"provider": 0, "customer": 100_000}


class Make(StrEnum):
    """Which service: the name of its program is `nwc_` and this."""

    ALBY = "alby"  # @getalby/sdk in front of LNbits
    AWKWARD = "awkward"  # NIP-04, no pushes, no states, hashes for descriptions, in front of LNbits
    LDK = "ldk"  # @getalby/sdk in front of two LDK nodes with a channel: msats, and no memory over a restart

    @property
    def network(self) -> str:
        """The network of its invoices."""
        return "regtest" if self is Make.LDK else "bitcoin"

    @property
    def pushes(self) -> bool:
        """Whether it sends notifications."""
        return self is not Make.AWKWARD


@dataclass(slots=True)
class NwcService:
    """A running service: the connections that it gives out, which stay the same over a restart."""

    make: Make
    program: NodeProgram
    provider: str = field(repr=False)
    customer: str = field(repr=False)


@contextmanager
def nwc_service(
    folder: Path,
    make: Make,
    relay_url: str,
    *,
    lnbits: Lnbits | None = None,
    provider: Account | None = None,
    customer: Account | None = None,
) -> Iterator[NwcService]:
    """Run a service until the block ends; in front of an LNbits with wallets of its own, unless they are given."""
    orders: dict[str, Any] = {"relay": relay_url}
    for name, account in (("provider", provider), ("customer", customer)):
        orders[name] = {"wallet_secret": secrets.token_hex(32), "client_secret": secrets.token_hex(32)}
        if lnbits is not None:
            orders["base_url"] = lnbits.url
            made = account or lnbits.account(name, sats=PURSES_SATS[name])
            orders[name] |= {"admin_key": made.admin_key, "invoice_key": made.invoice_key}
    program = NodeProgram(folder, f"nwc_{make}", orders)
    try:
        answer = program.start()
        yield NwcService(make, program, provider=answer["provider"], customer=answer["customer"])
    finally:
        program.kill()
