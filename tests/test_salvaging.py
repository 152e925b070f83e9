"""The first start on restored books, against real relays: what is asked, what is waited for, what is said."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from pylon.customer.visit import visiting
from pylon.jobs.catalogue import Catalogue
from pylon.jobs.ports import InvoiceRequest
from pylon.jobs.recorder import Recorder, RecorderConfig
from pylon.jobs.salvage import Terms
from pylon.nostr.event import Event
from pylon.nostr.nip90_replies import result_draft
from pylon.relays.state import PoolConfig
from pylon.salvaging import Salvage
from pylon.store.records import HELD_MARK, RESTORED_MARK, Job, Money, Settlement, Work
from pylon.store.tx import Tx
from pylon.store.writer import Store
from pylon.wallets.fake_server.node import Draft, Node
from tests.support.events import PROVIDER, job_request, signed
from tests.support.house import OFFER, until
from tests.support.relay import RelayProcess, relay_process
from tests.support.wallet import WalletProcess

NOWHERE = "ws://127.0.0.1:1"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    made = await Store.open(tmp_path / "db")
    await made.write(lambda tx: tx.set_mark(RESTORED_MARK, 1))
    yield made
    await made.aclose()


def config(*urls: str) -> PoolConfig:
    return PoolConfig(urls=urls, connect_timeout_s=1, backoff_min_s=0.05, backoff_max_s=0.1, messages_per_s=0)


def salvage(store: Store, said: list[str], *urls: str, taken_at: int) -> Salvage:
    return Salvage(
        store,
        Recorder(PROVIDER, RecorderConfig()),
        None,
        config(*urls),
        PROVIDER,
        Terms(Catalogue([OFFER])),
        time.time,
        random.Random(1),
        taken_at,
        said.append,
    )


async def publish(url: str, events: list[Event]) -> None:
    async with visiting(config(url), key=PROVIDER, clock=time.time, rng=random.Random(1)) as visit:
        await visit.publish(events, 30)


def delivered(count: int, now: int) -> list[Event]:
    """Results of as many free jobs, five a second."""
    requests = [job_request(f"number {number}", created_at=now) for number in range(count)]
    return [
        signed(result_draft(request, "done"), PROVIDER, now - number // 5)
        for number, request in enumerate(requests)
    ]


async def jobs_by_state(store: Store) -> dict[tuple[Work, Money], int]:
    return await store.write(lambda tx: tx.counts())


async def test_more_than_a_relay_tells_at_once(store: Store) -> None:
    now = int(time.time())
    with relay_process() as relay:  # which answers with 500 events at most
        await publish(relay.url, delivered(1_100, now))
        said: list[str] = []
        with anyio.fail_after(60):
            await salvage(store, said, relay.url, taken_at=now - 300).run()
    assert await jobs_by_state(store) == {(Work.DELIVERED, Money.NONE): 1_100}
    assert RESTORED_MARK not in await store.write(lambda tx: tx.marks())
    assert said[0] == "the relays are asked what was published since"


async def test_what_was_said_before_the_backup_is_not_asked_for(store: Store) -> None:
    now = int(time.time())
    with relay_process() as relay:
        await publish(relay.url, delivered(1, now - 5_000))
        with anyio.fail_after(30):
            await salvage(store, [], relay.url, taken_at=now).run()
    assert await jobs_by_state(store) == {}


async def test_one_relay_that_answers_is_enough(store: Store) -> None:
    now = int(time.time())
    with relay_process() as relay:
        await publish(relay.url, delivered(3, now))
        with anyio.fail_after(30):
            await salvage(store, [], NOWHERE, relay.url, taken_at=now).run()
    assert await jobs_by_state(store) == {(Work.DELIVERED, Money.NONE): 3}


async def test_without_a_relay_it_waits_and_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pylon.salvaging._RETRY_MAX_S", 0.1)
    now = int(time.time())
    relay, said = RelayProcess(), list[str]()
    relay.start()
    await publish(relay.url, delivered(2, now))
    url = relay.url
    relay.kill()
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(salvage(store, said, url, taken_at=now).run)
            await until(lambda: any(each.startswith("no relay answers") for each in said), 20)
            assert await jobs_by_state(store) == {}
            assert RESTORED_MARK in await store.write(lambda tx: tx.marks())
            relay.start()  # it keeps nothing over its end
            await publish(url, delivered(2, now))
    relay.kill()
    assert RESTORED_MARK not in await store.write(lambda tx: tx.marks())


@pytest.mark.parametrize("spent", [False, True])
async def test_due_refunds_are_held_where_the_wallet_paid_what_nobody_knows(
    store: Store, tmp_path: Path, spent: bool
) -> None:
    now = int(time.time())
    due = Job(
        "0a" * 32, "ab" * 32, 5050, "b", "m", 2_000, 64, now - 50, now, work=Work.EXPIRED, updated_at=now - 20
    )

    def store_due(tx: Tx) -> None:
        tx.insert_job(due.evolve(money=Money.REFUND_DUE), "{}")
        tx.book(Settlement("11" * 32, due.id, 2_000, 0, now - 40))

    await store.write(store_due)
    with relay_process() as relay:
        async with WalletProcess(tmp_path) as wallet, (client := wallet.client()).running():
            funds = await client.create_invoice(InvoiceRequest("of somebody else", 50_000, 600))
            await wallet.payer().pay(funds.bolt11)
            if spent:
                invoice = Node("11" * 32).sign(Draft("x", 2_000, 600, "somebody", None), now)
                await client.pay(invoice.bolt11, own_id="unknown", max_fee_msats=1_000)
            comparing = salvage(store, [], relay.url, taken_at=now)
            comparing.wallet = client
            with anyio.fail_after(30):
                await comparing.run()
    assert (await store.write(lambda tx: tx.books())).received_msats == 2_000  # what is not ours is not booked
    assert (HELD_MARK in await store.write(lambda tx: tx.marks())) is spent
