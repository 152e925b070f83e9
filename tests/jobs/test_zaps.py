"""The zap desk: receipts for our replies are verified in full and booked once; all else is dropped and counted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from pylon.jobs.ports import PayeeUnavailable
from pylon.jobs.zaps import MAX_WAITING, ZapDesk
from pylon.nostr.event import Draft, Event
from pylon.nostr.keys import SecretKey
from pylon.nostr.lnurl import description_hash
from pylon.nostr.nip57 import ZAP_RECEIPT_KIND, zap_request_draft
from pylon.store.records import Money, Work
from tests.support.events import CUSTOMER, PROVIDER, STRANGER
from tests.support.house import PRICE_MSATS, House, World, open_house, until
from tests.support.lnurl_node import make_invoice

HOST = SecretKey(b"\x21" * 32)


def receipt(
    event_id: str, amount_msats: int, now: int, *, payer: SecretKey = CUSTOMER, host: SecretKey = HOST
) -> Event:
    request = zap_request_draft(
        recipient=PROVIDER.public_hex, relays=("ws://127.0.0.1:1",), amount_msats=amount_msats, event_id=event_id
    ).sign(payer, now)
    text = request.to_json()
    invoice = make_invoice(amount_msats, description_hash=description_hash(text), created_at=now)
    tags = (
        ("p", PROVIDER.public_hex),
        ("e", event_id),
        ("P", payer.public_hex),
        ("bolt11", invoice.bolt11),
        ("description", text),
    )
    return Draft(ZAP_RECEIPT_KIND, "", tags).sign(host, now)


async def nobody() -> str | None:
    return None


@asynccontextmanager
async def desk_of(house: House, author: str | None = HOST.public_hex) -> AsyncIterator[ZapDesk]:
    async def ask() -> str | None:
        return author

    desk = ZapDesk(house.engine, PROVIDER.public_hex, "regtest", ask, house.world.clock)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(desk.run)
        yield desk
        tasks.cancel_scope.cancel()


async def invoiced_reply(house: House) -> tuple[Event, str]:
    """A job that waits for payment, and the id of the event that asked for it."""
    request = house.ask()
    await house.invoiced(request.id)
    (event,) = (each for each in house.world.relays.durable if each.tag_values("e") == [request.id])
    return request, event.id


async def test_a_zap_to_the_event_that_asked_pays_for_the_job_once(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house, desk_of(house) as desk:
        request, reply = await invoiced_reply(house)
        zap = receipt(reply, PRICE_MSATS, int(world.clock.now))
        assert desk.hear(zap) is None
        await house.reaches(request.id, Work.DELIVERED, Money.SETTLED)
        await until(lambda: desk.counters["taken"])
        assert desk.hear(zap) == "duplicate"
        (settlement,) = await house.settlements(request.id)
        assert settlement.zap and settlement.earned_msats == PRICE_MSATS
        assert house.engine.books.received_msats == PRICE_MSATS
        await house.check_books()


async def test_a_zap_to_the_result_is_a_tip(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house, desk_of(house) as desk:
        request, _ = await invoiced_reply(house)
        await house.pay(request.id)
        job = await house.reaches(request.id, Work.DELIVERED)
        assert job.result_id is not None
        assert desk.hear(receipt(job.result_id, 5_000, int(world.clock.now), payer=STRANGER)) is None
        await until(lambda: house.engine.books.earned_msats == PRICE_MSATS + 5_000)
        await house.check_books()


async def test_what_does_not_fit_is_dropped_and_counted(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    now = int(world.clock.now)
    async with open_house(world) as house, desk_of(house) as desk:
        _, reply = await invoiced_reply(house)
        await until(lambda: desk.hear(receipt(reply, 1_000, now, host=STRANGER)) == "zap-foreign-author")
        good = receipt(reply, PRICE_MSATS, now)
        assert desk.hear(Draft(1, "", good.tags).sign(HOST, now)) == "zap-not-ours"
        assert desk.hear(receipt("ab" * 32, PRICE_MSATS, now)) is None
        await until(lambda: desk.counters["other event"] == 1)
        other_words = tuple(("description", "{}") if tag[0] == "description" else tag for tag in good.tags)
        assert desk.hear(Draft(ZAP_RECEIPT_KIND, "", other_words).sign(HOST, now)) is None
        await until(lambda: desk.counters["no-request"] == 1)
        assert desk.hear(Draft(ZAP_RECEIPT_KIND, "", (*good.tags, ("e", "cd" * 32))).sign(HOST, now)) is None
        await until(lambda: desk.counters["no event"] == 1)
        assert house.engine.books.received_msats == 0


async def test_what_waits_is_bounded(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    now = int(world.clock.now)
    async with open_house(world) as house:
        desk = ZapDesk(house.engine, PROVIDER.public_hex, "regtest", nobody, world.clock)
        events = [
            Draft(ZAP_RECEIPT_KIND, str(n), (("p", PROVIDER.public_hex),)).sign(HOST, now) for n in range(300)
        ]
        told = [desk.hear(each) for each in events]
        assert told.count(None) == MAX_WAITING and set(told[MAX_WAITING:]) == {"zap-overflow"}


async def test_an_address_that_does_not_answer_yet_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path / "db")
    asked = []

    async def ask() -> str | None:
        asked.append(1)
        if len(asked) < 3:
            raise PayeeUnavailable("no answer")
        return HOST.public_hex

    monkeypatch.setattr("pylon.jobs.zaps._ASK_AGAIN_S", 0.001)
    async with open_house(world) as house:
        desk = ZapDesk(house.engine, PROVIDER.public_hex, "regtest", ask, world.clock)
        _, reply = await invoiced_reply(house)
        assert desk.hear(receipt(reply, PRICE_MSATS, int(world.clock.now))) is None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(desk.run)
            await until(lambda: desk.counters["taken"] == 1)
            tasks.cancel_scope.cancel()
