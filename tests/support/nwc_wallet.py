"""The NWC wallet on real relays, with short waits."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pylon.nostr.nip47 import parse_wallet_uri
from pylon.relays.line import PoolLine
from pylon.relays.state import PoolConfig
from pylon.wallets.nwc import NwcWallet
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
