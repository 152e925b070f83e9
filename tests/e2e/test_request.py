"""`pylon request` buys from the real daemon with the real wallet, from the command line, end to end."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
import tomlkit
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream

from pylon.jobs.ports import InvoiceRequest
from pylon.nostr.keys import encode_npub
from pylon.store.records import Money, Work
from tests.support.provider import MODEL, ROOT, Provider, market_settings, provider
from tests.support.relay import relay_process
from tests.support.wallet import WalletProcess

pytestmark = pytest.mark.e2e

LIMIT_S = 60.0
PURSE_MSATS = 100_000
CANCELLED = "cancelled/cancelling"  # until its invoice cannot be paid any more


class Customer:
    """A home without a daemon, whose settings name a relay and a wallet with money in it."""

    def __init__(self, folder: Path, relay_url: str, wallet: WalletProcess) -> None:
        home = folder / "customer"
        home.mkdir(mode=0o700)
        settings: Mapping[str, object] = {
            "relays": {"urls": [relay_url]},
            "wallet": {"kind": "fake", "url": wallet.url, "network": "regtest"},
        }
        (home / "pylon.toml").write_text(tomlkit.dumps(settings))
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYLON_")},
            "PYLON_HOME": str(home),
            "PYLON_WALLET_TOKEN": wallet.owner_token,
            "NO_COLOR": "1",
        }

    async def started(self, *arguments: str) -> Process:
        """Start `pylon request`, to be read while it runs."""
        command = [sys.executable, "-m", "pylon", "request", *arguments]
        return await anyio.open_process(command, stdin=subprocess.DEVNULL, env=self._environ, cwd=ROOT)

    async def request(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `pylon request`."""

        def run() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "pylon", "request", *arguments],
                capture_output=True, text=True, timeout=LIMIT_S, env=self._environ, cwd=ROOT, check=False,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip

        return await anyio.to_thread.run_sync(run)


@asynccontextmanager
async def market(folder: Path) -> AsyncIterator[tuple[Provider, Customer, WalletProcess]]:
    """Have a prepaid provider and a customer. Both use one wallet: the fake one pays only what it made itself."""
    with relay_process() as relay, WalletProcess(folder) as wallet:
        settings = market_settings(relay.url, paid_to=wallet)
        async with provider(folder, settings, wallet=wallet) as daemon:
            await fill(wallet)
            yield daemon, Customer(folder, relay.url, wallet), wallet


async def fill(wallet: WalletProcess) -> None:
    """Put money into the wallet, from which the customer then pays."""
    client = wallet.client()
    async with client.running():
        invoice = await client.create_invoice(InvoiceRequest("purse", PURSE_MSATS, 600))
    await wallet.payer().pay(invoice.bolt11)


async def test_a_job_is_bought_from_the_command_line(tmp_path: Path) -> None:
    async with market(tmp_path) as (daemon, customer, wallet):
        npub = encode_npub(daemon.pubkey)
        prompt = "Say this back to me."
        done = await customer.request(
            *(
                prompt,
                "--model",
                MODEL,
                "--param",
                "max_tokens=64",
                "--provider",
                npub,
                "--bid",
                "21",
                "--pay",
                "--json",
            )
        )
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        job = daemon.reports().detail(told["request_id"])
        assert job is not None
        assert (job.job.work, job.job.money) == (Work.DELIVERED, Money.SETTLED)
        assert (told["result"], told["provider"]) == (prompt, npub)
        assert told["amount_msats"] == job.job.price_msats
        assert 0 < told["amount_msats"] <= 21_000
        assert hashlib.sha256(bytes.fromhex(told["preimage"])).hexdigest() == told["payment_hash"]
        assert told["payment_hash"] == job.invoices[0].payment_hash
        # It all went through one wallet: what the customer paid is what the provider received.
        assert await wallet.books() == {
            "balance_msats": PURSE_MSATS,
            "received_msats": PURSE_MSATS + told["amount_msats"],
            "paid_msats": told["amount_msats"],
            "fees_msats": 0,
        }
        assert wallet.owner_token not in done.stdout + done.stderr


async def test_an_invoice_that_is_shown_is_paid_elsewhere_and_the_job_goes_on(tmp_path: Path) -> None:
    async with market(tmp_path) as (daemon, customer, wallet):
        async with await customer.started("Say this.", "--model", MODEL, "--bid", "21") as process:
            assert process.stderr is not None
            assert process.stdout is not None
            lines = TextReceiveStream(process.stderr)
            said = ""
            with anyio.fail_after(LIMIT_S):
                while not (found := re.search(r"^(lnbcrt\w+)\n", said, re.MULTILINE)):
                    said += await lines.receive()
                await wallet.payer().pay(found[1])
                assert await TextReceiveStream(process.stdout).receive() == "Say this.\n"
                assert await process.wait() == 0
        [job] = daemon.reports().jobs(work=None, money=None, limit=5, after=None)
        assert job.money is Money.SETTLED


async def test_ctrl_c_ends_the_job_at_its_provider(tmp_path: Path) -> None:
    async with market(tmp_path) as (daemon, customer, _):
        async with await customer.started("Say this.", "--model", MODEL) as process:
            assert process.stderr is not None
            lines = TextReceiveStream(process.stderr)
            said = ""
            with anyio.fail_after(LIMIT_S):
                while "lnbcrt" not in said:
                    said += await lines.receive()
                process.send_signal(signal.SIGINT)
                assert await process.wait() == 130
        await daemon.until(lambda status: set(status.jobs_by_state) == {CANCELLED}, "told of the cancellation")


async def test_a_bid_below_the_price_buys_nothing(tmp_path: Path) -> None:
    async with market(tmp_path) as (daemon, customer, wallet):
        asked = ("--model", MODEL, "--provider", daemon.pubkey)
        done = await customer.request("hello", *asked, "--bid", "1msat", "--pay")
        assert (done.returncode, done.stdout) == (1, "")
        assert "bid-too-low" in done.stderr.splitlines()[-1]
        assert (await wallet.books())["paid_msats"] == 0
