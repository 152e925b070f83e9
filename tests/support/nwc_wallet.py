"""The NWC wallet on real relays, with short waits."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pylon.jobs.ports import InvoiceRequest
from pylon.nostr.nip47 import parse_wallet_uri
from pylon.relays.line import PoolLine
from pylon.relays.state import PoolConfig
from pylon.wallets.nwc import NwcWallet
from tests.support.nwc_service import Manner, NwcService, nwc_service
from tests.support.relay import RelayProcess
from tests.support.running_pool import QUICK


def make_wallet(uri: str, *, timeout_s: float = 5.0) -> NwcWallet:
    """Return the wallet of a connection, not running."""
    given = parse_wallet_uri(uri)
    config = PoolConfig(urls=given.relays, overlap_s=600, **QUICK)
    line = PoolLine(config, key=given.key, clock=time.time, rng=random.Random(4))
    return NwcWallet(given, line, time.time, timeout_s=timeout_s)


@asynccontextmanager
async def nwc_wallet(uri: str, *, timeout_s: float = 5.0) -> AsyncIterator[NwcWallet]:
    """Run the wallet of a connection until the block ends."""
    wallet = make_wallet(uri, timeout_s=timeout_s)
    async with wallet.running():
        yield wallet


@asynccontextmanager
async def wallet_with(
    relay: RelayProcess, manner: Manner | None = None, *, timeout_s: float = 5.0
) -> AsyncIterator[tuple[NwcWallet, NwcService]]:
    """Run a service of this manner on the relay, and a wallet on its connection."""
    async with (
        nwc_service(relay.url, manner=manner) as service,
        nwc_wallet(service.uri, timeout_s=timeout_s) as wallet,
    ):
        yield wallet, service


def order(own_id: str = "job-1", amount_msats: int = 21_000, **more: Any) -> InvoiceRequest:
    """Return what the cashier would ask for."""
    more.setdefault("description", f"NIP-90 job ({own_id})")
    return InvoiceRequest(own_id, amount_msats, 600, **more)
