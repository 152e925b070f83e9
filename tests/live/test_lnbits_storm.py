"""Kill -9 at random moments of a paid workload on a real LNbits that is restarted twice: no msat is lost.

Customers order, pay from another LNbits wallet, pay late, pay twice and cancel while the daemon is killed and
started again. LNbits fails unpaid invoices at its restart, pushes every payment twice and takes money for expired
invoices. Then the daemon finishes what it has, and LNbits' balance, the relay and the database must tell one story.

PYLON_STORM_SEED chooses the sequence of accidents, PYLON_STORM_JOBS how many jobs are ordered.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest

from pylon.jobs.ports import WalletRefused, WalletUnavailable
from pylon.store.records import Money, Work
from tests.support.aftermath import add_published, check_job, every_request_taken, is_quiet, jobs_of, sums
from tests.support.lnbits import NETWORK, Lnbits
from tests.support.openai_server import scripted_server
from tests.support.provider import MODEL, Provider, market_settings, provider
from tests.support.relay import relay_process
from tests.support.shop import shop
from tests.support.workload import EXPIRY_S, Manner, Workload, talking

SEED = int(os.environ.get("PYLON_STORM_SEED", "520"))
JOBS = int(os.environ.get("PYLON_STORM_JOBS", "500"))
OUTSTANDING = 24
QUIET_LIMIT_S = 120.0
MANNERS = (*[Manner.PAYS] * 12, *[Manner.CANCELS] * 2, Manner.DAWDLES, Manner.CANCELS_UNPAID, Manner.PAYS_TWICE)

pytestmark = [pytest.mark.e2e, pytest.mark.live]


@dataclass
class Purse:
    """The customer's wallet in LNbits, as the workload pays with it."""

    lnbits: Lnbits

    def payer(self, *, timeout_s: float) -> Purse:
        return self

    async def pay(self, bolt11: str) -> str:
        try:
            paid = await anyio.to_thread.run_sync(self.lnbits.pay, bolt11, abandon_on_cancel=True)
        except httpx.HTTPStatusError as error:
            raise WalletRefused(error.response.text) from error
        except httpx.TransportError as error:
            raise WalletUnavailable("LNbits is restarting") from error
        return str(paid.get("preimage"))


async def accidents(daemon: Provider, lnbits: Lnbits, work: Workload, rng: random.Random) -> int:
    """Kill the daemon again and again until all jobs are ordered, and restart LNbits twice; return the kills."""
    kills = 0
    restarts = [JOBS // 4, JOBS * 2 // 3]
    while len(work.orders) < JOBS:
        daemon.launch()
        if rng.random() < 0.2:
            await anyio.sleep(rng.uniform(0, 1.4))  # while it starts
        else:
            await daemon.until(lambda _: True, "answering")
            await anyio.sleep(rng.uniform(0.3, 2.5))
        if restarts and len(work.orders) >= restarts[0]:
            restarts.pop(0)
            await lnbits.restart()
        daemon.kill()
        kills += 1
    assert not restarts
    return kills


def settings_for(relay_url: str, lnbits: Lnbits, backend_url: str) -> Mapping[str, Any]:
    return market_settings(
        relay_url,
        backend_url=backend_url,
        slots=8,
        wallet={
            "kind": "lnbits",
            "url": lnbits.url,
            "network": NETWORK,
            "timeout_s": 10,
        },
        jobs={"queue_size": 1000},
        payment={
            **{"mode": "prepay", "invoice_expiry_s": EXPIRY_S, "invoice_grace_s": 5},
            **{"max_open_invoices_per_customer": 1000, "max_open_invoices": 1000},
            **{"lookup_min_s": 0.5, "lookup_max_s": 4},
        },
    )


async def test_no_kill_and_no_restart_of_lnbits_loses_a_sat(tmp_path: Path, fresh_lnbits: Lnbits) -> None:
    print(f"PYLON_STORM_SEED={SEED} PYLON_STORM_JOBS={JOBS}")
    lnbits = fresh_lnbits
    before_msats = lnbits.balance_msats(lnbits.provider)
    wild = True
    async with scripted_server() as server:
        server.models = (MODEL,)
        server.chats = [talking(random.Random(SEED + 1), lambda: wild)]
        with relay_process() as relay:
            async with (
                provider(
                    tmp_path,
                    settings_for(relay.url, lnbits, server.url),
                    environ={"PYLON_WALLET_TOKEN": lnbits.provider.invoice_key},
                    started=False,
                ) as daemon,
                shop(relay.url, provider=daemon.pubkey) as customers,
                anyio.create_task_group() as tasks,
            ):
                work = Workload(customers, Purse(lnbits), daemon.pubkey, random.Random(SEED + 2), tasks, MANNERS)
                async with anyio.create_task_group() as ordering:
                    for _ in range(OUTSTANDING):
                        ordering.start_soon(work.customer)
                    kills = await accidents(daemon, lnbits, work, random.Random(SEED))
                    work.closed = True
                wild = False
                await daemon.start()
                await every_request_taken(daemon, work)
                await daemon.until(is_quiet, "quiet", limit_s=QUIET_LIMIT_S)
                status = await daemon.until(lambda status: books_are(status, lnbits, before_msats), "in balance")
                assert await daemon.stop() == 0
                tasks.cancel_scope.cancel()
            jobs = jobs_of(daemon.paths.database)
            await add_published(jobs, relay.url, daemon.pubkey)
    for job in jobs.values():
        check_job(job)
    books = status.books
    assert (books.received_msats, books.earned_msats, books.owed_msats) == sums(jobs)
    assert lnbits.balance_msats(lnbits.provider) - before_msats == books.received_msats
    assert len(work.orders) >= JOBS
    states = Counter(f"{job.work}/{job.money}" for job in jobs.values())
    print(f"{kills} kills; jobs: {dict(states)}")
    assert states[f"{Work.DELIVERED}/{Money.SETTLED}"] >= JOBS // 2
    assert daemon.log_lines("error") == []
    assert "Traceback" not in daemon.log()


def books_are(status: Any, lnbits: Lnbits, before_msats: int) -> bool:
    """Tell whether all that LNbits holds is booked: the last look-ups may still be on their way."""
    return bool(status.books.received_msats == lnbits.balance_msats(lnbits.provider) - before_msats)
