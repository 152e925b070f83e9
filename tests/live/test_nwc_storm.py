"""A hundred paid jobs over NWC while the wallet service stops and starts and the daemon dies: no msat is lost.

The service is @getalby/sdk's in front of a real LNbits, whose own books are the truth. Customers of every manner
pay by LNbits itself, whether the service is there or not. PYLON_STORM_SEED chooses the accidents.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import anyio
import anyio.to_thread
import httpx
import pytest

from pylon.control.views import BooksLine
from pylon.jobs.ports import WalletAmbiguous, WalletRefused
from pylon.nostr.bolt11 import read_invoice
from tests.support.aftermath import Job, add_published, check_job, database, is_quiet, jobs_of, sums
from tests.support.lnbits import Account, Lnbits
from tests.support.nwc_makes import Make, NwcService, nwc_service
from tests.support.openai_server import scripted_server
from tests.support.provider import MODEL, Provider, market_settings, provider
from tests.support.relay import relay_process
from tests.support.shop import shop
from tests.support.workload import EXPIRY_S, LATER, Workload, talking

pytestmark = [pytest.mark.e2e, pytest.mark.live]

SEED = int(os.environ.get("PYLON_STORM_SEED", "47"))
JOBS = 100
OUTSTANDING = 8
DAEMON_DEATHS = 5
SERVICE_DEATHS = 5
PURSE_SATS = 100_000
STORM_LIMIT_S = 240.0
QUIET_LIMIT_S = 120.0


class LnbitsPurse:
    """A wallet in LNbits that customers pay from; what it spent is in its books."""

    def __init__(self, lnbits: Lnbits, account: Account) -> None:
        self._lnbits = lnbits
        self._account = account

    def payer(self, *, timeout_s: float) -> LnbitsPurse:
        """Return itself; LNbits is on this machine."""
        return self

    async def pay(self, bolt11: str) -> str:
        """Pay an invoice. Raises `WalletRefused` with LNbits' words, `WalletAmbiguous`."""
        try:
            paid = await anyio.to_thread.run_sync(self._lnbits.pay, bolt11, self._account)
        except httpx.HTTPStatusError as error:
            raise WalletRefused(error.response.text) from error
        except httpx.TransportError as error:
            raise WalletAmbiguous(str(error)) from error
        return str(paid["payment_hash"])


# --- the storm ------------------------------------------------------------------------------------------------


async def service_goes_and_comes(
    service: NwcService, work: Workload, rng: random.Random, struck: Counter[str]
) -> None:
    """Kill the service and start it again until the workload is closed; it is up at the end."""
    while not work.closed:
        await anyio.sleep(rng.uniform(2, 5))
        service.program.kill()
        struck["service"] += 1
        await anyio.sleep(rng.choice((0.1, rng.uniform(0.5, 4))))
        await service.program.restart()


async def daemon_dies(daemon: Provider, rng: random.Random, struck: Counter[str]) -> None:
    """Kill the daemon and start it again, whether the wallet is there or not; it is up at the end."""
    for _ in range(DAEMON_DEATHS):
        await anyio.sleep(rng.uniform(3, 8))
        daemon.kill()
        struck["daemon"] += 1
        daemon.launch()
        await daemon.until(lambda _: True, "answering")


async def until_enough(daemon: Provider, work: Workload, struck: Counter[str]) -> None:
    """Wait until so many requests are jobs, and the service was away often enough; meanwhile some are refused."""
    with anyio.fail_after(STORM_LIMIT_S):
        while True:
            with database(daemon.paths.database) as db:
                (count,) = db.execute("SELECT count(*) FROM jobs").fetchone()
            if count >= JOBS // 4:
                work.manners = LATER
            if count >= JOBS and struck["service"] >= SERVICE_DEATHS:
                return
            await anyio.sleep(0.2)


def incoming(lnbits: Lnbits, account: Account) -> dict[str, int]:
    """Return what LNbits received for an account, msats by payment hash."""
    paid = [each for each in lnbits.payments(account) if each["amount"] > 0 and each["status"] == "success"]
    return {each["payment_hash"]: each["amount"] for each in paid}


async def settle(daemon: Provider, lnbits: Lnbits, account: Account, work: Workload) -> BooksLine:
    """Let the daemon finish what it has, start it once more to find what it missed, and return its own books."""
    await daemon.until(
        lambda status: is_quiet(status) and not work.waiting_for_expiry, "quiet", limit_s=QUIET_LIMIT_S
    )
    assert await daemon.stop() == 0
    await daemon.start()
    received = await anyio.to_thread.run_sync(incoming, lnbits, account)
    status = await daemon.until(
        lambda status: is_quiet(status) and status.books.received_msats == sum(received.values()), "in agreement"
    )
    assert await daemon.stop() == 0
    return status.books


# --- what must be true afterwards -----------------------------------------------------------------------------


def check_books(jobs: dict[str, Job], received: dict[str, int]) -> None:
    """Each payment that LNbits has is booked for one job, in its full amount, and nothing else is."""
    booked = [
        (payment_hash, msats) for job in jobs.values() for payment_hash, (msats, _) in job.settlements.items()
    ]
    assert len(booked) == len(dict(booked)), "a payment is booked for two jobs"
    assert dict(booked) == received


def check_invoices(job: Job) -> None:
    """LNbits loses no invoice while it runs: no job ever needed a second one."""
    assert len({read_invoice(bolt11).payment_hash for bolt11 in job.invoices}) <= 1, f"{job} has several invoices"


async def test_no_msat_is_lost_while_the_service_goes_and_comes(tmp_path: Path, lnbits: Lnbits) -> None:
    print(f"PYLON_STORM_SEED={SEED}")
    wild = True
    struck: Counter[str] = Counter()
    seller, buyer = lnbits.account("provider"), lnbits.account("customer", sats=PURSE_SATS)
    with (
        relay_process() as relay,
        relay_process() as line,
        nwc_service(tmp_path, Make.ALBY, line.url, lnbits=lnbits, provider=seller) as service,
    ):
        async with scripted_server() as server:
            server.models = (MODEL,)
            server.chats = [talking(random.Random(SEED + 1), lambda: wild)]
            settings = market_settings(
                relay.url,
                backend_url=server.url,
                slots=3,
                wallet={"kind": "nwc", "network": Make.ALBY.network, "timeout_s": 1},
                jobs={"queue_size": 1000},
                payment={
                    **{"mode": "prepay", "invoice_expiry_s": EXPIRY_S, "invoice_grace_s": 2},
                    **{"max_open_invoices_per_customer": 1000, "lookup_min_s": 0.2, "lookup_max_s": 1},
                },
            )
            async with (
                provider(tmp_path, settings, environ={"PYLON_WALLET_URI": service.provider}) as daemon,
                shop(relay.url, provider=daemon.pubkey) as customers,
                anyio.create_task_group() as tasks,
            ):
                purse = LnbitsPurse(lnbits, buyer)
                work = Workload(customers, purse, daemon.pubkey, random.Random(SEED + 2), tasks)
                async with anyio.create_task_group() as storm:
                    for _ in range(OUTSTANDING):
                        storm.start_soon(work.customer)
                    storm.start_soon(service_goes_and_comes, service, work, random.Random(SEED + 3), struck)
                    storm.start_soon(daemon_dies, daemon, random.Random(SEED + 4), struck)
                    await until_enough(daemon, work, struck)
                    work.closed = True
                wild = False
                books = await settle(daemon, lnbits, seller, work)
                tasks.cancel_scope.cancel()
            jobs = jobs_of(daemon.paths.database)
            await add_published(jobs, relay.url, daemon.pubkey)
    received = incoming(lnbits, seller)
    for job in jobs.values():
        check_job(job)
        check_invoices(job)
    check_books(jobs, received)
    assert (books.received_msats, books.earned_msats, books.owed_msats) == sums(jobs)
    assert books.received_msats == sum(received.values()) == lnbits.balance_msats(seller)
    assert PURSE_SATS * 1000 - lnbits.balance_msats(buyer) == books.received_msats
    assert daemon.log_lines("error") == []
    assert "Traceback" not in daemon.log()
    states = Counter(f"{job.work}/{job.money}" for job in jobs.values())
    print(f"jobs: {dict(states)}\naccidents: {dict(struck)}")
    assert states["delivered/settled"] >= JOBS // 4
    assert struck["service"] >= SERVICE_DEATHS
    assert struck["daemon"] == DAEMON_DEATHS
