"""The owner's orders and rules end to end: the real daemon, relay, wallet, command line and model."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from websockets.asyncio.client import connect

from pylon.control.views import DaemonStatus
from pylon.nostr.event import parse_event
from pylon.nostr.nip89 import parse_announcement
from pylon.nostr.nip90 import FeedbackStatus
from pylon.store.records import Money, Work
from tests.support.gated_server import GatedServer
from tests.support.model import model_path
from tests.support.openai_server import scripted_server
from tests.support.provider import MODEL, Provider, is_ready, market_settings, provider
from tests.support.relay import relay_process
from tests.support.shop import Order, Shop, shop
from tests.support.wallet import WalletProcess

pytestmark = pytest.mark.e2e

LIMIT_S = 60.0
MB = 1_000_000


@asynccontextmanager
async def market(
    folder: Path, *, paid: bool = True, backend_url: str = "", **tables: Any
) -> AsyncIterator[tuple[Provider, Shop, WalletProcess, str]]:
    """Have a provider with one slot, a customer and a wallet on one relay."""
    wallet = WalletProcess(folder)
    with relay_process() as relay:
        try:
            wallet.start()
            settings = market_settings(
                relay.url, paid_to=wallet if paid else None, backend_url=backend_url, slots=1, **tables
            )
            async with (
                provider(folder, settings, wallet=wallet if paid else None) as daemon,
                shop(relay.url, provider=daemon.pubkey) as customer,
            ):
                yield daemon, customer, wallet, relay.url
        finally:
            wallet.kill()


async def ran(daemon: Provider, *arguments: str, code: int = 0) -> str:
    done = await daemon.pylon(*arguments)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), (done, daemon.log()[-2000:])
    return done.stdout + done.stderr


async def stance(daemon: Provider, word: str) -> DaemonStatus:
    return await daemon.until(lambda status: status.owner.stance == word, word, limit_s=LIMIT_S)


async def job_is(daemon: Provider, order: Order, work: Work, money: Money) -> None:
    state = None
    with anyio.move_on_after(LIMIT_S):
        while True:
            detail = await anyio.to_thread.run_sync(daemon.reports().detail, order.id)
            state = None if detail is None else (detail.job.work, detail.job.money)
            if state == (work, money):
                return
            await anyio.sleep(0.05)
    raise daemon.failure(f"has {order.id} in {state}, not in {work}/{money}")


async def announced_as_paused(url: str, paused: bool) -> None:
    """Wait until the announcement that a relay has says so."""
    found = None
    with anyio.move_on_after(LIMIT_S):
        while found is not paused:
            await anyio.sleep(0.1)
            async with connect(url, compression=None) as socket:
                await socket.send(json.dumps(["REQ", "q", {"kinds": [31990]}]))
                while (message := json.loads(await socket.recv()))[0] == "EVENT":
                    found = parse_announcement(parse_event(message[2])).paused
        return
    raise AssertionError(f"the announcement says paused={found}, not {paused}")


# --- pause and resume -----------------------------------------------------------------------------------------


async def test_paused_is_refused_with_a_reason_announced_and_over_when_resumed(tmp_path: Path) -> None:
    async with market(tmp_path, announce={"debounce_s": 1}) as (daemon, customer, wallet, relay):
        await announced_as_paused(relay, False)
        said = await ran(daemon, "pause", "--for", "2h", "--why", "playing a game")
        assert "paused until" in said
        refused = await customer.order(providers=[daemon.pubkey])
        assert await refused.error() == "paused"
        (told,) = [each.info for each in refused.feedback(FeedbackStatus.ERROR)]
        assert "the provider is paused, until 20" in told, "when it is worth asking again"
        assert "game" not in told, "the owner's reasons are the owner's"
        assert "1  paused" in await ran(daemon, "jobs", "refused")
        await announced_as_paused(relay, True)
        shown = await ran(daemon, "status", code=1)
        assert "state     paused" in shown
        assert ": playing a game" in shown
        # Again is no fault, and the time begins where it began.
        since = (await daemon.status()).owner.since
        assert "paused: no jobs are taken" in await ran(daemon, "pause")
        owner = (await daemon.status()).owner
        assert (owner.since, owner.until, owner.because.endswith("game")) == (since, None, False)

        assert "jobs are taken again" in await ran(daemon, "resume")
        assert "was not paused" in await ran(daemon, "resume")
        await announced_as_paused(relay, False)
        order = await customer.order()
        await wallet.payer().pay(await order.invoice())
        await order.result()
        assert "paused" in daemon.log() and not daemon.log_lines("error")


async def test_money_that_arrives_in_a_pause_is_booked_and_its_job_runs_after_it_even_over_kill_9(
    tmp_path: Path,
) -> None:
    async with market(tmp_path) as (daemon, customer, wallet, _):
        order = await customer.order()
        invoice = await order.invoice()
        await ran(daemon, "pause", "--why", "away")
        assert (await daemon.status()).owner.unpaid == 1
        await wallet.payer().pay(invoice)
        await job_is(daemon, order, Work.QUEUED, Money.SETTLED)
        daemon.kill()
        daemon.launch()
        status = await stance(daemon, "paused")
        assert status.owner.because.endswith(": away"), "it comes back paused, and knows why"
        await daemon.until(lambda each: each.owner.waiting_paid == 1, "holding the paid job")
        assert (await daemon.status()).books.in_work_msats > 0
        late = await customer.order(providers=[daemon.pubkey])
        assert await late.error() == "paused"
        assert not order.results
        await ran(daemon, "resume")
        await order.result()
        await job_is(daemon, order, Work.DELIVERED, Money.SETTLED)
        daemon.kill()
        await daemon.start()  # what was ended stays ended


async def test_now_puts_a_running_paid_job_back_and_it_is_delivered_after_the_pause(tmp_path: Path) -> None:
    async with scripted_server() as script:
        gate = GatedServer(script)
        async with market(tmp_path, backend_url=script.url) as (daemon, customer, wallet, _):
            order = await customer.order()
            await wallet.payer().pay(await order.invoice())
            await gate.until_waiting(1)
            said = await ran(daemon, "pause")
            assert "1 running" in said and "--now" in said
            assert (await daemon.status()).owner.freed_at is None, "a running job's memory is not taken away"
            said = await ran(daemon, "pause", "--now")
            await job_is(daemon, order, Work.QUEUED, Money.SETTLED)
            status = await daemon.until(lambda each: each.owner.freed_at is not None, "idle", limit_s=LIMIT_S)
            assert (status.owner.running, status.owner.waiting_paid) == (0, 1)
            gate.open.set()
            await ran(daemon, "resume")
            assert (await order.result()).content == "done"
            await job_is(daemon, order, Work.DELIVERED, Money.SETTLED)
            detail = daemon.reports().detail(order.id)
            assert detail is not None
            assert "put_back -> queued/settled" in [line.entry for line in detail.journal]
            assert [each.outcome for each in detail.attempts] == ["put back: the owner wants the machine", "output"]


# --- drain ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exits", [False, True])
async def test_a_drain_delivers_what_runs_and_what_waits_then_pauses_or_ends(tmp_path: Path, exits: bool) -> None:
    async with scripted_server() as script:
        gate = GatedServer(script)
        async with market(tmp_path, backend_url=script.url) as (daemon, customer, wallet, _):
            orders = [await customer.order() for _ in range(2)]
            for order in orders:
                await wallet.payer().pay(await order.invoice())
            await gate.until_waiting(1)
            await job_is(daemon, orders[1], Work.QUEUED, Money.SETTLED)
            said: list[str] = []
            async with anyio.create_task_group() as tasks:

                async def drain() -> None:
                    said.append(await ran(daemon, "drain", *(["--exit"] if exits else [])))

                tasks.start_soon(drain)
                status = await stance(daemon, "draining")
                assert (status.state, status.owner.running, status.owner.waiting_paid) == ("draining", 1, 1)
                refused = await customer.order(providers=[daemon.pubkey])
                assert await refused.error() == "paused"
                gate.open.set()
                for order in orders:
                    await order.result()
                if exits:
                    assert await daemon.ended() == 0
            assert "jobs: 1 running, 1 waiting (1 paid)" in said[0]
            if exits:
                assert said[0].endswith("drained, and pylon has stopped\n")
                assert (await daemon.start()).owner.stance == "open", "a drain that ended is over"
            else:
                assert "drained: nothing is left, and pylon is paused" in said[0]
                status = await daemon.until(lambda each: each.owner.freed_at is not None, "idle")
                assert status.owner.stance == "paused"
                await ran(daemon, "resume")
            for order in orders:
                await job_is(daemon, order, Work.DELIVERED, Money.SETTLED)
            again = await customer.order()
            await wallet.payer().pay(await again.invoice())
            await again.result()


async def test_a_drain_outlives_its_command_and_kill_9(tmp_path: Path) -> None:
    async with scripted_server() as script:
        gate = GatedServer(script)
        async with market(tmp_path, paid=False, backend_url=script.url) as (daemon, customer, _, _):
            order = await customer.order()
            await gate.until_waiting(1)
            async with await anyio.open_process(daemon.command("drain"), env=daemon.environ) as process:
                assert process.stdout
                said = (await process.stdout.receive()).decode()
                assert said.startswith("jobs: 1 running"), said
                process.send_signal(signal.SIGINT)
                said = b"".join([piece async for piece in process.stdout]).decode()
                assert await process.wait() == 130
            assert "the drain goes on: pylon status shows it" in said, said
            assert (await stance(daemon, "draining")).owner.running == 1
            daemon.kill()
            gate.open.set()
            daemon.launch()
            await order.result()
            await stance(daemon, "paused")


async def test_without_a_daemon_each_says_so_in_one_line(tmp_path: Path) -> None:
    async with provider(tmp_path, market_settings("ws://127.0.0.1:1"), started=False) as daemon:
        for command, done in (("pause", "paused"), ("resume", "resumed"), ("drain", "drained")):
            said = await ran(daemon, command, code=3)
            assert said == f"pylon: pylon is not running, and only a running daemon can be {done}: pylon start\n"


# --- memory -----------------------------------------------------------------------------------------------------


def resident_bytes(pid: int) -> int:
    """What a process and all that it started take, as the kernel says."""
    total = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            status = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines() if ":" in line)
        except OSError:
            continue
        if int(entry.name) == pid or int(status["PPid"]) == pid:
            total += int(status.get("VmRSS", "0 kB").split()[0]) * 1024
    return total


async def test_a_pause_gives_a_real_models_memory_back(tmp_path: Path) -> None:
    with relay_process() as relay:
        settings = market_settings(relay.url)
        settings["backends"] = [
            {"name": "b", "kind": "embedded", "gguf": str(model_path()), "context_tokens": 512, "threads": 1}
        ]
        settings["models"] = [{"name": MODEL, "backend": "b", "max_output_tokens": 16}]
        async with provider(tmp_path, settings) as daemon, shop(relay.url, provider=daemon.pubkey) as customer:
            await (await customer.order("Name a colour.")).result(60)
            before = await daemon.until(lambda each: bool(each.backends[0].memory_bytes), "told its memory")
            told, took = before.backends[0].memory_bytes or 0, resident_bytes(daemon.pid)
            assert told > 50 * MB, "the model alone is larger"
            await ran(daemon, "pause")
            status = await daemon.until(lambda each: each.owner.freed_at is not None, "idle")
            left = resident_bytes(daemon.pid)
            assert status.backends[0].memory_bytes == 0
            assert status.owner.freed_bytes == pytest.approx(told, rel=0.1), "as of its last check"
            assert took - left > 0.9 * told, (took, left, told)
            shown = await ran(daemon, "status", code=1)
            assert f"{status.owner.freed_bytes / 1e6:.1f} MB of memory given back" in shown
            # A pause that the daemon did not live through loads nothing.
            daemon.kill()
            daemon.launch()
            await stance(daemon, "paused")
            status = await daemon.until(lambda each: each.owner.freed_at is not None, "idle")
            assert status.backends[0].memory_bytes == 0
            await ran(daemon, "resume")
            await daemon.until(is_ready, "ready")
            await (await customer.order("Name another colour.")).result(60)
            again = await daemon.until(lambda each: bool(each.backends[0].memory_bytes), "told its memory")
            assert (again.backends[0].memory_bytes or 0) > 50 * MB


# --- rules ------------------------------------------------------------------------------------------------------


async def test_outside_its_hours_it_pauses_by_itself_until_it_is_told_to_work_anyway(tmp_path: Path) -> None:
    opens = datetime.now(UTC) + timedelta(hours=12)
    window = f"{opens:%H:00}-{opens:%H:30}"
    owner = {"hours": [window], "time_zone": "UTC"}
    with relay_process() as relay:
        settings = market_settings(relay.url, owner=owner)
        async with (
            provider(tmp_path, settings, started=False) as daemon,
            shop(relay.url, provider=daemon.pubkey) as customer,
        ):
            daemon.launch()
            status = await stance(daemon, "paused")
            assert (status.owner.by, status.owner.rules[0].rule) == ("rules", "hours")
            assert status.owner.until == int(opens.replace(minute=0, second=0, microsecond=0).timestamp())
            assert "outside the hours of [owner] (again at " in await ran(daemon, "status", code=1)
            await daemon.until(lambda each: all(relay.status == "connected" for relay in each.relays), "connected")
            refused = await customer.order(providers=[daemon.pubkey])
            assert await refused.error() == "paused"
            said = await ran(daemon, "resume")
            assert "a rule holds: paused: outside the hours of [owner]" in said and "--ignore-rules" in said
            assert "jobs are taken, whatever the rules" in await ran(
                daemon, "resume", "--ignore-rules", "--for", "2h"
            )
            await (await customer.order()).result()
            daemon.kill()
            status = await daemon.start()
            assert status.owner.rules_waived, "over a crash too"
            assert status.owner.rules[0].pauses
            # An order outranks the rules, and takes the waiver away.
            await ran(daemon, "pause")
            assert (await daemon.status()).owner.by == "order"
            await ran(daemon, "resume")
            assert (await daemon.status()).owner.by == "rules"


async def test_a_rule_that_cannot_be_told_pauses_and_says_why(tmp_path: Path) -> None:
    with relay_process() as relay:
        settings = market_settings(relay.url, owner={"gpu_memory_floor_mb": 1})
        async with provider(tmp_path, settings, started=False) as daemon:
            daemon.launch()
            if not Path("/dev/nvidiactl").exists():
                status = await stance(daemon, "paused")
                (rule,) = status.owner.rules
                assert (rule.allows, rule.pauses) == (None, True)
                assert "it cannot be told how much GPU memory is free" in status.owner.because
                assert "gpu_memory_floor_mb  not known" in await ran(daemon, "status", code=1)
                await daemon.stop()
            settings["owner"] = {"gpu_memory_floor_mb": 1, "when_unknown": "run"}
            daemon.configure(settings)
            await daemon.start()
