"""Views of the database alone: the same words as a running daemon's, about jobs and about money."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pylon.control.views import Ambiguous, BadQuery, BooksLine, EarningsBy, JobsQuery, JobView, NotFound
from pylon.jobs import facts
from pylon.jobs.ports import BackendUnavailable
from pylon.jobs.pricing import Price
from pylon.nostr.event import Event
from pylon.nostr.keys import encode_npub
from pylon.offline import OfflineViews, books_line, job_view, offline_views
from pylon.store.errors import StoreUnavailable
from pylon.store.records import Books, Job, Money, Refund, Settlement, Work
from pylon.store.writer import Store
from tests.support.events import CUSTOMER, NOW
from tests.support.house import OFFER, PRICE_MSATS, House, World, open_house

DAY_S = 86_400


def world(path: Path) -> World:
    made = World(path / "db")
    large = replace(OFFER, name="large", aliases=(), price=Price(base_msats=5_000))
    made.offers = (OFFER, large)
    return made


async def sell(house: House, prompt: str, *, model: str = "small", amount_msats: int | None = None) -> Event:
    request = house.ask(prompt, params=[("model", [model])])
    await house.pay(request.id, amount_msats)
    await house.reaches(request.id, Work.DELIVERED)
    return request


def job(number: int, **changes: object) -> Job:
    """A job under an id of one's choice."""
    made = Job(
        id=f"{number:064x}",
        customer=CUSTOMER.public_hex,
        kind=5050,
        backend="local",
        model="small",
        price_msats=2_000,
        max_tokens=64,
        accepted_at=NOW + number,
        deadline_at=NOW + 3_600,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@asynccontextmanager
async def stored(path: Path, *jobs: Job) -> AsyncIterator[OfflineViews]:
    store = await Store.open(path / "db")
    try:
        for each in jobs:
            await store.write(lambda tx, each=each: tx.insert_job(each, "{}"))  # type: ignore[misc]
        yield offline_views(path / "db")
    finally:
        await store.aclose()


# --- jobs -----------------------------------------------------------------------------------------------------


async def test_a_job_is_shown_with_everything_that_happened_to_it(tmp_path: Path) -> None:
    place = world(tmp_path)
    async with open_house(place) as house:
        request = await sell(house, "Tell me a joke.")
        views = OfflineViews(place.path)
        detail = views.job(request.id[:8])
        assert detail.job == job_view(await house.job(request.id))
        assert detail.job.customer == encode_npub(CUSTOMER.public_hex)
        assert (detail.job.work, detail.job.money) == ("delivered", "settled")
        assert [line.text for line in detail.journal] == [
            "accepted -> awaiting_payment/none",
            "invoice_made -> awaiting_payment/invoiced",
            "paid -> queued/settled",
            "started -> running/settled",
            "partial_sent -> running/settled",
            "output -> produced/settled",
            "confirmed -> delivered/settled",
        ]
        (invoice,) = detail.invoices
        assert (invoice.number, invoice.state, invoice.amount_msats) == (1, "paid", PRICE_MSATS)
        assert invoice.payment_hash == place.wallet.made[0].payment_hash
        assert [(each.number, each.outcome) for each in detail.attempts] == [(1, "output")]


async def test_what_a_customer_wrote_is_shown_only_on_demand(tmp_path: Path) -> None:
    place = world(tmp_path)
    async with open_house(place) as house:
        request = await sell(house, "a private matter")
        views = OfflineViews(place.path)
        assert "private" not in repr(views.job(request.id))
        shown = views.job(request.id, show_input=True).request_json
        assert shown is not None
        assert json.loads(shown)["id"] == request.id


async def test_failures_are_told_with_their_reason(tmp_path: Path) -> None:
    place = world(tmp_path)
    place.backend.answer = lambda run: run.fail(BackendUnavailable("gone"))
    async with open_house(place) as house:
        request = house.ask()
        await house.pay(request.id)
        await house.reaches(request.id, Work.FAILED)
        detail = OfflineViews(place.path).job(request.id)
        assert (detail.job.work, detail.job.money, detail.job.attempts) == ("failed", "refund_due", 3)
        assert detail.job.reason
        assert all(each.outcome and each.ended_at is not None for each in detail.attempts)


async def test_jobs_are_listed_newest_first_and_page_by_page(tmp_path: Path) -> None:
    # Some were accepted in the same second: pages must neither repeat nor skip one.
    jobs = [job(number, accepted_at=NOW + number // 3) for number in range(10)]
    async with stored(tmp_path, *jobs) as views:
        whole = [each.id for each in views.jobs(JobsQuery())]
        assert len(whole) == 10
        assert [each.accepted_at for each in views.jobs(JobsQuery())] == sorted(
            (each.accepted_at for each in jobs), reverse=True
        )
        pages: list[JobView] = []
        while page := views.jobs(JobsQuery(limit=3, after=pages[-1].id if pages else None)):
            assert len(page) <= 3
            pages += page
        assert [each.id for each in pages] == whole


async def test_a_page_may_start_after_the_beginning_of_an_id(tmp_path: Path) -> None:
    jobs = [job(number, id=f"{number:02x}" + "0" * 62) for number in range(4)]
    async with stored(tmp_path, *jobs) as views:
        after = views.jobs(JobsQuery(after=jobs[2].id[:8]))
        assert [each.id for each in after] == [jobs[1].id, jobs[0].id]
        with pytest.raises(NotFound):
            views.jobs(JobsQuery(after="ff" * 32))


async def test_jobs_are_filtered_by_work_and_money(tmp_path: Path) -> None:
    jobs = (
        job(1, work=Work.DELIVERED, money=Money.SETTLED),
        job(2, work=Work.DELIVERED, money=Money.NONE),
        job(3, work=Work.FAILED, money=Money.REFUND_DUE),
    )
    async with stored(tmp_path, *jobs) as views:

        def found(**query: str) -> list[int]:
            return [int(each.id, 16) for each in views.jobs(JobsQuery(**query))]  # type: ignore[arg-type]

        assert found(work="delivered") == [2, 1]
        assert found(money="refund_due") == [3]
        assert found(work="delivered", money="settled") == [1]
        assert found(work="queued") == []
        for query in ({"work": "lazy"}, {"money": "gone"}):
            with pytest.raises(BadQuery, match="no such state"):
                found(**query)


async def test_a_job_is_found_by_the_beginning_of_its_id_if_that_is_one(tmp_path: Path) -> None:
    twins = [job(number, id="abcdef" + f"{number:058x}") for number in (1, 2)]
    async with stored(tmp_path, *twins, job(3, id="ff" * 32), job(4, id="0" * 64)) as views:
        assert views.find("ffff") == "ff" * 32
        assert views.find("0" * 64) == "0" * 64
        assert views.find(twins[0].id) == twins[0].id
        with pytest.raises(Ambiguous, match="abcdef"):
            views.find("abcdef")
        with pytest.raises(Ambiguous):
            views.job("abcdef00")
        with pytest.raises(NotFound, match="abcdee"):
            views.find("abcdee")
        with pytest.raises(NotFound):
            views.job("1234")


# --- money ----------------------------------------------------------------------------------------------------


async def test_earnings_by_day_and_by_model_add_up_to_the_books(tmp_path: Path) -> None:
    place = world(tmp_path)
    async with open_house(place) as house:
        await sell(house, "first")
        await sell(house, "second", amount_msats=PRICE_MSATS + 300)
        place.clock.advance(DAY_S)
        await sell(house, "third", model="large")
        await house.check_books()
        books = books_line(house.engine.books)
        views = OfflineViews(place.path)
        total = views.earnings(None, EarningsBy.TOTAL)
        assert (total.payments, total.total, total.rows) == (3, books, ())
        days = views.earnings(None, EarningsBy.DAY)
        models = views.earnings(None, "model")
        assert (days.total, models.total) == (books, books)
        assert [(row.label, row.payments, row.books.earned_msats) for row in days.rows] == [
            ("2027-01-15", 2, 2 * PRICE_MSATS),
            ("2027-01-16", 1, 5_000),
        ]
        assert [(row.label, row.books) for row in models.rows] == [
            ("large", BooksLine(received_msats=5_000, earned_msats=5_000)),
            ("small", BooksLine(2 * PRICE_MSATS + 300, 2 * PRICE_MSATS, 300, deposits_msats=300)),
        ]


async def test_earnings_by_customer_and_by_kind(tmp_path: Path) -> None:
    place = world(tmp_path)
    async with open_house(place) as house:
        await sell(house, "first")
        await sell(house, "second")
        views = OfflineViews(place.path)
        both = BooksLine(received_msats=2 * PRICE_MSATS, earned_msats=2 * PRICE_MSATS)
        for by, label in ((EarningsBy.CUSTOMER, encode_npub(CUSTOMER.public_hex)), (EarningsBy.KIND, "5050")):
            (row,) = views.earnings(None, by).rows
            assert (row.label, row.payments, row.books) == (label, 2, both)


async def test_earnings_before_a_time_and_by_local_days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = world(tmp_path)
    async with open_house(place) as house:
        await sell(house, "first")
        place.clock.advance(100)
        await sell(house, "second")
        views = OfflineViews(place.path)
        assert views.earnings(None, EarningsBy.TOTAL, until=NOW + 100).payments == 1
        assert views.earnings(NOW, EarningsBy.TOTAL, until=NOW).payments == 0
        monkeypatch.setenv("TZ", "Etc/GMT+12")
        time.tzset()
        try:
            (utc,) = views.earnings(None, EarningsBy.DAY).rows
            (local,) = views.earnings(None, EarningsBy.DAY, local=True).rows
        finally:
            monkeypatch.undo()
            time.tzset()
        assert (utc.label, local.label) == ("2027-01-15", "2027-01-14")


async def test_earnings_since_a_time(tmp_path: Path) -> None:
    place = world(tmp_path)
    async with open_house(place) as house:
        await sell(house, "first")
        place.clock.advance(100)
        await sell(house, "second")
        views = OfflineViews(place.path)
        assert views.earnings(NOW + 100, EarningsBy.TOTAL).payments == 1
        assert views.earnings(NOW, EarningsBy.TOTAL).payments == 2
        later = views.earnings(NOW + 101, EarningsBy.DAY)
        assert (later.payments, later.rows, later.total) == (0, (), BooksLine())


async def test_money_in_work_and_money_to_be_given_back_are_told_apart(tmp_path: Path) -> None:
    place = world(tmp_path)
    place.backend.answer = None
    async with open_house(place) as house:
        working, cancelled = house.ask("works"), house.ask("cancelled")
        for request in (working, cancelled):
            await house.pay(request.id)
        await house.reaches(working.id, Work.RUNNING)
        await house.reaches(cancelled.id, Work.QUEUED)
        house.cancel(cancelled.id)
        await house.reaches(cancelled.id, Work.CANCELLED, Money.REFUND_DUE)
        total = OfflineViews(place.path).earnings(None, EarningsBy.TOTAL).total
        assert total == books_line(house.engine.books)
        assert total == BooksLine(2 * PRICE_MSATS, 0, 2 * PRICE_MSATS, PRICE_MSATS, PRICE_MSATS)


async def test_refunds_and_what_became_of_them(tmp_path: Path) -> None:
    place = world(tmp_path)
    place.backend.answer = None
    async with open_house(place) as house:
        due, back, away = [house.ask(f"{number}") for number in range(3)]
        for request in (due, back, away):
            await house.pay(request.id)
            house.cancel(request.id)
            await house.reaches(request.id, Work.CANCELLED, Money.REFUND_DUE)
        refund = Refund("own", back.id, PRICE_MSATS, NOW, "alice@pay.example", "lnbcrt1", "ee" * 32, NOW + 600)
        await house.engine.apply(back.id, facts.RefundStarted(refund))
        views = OfflineViews(place.path)
        assert [(each.job, each.money) for each in views.refunds()] == [
            (due.id, "refund_due"),
            (back.id, "refunding"),
            (away.id, "refund_due"),
        ]
        assert {each.due_msats for each in views.refunds()} == {PRICE_MSATS}
        assert "not running" in views.refunds()[0].waits
        await house.engine.apply(back.id, facts.RefundPaid("own", "ee" * 32, PRICE_MSATS, 3))
        await house.engine.apply(away.id, facts.WrittenOff("paid in person"))
        assert [each.job for each in views.refunds()] == [due.id]
        everything = {each.job: each for each in views.refunds(ended=True)}
        (paid,), (written,) = everything[back.id].payments, everything[away.id].payments
        assert (paid.state, paid.fee_msats, paid.destination) == ("paid", 3, "alice@pay.example")
        assert (written.state, written.reason, everything[away.id].due_msats) == (
            "written_off",
            "paid in person",
            0,
        )
        assert views.refund(back.id) == everything[back.id]
        total = views.earnings(None, EarningsBy.TOTAL).total
        assert total == books_line(house.engine.books)
        assert (total.refund_due_msats, total.refunded_msats, total.written_off_msats) == (PRICE_MSATS,) * 3
        await house.check_books()


async def test_a_second_payment_for_a_job_at_work_waits_for_its_end(tmp_path: Path) -> None:
    place = world(tmp_path)
    place.backend.answer = None
    async with open_house(place) as house:
        request = house.ask()
        await house.pay(request.id)
        await house.reaches(request.id, Work.RUNNING)
        again = Settlement("dd" * 32, request.id, PRICE_MSATS, 0, NOW)
        await house.read(lambda tx: tx.book(again))
        total = OfflineViews(place.path).earnings(None, EarningsBy.MODEL).total
        assert total == books_line(await house.read(lambda tx: tx.books()))
        assert (total.in_work_msats, total.refund_due_msats) == (2 * PRICE_MSATS, 0)


def test_books_are_shown_with_their_sums() -> None:
    assert books_line(Books(10, 4, 5, 1)) == BooksLine(10, 4, 6, 5, 1)


async def test_earnings_are_split_by_what_exists(tmp_path: Path) -> None:
    async with stored(tmp_path) as views:
        with pytest.raises(ValueError, match="week"):
            views.earnings(None, "week")


def test_without_a_database_one_sentence_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match=r"nothing-here"):
        offline_views(tmp_path / "nothing-here").jobs(JobsQuery())
    assert not (tmp_path / "nothing-here").exists()
