"""Kill -9 at random moments of a paid workload, with a wallet that lies: no msat is lost and none is booked twice.

Real processes: the daemon, the fake wallet with its faults on, a local relay; the model's server is scripted, so
that a job takes some tens of milliseconds and streams. Customers order, pay, pay late, pay twice, never pay and
cancel while the daemon is killed and started again; then the faults end, the daemon finishes what it has, and the
relay, the wallet's books and the database must tell one story.

PYLON_KILL_SEED chooses the sequence of accidents, PYLON_KILLS their number.
"""

from __future__ import annotations

import os
import random
import sqlite3
from collections import Counter
from contextlib import suppress
from pathlib import Path

import anyio
import httpx
import pytest

from pylon.control.views import BooksLine
from pylon.jobs.ports import PaymentState, WalletError
from pylon.nostr.bolt11 import read_invoice
from tests.support.aftermath import (
    Job,
    add_published,
    check_job,
    database,
    every_request_taken,
    is_quiet,
    jobs_of,
    sums,
)
from tests.support.openai_server import scripted_server
from tests.support.provider import MODEL, Provider, market_settings, provider
from tests.support.relay import relay_process
from tests.support.shop import shop
from tests.support.wallet import WalletProcess, listed_by
from tests.support.workload import EXPIRY_S, LATER, Workload, talking

SEED = int(os.environ.get("PYLON_KILL_SEED", "2090"))
KILLS = int(os.environ.get("PYLON_KILLS", "50"))
OUTSTANDING = 8
START_S = 1.4  # about what a start takes: kills while it starts fall into it
QUIET_LIMIT_S = 90.0

FAULTS = {
    **{"delay": 0.15, "delay_s": 0.3, "restart": 0.003, "restart_s": 0.3, "lost": 0.05, "error_before": 0.03},
    **{"hang": 0.01, "hang_s": 2.0, "ambiguous": 0.1, "error_after": 0.04, "stale": 0.15, "forget": 0.01},
    **{"notice_loss": 0.25, "notice_duplicate": 0.2, "notice_delay": 0.3, "notice_delay_s": 0.7},
    **{"notice_replay": 0.5, "fail_on_restart": 0.1, "pay_expired": 0.8, "pay_twice": 0.5},
}

pytestmark = pytest.mark.e2e


# --- the accidents --------------------------------------------------------------------------------------------


async def accidents(daemon: Provider, wallet: WalletProcess, work: Workload, rng: random.Random) -> Counter[str]:
    """Start the daemon and kill it, again and again; the wallet too, now and then. Returns what its faults did."""
    struck: Counter[str] = Counter()
    wallet_dies = set(rng.sample(range(KILLS), k=min(KILLS, max(1, KILLS // 12))))
    async with anyio.create_task_group() as tasks:
        for number in range(KILLS):
            if number == KILLS // 4:
                work.manners, work.deck = LATER, []
            daemon.launch()
            if number in wallet_dies:
                tasks.start_soon(restart, wallet, struck)
            if rng.random() < 0.3:
                await anyio.sleep(rng.uniform(0, START_S))
            else:
                await daemon.until(lambda _: True, "answering")
                await anyio.sleep(0.1 * 15 ** rng.random())  # 0.1 to 1.5 s, the short ones more often
            daemon.kill()
    return struck


async def restart(wallet: WalletProcess, struck: Counter[str]) -> None:
    """Kill the wallet and start it again; what its faults did so far is added to `struck`."""
    with suppress(httpx.TransportError):  # it may be playing dead already
        struck.update((await wallet.report())["struck"])
    await wallet.restart()


async def same_settlements(daemon: Provider, wallet: WalletProcess) -> None:
    """Wait until the daemon has booked every invoice that is settled in the wallet."""
    settled, booked = {"unknown"}, set[str]()
    with anyio.move_on_after(20):
        async with (client := wallet.client()).running():
            while settled != booked:
                await anyio.sleep(0.1)
                with suppress(WalletError):  # it may still be coming back
                    invoices = await listed_by(client, 0)
                    settled = {each.payment_hash for each in invoices if each.state is PaymentState.SETTLED}
                with database(daemon.paths.database) as db:
                    booked = {row["payment_hash"] for row in db.execute("SELECT payment_hash FROM settlements")}
        return
    raise daemon.failure(f"has not booked {settled - booked}, or booked {booked - settled}")


async def settle(daemon: Provider, wallet: WalletProcess, work: Workload) -> BooksLine:
    """Let the daemon finish what it has, stop it, and return its own books."""
    await daemon.start()
    await every_request_taken(daemon, work)
    await daemon.until(
        lambda status: is_quiet(status) and not work.waiting_for_expiry, "quiet", limit_s=QUIET_LIMIT_S
    )
    await wallet.drop_everything()  # no notice tells of what was lost before: it must look for itself
    await same_settlements(daemon, wallet)
    status = await daemon.until(is_quiet, "quiet again")
    assert await daemon.stop() == 0
    return status.books


# --- what must be true afterwards -----------------------------------------------------------------------------


def check_invoices(job: Job, wallet_db: sqlite3.Connection) -> None:
    """No customer ever held two invoices of one job that could be paid."""
    published = sorted(map(read_invoice, job.invoices), key=lambda invoice: invoice.created_at)
    for payment_hash in [invoice.payment_hash for invoice in published[:-1]]:
        (state,) = wallet_db.execute(
            "SELECT state FROM invoices WHERE payment_hash = ?", (payment_hash,)
        ).fetchone()
        assert state in ("failed", "forgotten"), f"{job}: another invoice was published while one was {state}"


def check_books(jobs: dict[str, Job], wallet_db: sqlite3.Connection, wallet_received_msats: int) -> None:
    """The provider's books are the wallet's, to the msat."""
    entries: dict[str, list[int]] = {}
    for payment_hash, amount in wallet_db.execute("SELECT payment_hash, amount_msats FROM entries ORDER BY number"):
        entries.setdefault(payment_hash, []).append(amount)
    assert sum(map(sum, entries.values())) == wallet_received_msats
    booked = {payment_hash: money for job in jobs.values() for payment_hash, money in job.settlements.items()}
    assert sum(len(job.settlements) for job in jobs.values()) == len(booked), "a payment is booked for two jobs"
    assert booked.keys() == entries.keys()
    twice_msats = 0
    for payment_hash, (received, _) in booked.items():
        paid = entries[payment_hash]
        # A wallet that takes money twice for one hash says so only to who asks again: the first sum is booked.
        assert received in {sum(paid[: count + 1]) for count in range(len(paid))}, f"{payment_hash}: {paid}"
        twice_msats += sum(paid) - received
    received_msats = sum(job.received_msats for job in jobs.values())
    assert received_msats + twice_msats == wallet_received_msats


def check_coverage(jobs: dict[str, Job], daemon: Provider, struck: Counter[str]) -> None:
    """The accidents did happen: a test that killed nobody at work would show nothing."""
    states = Counter(f"{job.work}/{job.money}" for job in jobs.values())
    with database(daemon.paths.database) as db:
        outcomes = Counter(row[0] for row in db.execute("SELECT outcome FROM attempts"))
    print(f"jobs: {dict(states)}\nattempts: {dict(outcomes)}\nfaults of the wallet: {dict(struck)}")
    if KILLS < 20:
        return
    for state in ("cancelled/refund_due", "expired/void"):
        assert states[state], f"no job ended {state}: {states}"
    assert outcomes["the provider stopped while the job was running"] >= KILLS // 10
    assert states["delivered/settled"] >= KILLS
    assert struck.keys() >= {"lost", "ambiguous", "error_after", "notice_loss", "notice_duplicate", "stale"}


async def test_no_kill_loses_a_sat(tmp_path: Path) -> None:
    print(f"PYLON_KILL_SEED={SEED} PYLON_KILLS={KILLS}")
    wild = True
    async with WalletProcess(tmp_path, faults=FAULTS, seed=SEED) as wallet, scripted_server() as server:
        server.models = (MODEL,)
        server.chats = [talking(random.Random(SEED + 1), lambda: wild)]
        with relay_process() as relay:
            settings = market_settings(
                relay.url,
                paid_to=wallet,
                backend_url=server.url,
                slots=3,
                wallet={"timeout_s": 1},
                jobs={"queue_size": 1000},
                payment={
                    **{"invoice_expiry_s": EXPIRY_S, "invoice_grace_s": 2, "max_open_invoices_per_customer": 1000},
                    **{"lookup_min_s": 0.2, "lookup_max_s": 1},
                },
            )
            async with (
                provider(tmp_path, settings, wallet=wallet, started=False) as daemon,
                shop(relay.url, provider=daemon.pubkey) as customers,
                anyio.create_task_group() as tasks,
            ):
                work = Workload(customers, wallet, daemon.pubkey, random.Random(SEED + 2), tasks)
                async with anyio.create_task_group() as ordering:
                    for _ in range(OUTSTANDING):
                        ordering.start_soon(work.customer)
                    struck = await accidents(daemon, wallet, work, random.Random(SEED))
                    work.closed = True
                wild = False
                await wallet.set_faults()
                struck.update((await wallet.report())["struck"])
                books = await settle(daemon, wallet, work)
                tasks.cancel_scope.cancel()
            jobs = jobs_of(daemon.paths.database)
            await add_published(jobs, relay.url, daemon.pubkey)
        received_msats = (await wallet.books())["received_msats"]
        wallet.kill()  # it holds its database for itself
        with database(wallet.db) as wallet_db:
            for job in jobs.values():
                check_job(job)
                check_invoices(job, wallet_db)
            check_books(jobs, wallet_db, received_msats)
    assert (books.received_msats, books.earned_msats, books.owed_msats) == sums(jobs)
    assert daemon.log_lines("error") == []
    assert "Traceback" not in daemon.log()
    check_coverage(jobs, daemon, struck)
