"""What a running daemon says of itself: every line of `pylon status`, and jobs as the database alone shows them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from pylon.control.views import Ambiguous, BooksLine, DaemonState, EarningsBy, JobsQuery, NotFound, ViewError
from pylon.jobs import facts
from pylon.jobs.ports import BackendHealth
from pylon.jobs.refund_case import RefunderConfig
from pylon.jobs.refunder import Refunder
from pylon.live_views import LiveViews, Parts
from pylon.nostr.keys import encode_npub
from pylon.offline import OfflineViews
from pylon.relays.pool import RelayPool
from pylon.relays.state import PoolConfig
from pylon.store.records import Money, Work
from tests.support.events import PROVIDER
from tests.support.house import OFFER, PRICE_MSATS, House, World, open_house, until
from tests.support.running_pool import Heard


class Pool(RelayPool):
    """A pool that never dials; the test says whether a relay is connected."""

    connected = True

    @property
    def any_connected(self) -> bool:
        return self.connected


class Control:
    """A daemon's views over a house, and the stop that they may ask for."""

    def __init__(self, house: House) -> None:
        world = house.world
        config = PoolConfig(urls=("ws://127.0.0.1:9", "ws://127.0.0.1:10"))
        self.pool = Pool(config, key=world.key, sink=Heard(), clock=world.clock, rng=random.Random(1))
        self.stop = anyio.Event()
        parts = Parts(
            house.store,
            house.engine,
            house.runner,
            house.intake,
            self.pool,
            world.backends,
            world.wallet if house.cashier is not None else None,
            world.mode,
            world.key.public_hex,
        )
        self.views = LiveViews(parts, world.clock, stop=self.stop.set, stopping=self.stop.is_set)


def manual(path: Path) -> World:
    world = World(path / "db")
    world.backend.answer = None
    return world


async def test_a_provider_at_rest(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        control = Control(house)
        world.clock.advance(75)
        status = control.views.status()
        assert (status.state, status.state_reasons) == (DaemonState.READY, ())
        assert (status.npub, status.pubkey) == (encode_npub(PROVIDER.public_hex), PROVIDER.public_hex)
        assert status.uptime_s == 75
        assert status.payment_mode == "prepay"
        assert [line.url for line in status.relays] == ["ws://127.0.0.1:9", "ws://127.0.0.1:10"]
        assert {line.status for line in status.relays} == {"stopped"}
        (backend,) = status.backends
        assert (backend.name, backend.health, backend.models) == ("local", "ready", ("served-model",))
        assert (backend.slots, backend.busy) == (1, 0)
        (model,) = status.models
        assert (model.name, model.backend, model.aliases, model.available) == ("small", "local", ("tiny",), True)
        assert (model.base_msats, model.per_1k_input_msats, model.per_1k_output_msats) == (1_500, 0, 1_000)
        assert status.wallet is not None
        assert (status.wallet.ready, status.wallet.network) == (True, "regtest")
        (queue,) = status.queue
        assert (queue.queued, queue.running, queue.reserved, queue.slots) == (0, 0, 0, 1)
        assert (status.jobs_by_state, status.refused, status.books) == ({}, {}, BooksLine())
        assert (status.intake.accepted, status.intake.paused) == (0, "")
        assert status.store.healthy
        assert status.store.database_bytes >= world.path.stat().st_size > 0


async def test_a_provider_at_work(tmp_path: Path) -> None:
    world = manual(tmp_path)
    world.relays.confirms = lambda event: False
    async with open_house(world) as house:
        control = Control(house)
        running, queued, unpaid = house.ask("runs"), house.ask("waits"), house.ask("unpaid")
        await house.pay(running.id)
        await house.reaches(running.id, Work.RUNNING)
        await house.pay(queued.id)
        await house.reaches(queued.id, Work.QUEUED)
        await house.invoiced(unpaid.id)
        house.ask("refused", params=[("model", ["gpt-5"])])
        status = control.views.status()
        (queue,) = status.queue
        assert (queue.backend, queue.model) == ("local", "small")
        assert (queue.queued, queue.running, queue.reserved) == (1, 1, 1)
        assert status.backends[0].busy == 1
        assert status.jobs_by_state == {
            "running/settled": 1,
            "queued/settled": 1,
            "awaiting_payment/invoiced": 1,
        }
        assert status.books == BooksLine(2 * PRICE_MSATS, 0, 2 * PRICE_MSATS, 2 * PRICE_MSATS, 0)
        assert status.refused == {"unsupported-model": 1}
        assert status.intake.accepted == 3
        assert status.outbox_pending == 3  # three requests for payment that no relay confirmed
        world.relays.give_up(world.relays.durable[0].id)
        await until(lambda: control.views.status().dead_letters == 1)
        assert control.views.status().outbox_pending == 2


async def test_a_provider_without_a_wallet_has_no_line_for_it(tmp_path: Path) -> None:
    async with open_house(World(tmp_path / "db", mode=facts.Mode.FREE)) as house:
        status = Control(house).views.status()
        assert status.wallet is None
        assert status.payment_mode == "free"
        assert status.state is DaemonState.READY


@pytest.mark.parametrize(
    ("health", "state"),
    [
        (BackendHealth.DOWN, DaemonState.DEGRADED),
        (BackendHealth.LOADING, DaemonState.STARTING),
        (BackendHealth.UNKNOWN, DaemonState.STARTING),
    ],
)
async def test_a_backend_that_is_not_ready_is_a_reason(
    tmp_path: Path, health: BackendHealth, state: DaemonState
) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        control = Control(house)
        world.backend.health = health
        status = control.views.status()
        assert status.state is state
        assert status.state_reasons == (f"backend local: {health.value}",)
        assert not status.models[0].available


async def test_a_model_that_its_backend_does_not_list_is_not_available(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        world.backend.models = ("another",)
        assert not Control(house).views.status().models[0].available


async def test_each_part_that_fails_is_a_reason(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        control = Control(house)
        control.pool.connected = False
        world.wallet.ready = False
        house.intake.stopped = "maintenance"
        status = control.views.status()
        assert status.state is DaemonState.DEGRADED
        assert status.state_reasons == (
            "no relay is connected",
            "wallet: away",
            "no jobs are taken: maintenance",
        )
        assert status.intake.paused == "maintenance"


async def test_a_disk_that_cannot_be_written_is_a_reason(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        control = Control(house)
        world.disk.broken = True
        house.ask()
        await until(lambda: control.views.status().state is DaemonState.DEGRADED)
        status = control.views.status()
        assert status.state_reasons == ("no jobs are taken: the database cannot be written",)
        assert status.intake.paused == "the database cannot be written"
        world.disk.broken = False
        await until(lambda: control.views.status().state is DaemonState.READY)


async def test_a_stop_is_passed_on_and_seen(tmp_path: Path) -> None:
    async with open_house(World(tmp_path / "db")) as house:
        control = Control(house)
        control.views.request_stop()
        assert control.stop.is_set()
        assert control.views.status().state is DaemonState.STOPPING


async def test_what_is_said_live_is_what_the_database_says(tmp_path: Path) -> None:
    world = manual(tmp_path)
    world.offers = (OFFER, replace(OFFER, name="large", aliases=()))
    async with open_house(world) as house:
        control = Control(house)
        done = house.ask("done")
        await house.pay(done.id)
        run = await house.run()
        run.say("text")
        run.finish()
        await house.reaches(done.id, Work.DELIVERED)
        unpaid = house.ask("unpaid", params=[("model", ["large"])])
        await house.invoiced(unpaid.id)
        offline = OfflineViews(world.path)
        for query in (JobsQuery(), JobsQuery(limit=1), JobsQuery(work="delivered"), JobsQuery(after=unpaid.id)):
            assert list(await control.views.jobs(query)) == list(offline.jobs(query))
        for job_id in (done.id, unpaid.id[:10]):
            assert await control.views.job(job_id) == offline.job(job_id)
            shown = await control.views.job(job_id, show_input=True)
            assert shown == offline.job(job_id, show_input=True)
            assert shown.request_json is not None
        for by in EarningsBy:
            assert await control.views.earnings(None, by) == offline.earnings(None, by)
        assert (await control.views.earnings(None, "total")).total == control.views.status().books
        counted: dict[str, int] = {}
        for job in offline.jobs(JobsQuery()):
            counted[f"{job.work}/{job.money}"] = counted.get(f"{job.work}/{job.money}", 0) + 1
        assert control.views.status().jobs_by_state == counted


async def test_the_operator_cancels_by_the_beginning_of_an_id(tmp_path: Path) -> None:
    world = manual(tmp_path)
    async with open_house(world) as house:
        control = Control(house)
        request = house.ask()
        await house.pay(request.id)
        await house.run()
        view = await control.views.cancel_job(request.id[:12])
        assert (view.id, view.work, view.money) == (request.id, "cancelled", "refund_due")
        assert view.reason == "cancelled by the provider"
        await until(lambda: world.backend.runs[0].closed)
        await house.reaches(request.id, Work.CANCELLED, Money.REFUND_DUE)
        assert control.views.status().books.refund_due_msats == PRICE_MSATS


async def test_what_has_ended_cannot_be_cancelled(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        control = Control(house)
        request = house.ask()
        await house.pay(request.id)
        await house.reaches(request.id, Work.DELIVERED)
        with pytest.raises(ViewError, match="delivered"):
            await control.views.cancel_job(request.id)
        with pytest.raises(NotFound):
            await control.views.cancel_job("00" * 32)
        with pytest.raises(NotFound):
            await control.views.job("00" * 32)
        assert (await house.job(request.id)).work is Work.DELIVERED


async def test_an_id_of_two_jobs_cancels_neither(tmp_path: Path) -> None:
    world = manual(tmp_path)
    async with open_house(world) as house:
        control = Control(house)
        first = house.ask("first")
        await house.reaches(first.id, Work.AWAITING_PAYMENT)
        job = await house.job(first.id)
        twin = replace(job, id=first.id[:20] + "f" * 44)
        await house.read(lambda tx: tx.insert_job(twin, "{}"))
        with pytest.raises(Ambiguous):
            await control.views.cancel_job(first.id[:20])
        assert (await house.job(first.id)).work is Work.AWAITING_PAYMENT


async def test_a_daemon_without_announcer_says_so(tmp_path: Path) -> None:
    async with open_house(World(tmp_path / "db")) as house:
        views = Control(house).views
        with pytest.raises(ViewError, match="announces nothing"):
            views.announcement()
        with pytest.raises(ViewError, match="announces nothing"):
            await views.publish_announcement()
        with pytest.raises(ViewError, match="announces nothing"):
            await views.withdraw_announcement()


async def test_refunds_are_listed_ordered_and_written_off(tmp_path: Path) -> None:
    world = manual(tmp_path)
    async with open_house(world) as house:
        control = Control(house)
        # The house's wallet only receives, and says so.
        refunder = Refunder(
            house.engine,
            world.wallet,
            None,
            None,
            world.key.public_hex,
            RefunderConfig(network="regtest"),
            world.clock,
            random.Random(1),
        )
        house.engine.plug_in(house.runner, house.cashier, world.relays, None, refunder)
        request = house.ask()
        await house.pay(request.id)
        await house.reaches(request.id, Work.RUNNING)
        with pytest.raises(ViewError, match="gives nothing back"):
            await control.views.pay_refund(request.id)
        control.views._parts.refunder = refunder
        with pytest.raises(ViewError, match="the job's money is settled"):
            await control.views.write_off(request.id, "no")
        with pytest.raises(NotFound):
            await control.views.write_off("ffffff", "no")
        await control.views.cancel_job(request.id)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(refunder.run)
            await until(lambda: "for you to order" in refunder.waits(request.id))
            (due,) = await control.views.refunds()
            assert (due.job, due.due_msats, due.waits) == (request.id, PRICE_MSATS, refunder.waits(request.id))
            with pytest.raises(ViewError, match="cannot pay"):
                await control.views.pay_refund(request.id)
            done = await control.views.write_off(request.id[:8], "paid in person")
            assert (done.money, done.due_msats, done.payments[0].reason) == ("written_off", 0, "paid in person")
            tasks.cancel_scope.cancel()
        assert await control.views.refunds() == []
        assert [each.money for each in await control.views.refunds(ended=True)] == ["written_off"]
        books = control.views.status().books
        assert (books.written_off_msats, books.owed_msats) == (PRICE_MSATS, 0)
        await house.check_books()
