"""Paid jobs at a steady rate while relays attack and relays and wallet die and come back: what is lost, what grows?

The daemon (prepaid to the fake wallet, echo backend, everything durable) has two good relays and three that attack
one after another, each in a process of its own. Customers order at a steady rate whatever becomes of it, pay, and
wait for the result; floods of worthless requests come from one key. A good relay and the wallet are killed and
started again in turn. Printed as it goes: jobs and the daemon's memory; at the end: the slope of that memory after
the warm-up, and whether customers, database and wallet tell one story to the msat. The exit code is 1 if they do
not. Traffic stays on loopback and ends with the time given.

usage: python -m benchmarks.soak [--minutes 30] [--rate 50] [--warm-up 0.33] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter, deque
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from pylon.jobs.ports import WalletError, WalletRefused
from pylon.nostr.keys import SecretKey
from pylon.store.records import Money, Work
from tests.support.aftermath import is_quiet, jobs_of, sums
from tests.support.hostile_relay import HostileRelay, hostile_process
from tests.support.provider import Provider, market_settings, provider
from tests.support.relay import RelayProcess, relay_process
from tests.support.shop import Shop, shop
from tests.support.wallet import WalletProcess

ATTACKS: Final = ("invalid-signatures", "duplicates", "wrong-subscriptions")
SAMPLE_S: Final = 2.0
SHOWN_EVERY: Final = 15  # samples
ACCIDENT_EVERY_S: Final = 20.0
DEAD_S: Final = 2.0
FLOOD_EVERY_S: Final = 30.0
FLOOD: Final = 1_000
ANSWER_LIMIT_S: Final = 60.0
QUIET_LIMIT_S: Final = 180.0


@dataclass
class Soak:
    """What happened so far."""

    paid: set[str] = field(default_factory=set)
    ends: Counter[str] = field(default_factory=Counter)
    times_s: deque[float] = field(default_factory=lambda: deque(maxlen=20_000))
    memory: list[tuple[float, float]] = field(default_factory=list)  # seconds, MB
    accidents: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Report:
    """What is printed at the end, and written with --json."""

    minutes: float
    ordered: int
    paid: int
    delivered: int
    refund_due: int
    lost: int
    p50_ms: float
    p99_ms: float
    warm_mb: float
    end_mb: float
    slope_mb_per_hour: float
    accidents: dict[str, int]
    ends: dict[str, int]
    wrong: list[str]


def slope_per_hour(samples: list[tuple[float, float]]) -> float:
    """Return the least-squares slope of (seconds, MB), in MB an hour; 0 for fewer than two samples."""
    if len(samples) < 2:
        return 0.0
    mean_s = sum(at_s for at_s, _ in samples) / len(samples)
    mean_mb = sum(mb for _, mb in samples) / len(samples)
    spread = sum((at_s - mean_s) ** 2 for at_s, _ in samples)
    return 3600 * sum((at_s - mean_s) * (mb - mean_mb) for at_s, mb in samples) / spread


async def order_one(soak: Soak, customer: Shop, wallet: WalletProcess, daemon: Provider) -> None:
    """Order, pay and wait; what a customer cannot know is looked up in the end."""
    draft = customer.draft(providers=[daemon.pubkey], params=[("max_tokens", ["16"])])
    order = customer.follow(draft.sign(SecretKey.generate(), int(time.time())))
    started_at = time.perf_counter()
    end = "not published"
    try:
        await customer.publish(order.request)
        end = "not answered"
        await order.until(lambda order: order.invoices or order.errors, "answer", ANSWER_LIMIT_S)
        if not order.invoices:
            end = order.errors[0]
            return
        end = "not paid"
        if not await pay(order.invoices[0], wallet):
            return
        soak.paid.add(order.id)
        end = "no result"
        await order.until(lambda order: order.results or order.errors, "result", ANSWER_LIMIT_S)
        end = "delivered" if order.results else order.errors[0]
        soak.times_s.append(time.perf_counter() - started_at)
    except AssertionError:
        pass  # it was too long; `end` says what was awaited
    finally:
        soak.ends[end] += 1
        customer.forget(order)


async def pay(bolt11: str, wallet: WalletProcess) -> bool:
    """Pay an invoice, whatever becomes of the wallet meanwhile."""
    payer = wallet.payer(timeout_s=2)
    while True:
        try:
            await payer.pay(bolt11)
        except WalletRefused as refused:
            return "already paid" in str(refused)
        except WalletError:
            await anyio.sleep(0.2)
        else:
            return True


async def sell(
    soak: Soak, customer: Shop, wallet: WalletProcess, daemon: Provider, until: float, rate: int
) -> None:
    """Order at a steady rate, however long each takes."""
    async with anyio.create_task_group() as tasks:
        due = time.monotonic()
        while due < until:
            tasks.start_soon(order_one, soak, customer, wallet, daemon)
            due += 1 / rate
            await anyio.sleep(max(0.0, due - time.monotonic()))


async def flood(soak: Soak, customer: Shop, daemon: Provider) -> None:
    """Send a thousand requests from one key, again and again."""
    while True:
        await anyio.sleep(FLOOD_EVERY_S)
        key = SecretKey.generate()
        for _ in range(FLOOD):
            event = customer.draft(providers=[daemon.pubkey]).sign(key, int(time.time()))
            order = customer.follow(event)
            try:
                await customer.publish(event)
            except AssertionError:
                break  # both relays are busy or away
            finally:
                customer.forget(order)
        soak.accidents["flood of requests"] += 1


async def accidents(
    soak: Soak, relays: list[RelayProcess], wallet: WalletProcess, hostile: list[HostileRelay], end: float
) -> None:
    """Kill the relays and the wallet in turn; let the hostile relays begin one after another."""
    attack_every_s = (end - time.monotonic()) / (len(hostile) + 1)
    attack_at = [time.monotonic() + attack_every_s * (number + 1) for number in range(len(hostile))]
    rng = random.Random(7)
    attacking: HostileRelay | None = None
    while True:
        await anyio.sleep(ACCIDENT_EVERY_S)
        if attack_at and time.monotonic() >= attack_at[0]:
            attack_at.pop(0)
            if attacking is not None:
                attacking.kill()
            attacking = hostile.pop(0)
            attacking.attack()
            soak.accidents["relay that attacks"] += 1
        what = rng.choice(("first relay", "second relay", "wallet"))
        soak.accidents[f"{what} killed"] += 1
        if what == "wallet":
            wallet.kill()
            await anyio.sleep(DEAD_S)
            await wallet.restart()
        else:
            relay = relays[what == "second relay"]
            relay.kill()
            await anyio.sleep(DEAD_S)
            relay.start()


async def watch(soak: Soak, daemon: Provider) -> None:
    """Note the daemon's memory, and show how it goes."""
    started_at = time.monotonic()
    while True:
        for _ in range(SHOWN_EVERY):
            await anyio.sleep(SAMPLE_S)
            soak.memory.append((time.monotonic() - started_at, daemon.rss_mb))
        ends = ", ".join(f"{count} {end}" for end, count in soak.ends.most_common())
        print(f"{soak.memory[-1][0]:6.0f} s  {soak.memory[-1][1]:6.1f} MB  {ends}", flush=True)


def compare(
    soak: Soak, daemon: Provider, books: tuple[int, int, int], wallet_msats: int, minutes: float, warm_s: float
) -> Report:
    """Compare what customers, database and wallet say. `warm_s` is when the memory should be steady."""
    late = [(at_s, mb) for at_s, mb in soak.memory if at_s >= warm_s]
    jobs = jobs_of(daemon.paths.database)
    wrong = []
    delivered = {each.id for each in jobs.values() if each.work == Work.DELIVERED and each.settlements}
    owed = {each.id for each in jobs.values() if each.money == Money.REFUND_DUE}
    settled = {each.id for each in jobs.values() if each.settlements}
    if lost := soak.paid - delivered - owed:
        wrong.append(f"{len(lost)} paid jobs were neither delivered nor are owed: {sorted(lost)[:3]}")
    if unknown := settled - soak.paid:
        wrong.append(f"{len(unknown)} jobs are booked as paid and nobody paid them")
    if books != sums(jobs):
        wrong.append(f"the books say {books}, the jobs {sums(jobs)} (received, earned, owed)")
    if books[0] != wallet_msats:
        wrong.append(f"the books received {books[0]} msats and the wallet {wallet_msats}")
    times_ms = sorted(1000 * each for each in soak.times_s) or [0.0]
    return Report(
        minutes=minutes,
        ordered=soak.ends.total(),
        paid=len(soak.paid),
        delivered=len(delivered),
        refund_due=len(owed),
        lost=len(lost),
        p50_ms=times_ms[len(times_ms) // 2],
        p99_ms=times_ms[int(len(times_ms) * 0.99)],
        warm_mb=late[0][1] if late else 0.0,
        end_mb=soak.memory[-1][1] if soak.memory else 0.0,
        slope_mb_per_hour=slope_per_hour(late),
        accidents=dict(soak.accidents),
        ends=dict(soak.ends),
        wrong=wrong,
    )


async def soak_for(minutes: float, rate: int, warm_up: float, folder: Path) -> Report:
    """Run it all; see the module's docstring."""
    soak, key = Soak(), SecretKey.generate()
    with ExitStack() as held:
        relays = [held.enter_context(relay_process()) for _ in range(2)]
        hostile = [held.enter_context(hostile_process(attack, key.public_hex)) for attack in ATTACKS]
        wallet = held.enter_context(WalletProcess(folder))
        settings = market_settings(
            *(each.url for each in relays),
            *(each.url for each in hostile),
            paid_to=wallet,
            slots=16,
            jobs={"queue_size": 5_000, "retain_plaintext_s": 60},
            payment={
                **{"max_open_invoices": 5_000, "lookup_min_s": 1, "lookup_max_s": 5},
                **{"invoice_expiry_s": 60, "invoice_grace_s": 10},  # those of the floods are waited for in the end
            },
            intake={"requests_per_customer_per_minute": 60},
        )
        async with (
            provider(folder, settings, key=key, wallet=wallet) as daemon,
            shop(*(each.url for each in relays), provider=daemon.pubkey) as customer,
        ):
            end = time.monotonic() + 60 * minutes
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watch, soak, daemon)
                async with anyio.create_task_group() as trouble:
                    trouble.start_soon(flood, soak, customer, daemon)
                    trouble.start_soon(accidents, soak, relays, wallet, list(hostile), end)
                    await sell(soak, customer, wallet, daemon, end, rate)
                    trouble.cancel_scope.cancel()
                tasks.cancel_scope.cancel()
            for relay in relays:
                relay.kill()
                relay.start()
            wallet.kill()
            await wallet.restart()
            settled = (await wallet.books())["received_msats"]
            status = await daemon.until(
                lambda now: is_quiet(now) and now.books.received_msats == settled, "quiet", limit_s=QUIET_LIMIT_S
            )
            books = (status.books.received_msats, status.books.earned_msats, status.books.owed_msats)
            warm_s = warm_up * 60 * minutes
            return await anyio.to_thread.run_sync(compare, soak, daemon, books, settled, minutes, warm_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="at most 240")
    parser.add_argument("--rate", type=int, default=50, help="jobs a second, at most 200")
    parser.add_argument("--warm-up", type=float, default=0.33, help="the part of the time that memory may grow in")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    minutes, rate = min(options.minutes, 240.0), min(options.rate, 200)
    with tempfile.TemporaryDirectory(prefix="pylon-soak-") as folder:
        report = anyio.run(soak_for, minutes, rate, options.warm_up, Path(folder))
    for name, value in asdict(report).items():
        print(f"{name:18} {value:.1f}" if isinstance(value, float) else f"{name:18} {value}")
    if options.json:
        options.json.write_text(json.dumps(asdict(report), indent=2))
    sys.exit(1 if report.wrong else 0)


if __name__ == "__main__":
    main()
