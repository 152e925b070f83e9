"""Who has credit, how much, and what takes it away or gives it back."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest

from pylon.jobs import credit as module
from pylon.jobs.credit import WINDOW_S, Credit, CreditRules
from pylon.store.records import Job, Money, Work

NOW = 1_000_000
ALICE, BOB = "a1" * 32, "b0" * 32


def rules(**given: int) -> CreditRules:
    return CreditRules(**{"credit_msats": 10_000, "max_credit_msats": 100_000, "daily_msats": 1_000_000, **given})


def job(number: int = 1, customer: str = ALICE, **given: Any) -> Job:
    made = Job(
        id=f"{number:064x}",
        customer=customer,
        kind=5050,
        backend="b",
        model="m",
        price_msats=10_000,
        max_tokens=64,
        accepted_at=NOW,
        deadline_at=NOW + 3_600,
        postpaid=True,
        version=1,
    )
    return made.evolve(**given)


def covers(credit: Credit, customer: str = ALICE, msats: int = 10_000, now: float = NOW) -> bool:
    return credit.covers(customer, msats, now)


# --- one customer ---------------------------------------------------------------------------------------------


def test_by_default_nobody_has_any() -> None:
    assert not covers(Credit(CreditRules()), msats=1_000)


@pytest.mark.parametrize("name", ["credit_msats", "history_percent", "max_credit_msats", "daily_msats"])
def test_no_rule_is_negative(name: str) -> None:
    with pytest.raises(ValueError, match="negative"):
        rules(**{name: -1})


def test_the_most_a_job_can_cost_must_be_within_it() -> None:
    credit = Credit(rules())
    assert covers(credit, msats=10_000)
    assert not covers(credit, msats=10_001)


def test_a_share_of_what_was_paid_is_added_up_to_the_most_there_is() -> None:
    credit = Credit(rules(history_percent=50, max_credit_msats=30_000))
    assert credit.limit_msats(ALICE) == 10_000
    credit.follow(job(postpaid=False), 9_001)
    assert credit.limit_msats(ALICE) == 14_500
    credit.follow(job(2), 100_000)
    assert credit.limit_msats(ALICE) == 30_000
    assert credit.limit_msats(BOB) == 10_000


OPEN = [
    (Work.QUEUED, Money.NONE),
    (Work.RUNNING, Money.NONE),
    (Work.BILLING, Money.NONE),
    (Work.PRODUCED, Money.INVOICED),
    (Work.DELIVERED, Money.INVOICED),
]
NOTHING_OWED = [
    (Work.PRODUCED, Money.NONE),  # given away
    (Work.PRODUCED, Money.SETTLED),
    (Work.PRODUCED, Money.VOID),
    (Work.DELIVERED, Money.NONE),
    (Work.DELIVERED, Money.SETTLED),
    (Work.DELIVERED, Money.VOID),
    (Work.FAILED, Money.NONE),
    (Work.CANCELLED, Money.NONE),
    (Work.EXPIRED, Money.NONE),
    (Work.UNDELIVERABLE, Money.NONE),
    (Work.UNDELIVERABLE, Money.CANCELLING),
    (Work.UNDELIVERABLE, Money.VOID),
    (Work.UNDELIVERABLE, Money.REFUND_DUE),
]


@pytest.mark.parametrize(("work", "money"), OPEN)
def test_one_job_at_a_time(work: Work, money: Money) -> None:
    credit = Credit(rules())
    credit.give(job())
    credit.follow(job(work=work, money=money), 0)
    assert credit.owing(ALICE) == job().id
    assert not covers(credit, msats=1_000)
    assert credit.owing(BOB) is None and covers(credit, BOB)


@pytest.mark.parametrize(("work", "money"), NOTHING_OWED)
def test_a_job_that_is_paid_or_owes_nothing_makes_room_for_the_next(work: Work, money: Money) -> None:
    credit = Credit(rules())
    credit.give(job())
    credit.follow(job(work=work, money=money), 0)
    assert credit.owing(ALICE) is None
    assert covers(credit)


@pytest.mark.parametrize("work", [Work.PRODUCED, Work.DELIVERED])
def test_an_unpaid_job_ends_all_credit_until_it_is_paid_after_all(work: Work) -> None:
    credit = Credit(rules(history_percent=100))
    credit.follow(job(2, postpaid=False), 50_000)
    credit.give(job())
    credit.follow(job(work=work, money=Money.UNPAID), 0)
    assert credit.owing(ALICE) is None  # what is prepaid is welcome
    assert credit.limit_msats(ALICE) == 0 and not covers(credit, msats=1)
    credit.follow(job(work=work, money=Money.SETTLED), 0)
    assert covers(credit)


def test_a_prepaid_or_free_job_is_no_credit() -> None:
    credit = Credit(rules())
    credit.follow(job(postpaid=False, work=Work.QUEUED), 0)
    assert credit.owing(ALICE) is None and credit.given_msats == 0


def test_a_job_that_could_not_be_stored_took_nothing() -> None:
    credit = Credit(rules())
    credit.give(job())
    credit.take_back(job())
    assert credit.owing(ALICE) is None and credit.given_msats == 0


# --- everybody together ---------------------------------------------------------------------------------------


def test_all_that_was_given_within_a_day_is_bounded() -> None:
    credit = Credit(rules(daily_msats=25_000))
    credit.give(job(1, "01" * 32))
    credit.give(job(2, "02" * 32, accepted_at=NOW + 100))
    assert covers(credit, msats=5_000) and not covers(credit, msats=5_001)
    assert not covers(credit, now=NOW + WINDOW_S - 1)
    assert covers(credit, now=NOW + WINDOW_S)
    assert credit.given_msats == 10_000
    assert covers(credit, now=NOW + WINDOW_S + 100)
    assert credit.given_msats == 0


def test_what_was_paid_stays_given_and_what_was_metered_less_is_free_again() -> None:
    credit = Credit(rules())
    credit.give(job())
    credit.follow(job(work=Work.BILLING, price_msats=2_000), 0)
    assert credit.given_msats == 2_000
    credit.follow(job(work=Work.DELIVERED, money=Money.SETTLED, price_msats=2_000), 2_000)
    assert credit.given_msats == 2_000


@pytest.mark.parametrize("work", [Work.FAILED, Work.CANCELLED, Work.EXPIRED])
def test_only_what_ended_before_its_first_word_gave_nothing(work: Work) -> None:
    credit = Credit(rules())
    credit.give(job(1))
    credit.follow(job(1, work=work), 0)
    assert credit.given_msats == 0
    credit.give(job(2))
    credit.follow(job(2, work=work, partial_sent=True), 0)
    assert credit.given_msats == 10_000


def test_a_result_that_was_given_away_counts() -> None:
    credit = Credit(rules())
    credit.give(job())
    credit.follow(job(work=Work.DELIVERED), 0)
    assert credit.given_msats == 10_000


def test_a_job_that_has_left_the_window_does_not_come_back() -> None:
    credit = Credit(rules())
    credit.give(job())
    assert covers(credit, BOB, now=NOW + WINDOW_S)
    assert credit.owing(ALICE) == job().id  # it is still open
    credit.follow(job(work=Work.DELIVERED, money=Money.UNPAID), 0)
    assert credit.given_msats == 0


# --- a restart, and bounds ------------------------------------------------------------------------------------


def test_a_restart_knows_what_was_known() -> None:
    jobs = [
        job(1, "01" * 32, work=Work.DELIVERED, money=Money.UNPAID, accepted_at=NOW - 2 * WINDOW_S),
        job(2, "02" * 32, work=Work.DELIVERED, money=Money.INVOICED, accepted_at=NOW - WINDOW_S),
        job(3, "03" * 32, work=Work.DELIVERED, money=Money.SETTLED, price_msats=2_000),
        job(4, "04" * 32, work=Work.FAILED),
    ]
    credit = Credit(rules(history_percent=100))
    credit.load([("03" * 32, 2_000)], jobs, NOW)
    assert credit.limit_msats("01" * 32) == 0
    assert credit.owing("02" * 32) == jobs[1].id
    assert credit.limit_msats("03" * 32) == 12_000
    assert credit.given_msats == 2_000


def test_memory_is_bounded_and_where_it_is_full_there_is_no_credit() -> None:
    with patch.multiple(module, MAX_CUSTOMERS=2, MAX_UNPAID=2, MAX_GIVEN=3):
        credit = Credit(rules(history_percent=100))
        for number in range(3):
            credit.follow(job(number, f"{number:064x}", postpaid=False), 1_000)
        assert [credit.limit_msats(f"{number:064x}") for number in range(3)] == [10_000, 11_000, 11_000]
        for number in range(2):
            credit.give(job(number, f"{number:064x}"))
            assert covers(credit)
            credit.follow(job(number, f"{number:064x}", work=Work.DELIVERED, money=Money.UNPAID), 0)
        assert not covers(credit)
        credit.follow(job(0, f"{0:064x}", work=Work.DELIVERED, money=Money.SETTLED), 0)
        assert covers(credit)
        credit.give(job(7, BOB))
        assert not covers(credit)
