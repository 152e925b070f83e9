"""Customers made of `nostr-tools` and of NDK, which most clients are built on.

They buy a job from the daemon, pay its invoice through LNbits and check the result, over a relay of ours and over
`nostr-rs-relay`.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from pylon.nostr.bolt11 import read_invoice
from pylon.nostr.event import parse_event, verify
from tests.support.lnbits import NETWORK, Account, Lnbits
from tests.support.node_programs import NodeProgram
from tests.support.nostr_rs_relay import nostr_rs_relay
from tests.support.provider import Provider, market_settings, provider
from tests.support.relay import relay_process

pytestmark = [pytest.mark.e2e, pytest.mark.live]

PURSE_SATS = 1_000
BID_MSATS = 50_000


@pytest.fixture(params=["local", "nostr-rs-relay"])
def relay_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with relay_process() if request.param == "local" else nostr_rs_relay(tmp_path) as relay:
        yield relay.url


@asynccontextmanager
async def seller(folder: Path, relay_url: str, lnbits: Lnbits, account: Account) -> AsyncIterator[Provider]:
    """Run a provider that is paid into a wallet of LNbits."""
    wallet = {"kind": "lnbits", "url": lnbits.url, "network": NETWORK, "timeout_s": 5}
    environ = {"PYLON_WALLET_TOKEN": account.invoice_key}
    settings = market_settings(relay_url, wallet=wallet, payment={"mode": "prepay", "lookup_max_s": 2})
    async with provider(folder, settings, environ=environ) as daemon:
        yield daemon


async def buy(
    folder: Path, make: str, relay_url: str, lnbits: Lnbits, purse: Account, **more: Any
) -> dict[str, Any]:
    """Let a customer of a make buy, and return what it tells when it has a result or an error."""
    wallet = {"base_url": lnbits.url, "admin_key": purse.admin_key, "invoice_key": purse.invoice_key}
    orders = {"relay": relay_url, "secret": secrets.token_hex(32), "bid_msats": BID_MSATS, "purse": wallet, **more}
    program = NodeProgram(folder, f"buy_{make}", orders)
    try:
        return await anyio.to_thread.run_sync(program.start)
    finally:
        program.kill()


@pytest.mark.parametrize("make", ["nostr_tools", "ndk"])
async def test_it_buys_a_job_and_pays_for_it(tmp_path: Path, lnbits: Lnbits, relay_url: str, make: str) -> None:
    account, purse = lnbits.account(), lnbits.account(sats=PURSE_SATS)
    async with seller(tmp_path, relay_url, lnbits, account) as daemon:
        prompt = "Sag's zurück: „ü“ 🙂"
        told = await buy(tmp_path, make, relay_url, lnbits, purse, provider=daemon.pubkey, prompt=prompt)
        assert (told.get("error"), told["statuses"][0]) == (None, "payment-required")
        invoice = read_invoice(told["bolt11"])
        assert told["amount"] == str(invoice.amount_msats)
        assert hashlib.sha256(bytes.fromhex(told["preimage"])).hexdigest() == invoice.payment_hash
        assert (told["valid"], told["names"], told["copied"]) == (True, True, True)
        result = parse_event(told["result"])
        assert verify(result)
        assert (result.pubkey, result.kind, result.content) == (daemon.pubkey, 6050, prompt)

        done = {"delivered/settled": 1}
        books = (await daemon.until(lambda status: status.jobs_by_state == done, "done with the job")).books
        paid_msats = PURSE_SATS * 1000 - lnbits.balance_msats(purse)
        assert 0 < paid_msats == books.earned_msats == lnbits.balance_msats(account) == invoice.amount_msats


async def test_what_ndk_encrypts_is_refused_in_words_that_it_reads(tmp_path: Path, lnbits: Lnbits) -> None:
    purse = lnbits.account(sats=PURSE_SATS)
    with relay_process() as relay:
        async with seller(tmp_path, relay.url, lnbits, lnbits.account()) as daemon:
            hidden = {"provider": daemon.pubkey, "prompt": "secret", "encrypted": True}
            told = await buy(tmp_path, "ndk", relay.url, lnbits, purse, **hidden)
    assert told["error"] == "unsupported-encryption: encrypted requests are not taken: send plain tags"
    assert (told["statuses"], lnbits.balance_msats(purse)) == (["error"], PURSE_SATS * 1000)
