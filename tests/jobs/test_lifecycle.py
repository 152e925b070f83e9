"""The lifecycle against its specification: the tables of docs/lifecycle.md, read and compared cell by cell."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pylon.jobs import effects as do
from pylon.jobs import facts, lifecycle
from pylon.jobs.giving_back import GIVING_BACK
from pylon.jobs.ports import Invoice
from pylon.nostr.nip90 import FeedbackStatus
from pylon.store.records import ENDED, Job, Money, Refund, RefundState, Work

PAGE = Path(__file__).parents[2] / "docs" / "lifecycle.md"
RULES = lifecycle.Rules(max_attempts=3, max_invoices=2)
HASH = "ab" * 32
INVOICE = Invoice("own", HASH, "lnbcrt1", 2000, 100, 700)
REFUND = Refund("back", "01" * 32, 2000, 100, "alice@pay.example", "lnbcrt1", HASH, 700)


@dataclass(frozen=True)
class Row:
    fact: str
    works: tuple[str, ...]
    moneys: tuple[str, ...]
    when: str
    work: str
    money: str
    effects: tuple[str, ...]


def tables() -> list[list[list[str]]]:
    found: list[list[list[str]]] = [[]]
    for line in PAGE.read_text().splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def table_with(header: list[str]) -> list[list[str]]:
    (table,) = [each for each in tables() if each[0] == header]
    return table[2:]


def split(cell: str) -> tuple[str, ...]:
    return tuple(each.strip() for each in cell.split(",") if each.strip())


TOLD_APART = ("paid", "paid_short", "zapped", "refund_started", "refund_paid", "refund_failed")
OF_AN_ATTEMPT = facts.Output | facts.Metered | facts.AttemptFailed | facts.PutBack

ROWS = [
    Row(r[0], split(r[1]), split(r[2]), r[3], r[4], r[5], split(r[6]))
    for r in table_with(["fact", "work", "money", "when", "→ work", "→ money", "effects"])
]
PAIRS = {(Work(r[0]), Money(money)) for r in table_with(["work", "money"]) for money in split(r[1])}
FACT_NAMES = [r[0] for r in table_with(["fact", "who tells it", "told again after a crash before COMMIT by"])]

FACTS: dict[str, list[facts.Fact]] = {
    "invoice_made": [facts.InvoiceMade(INVOICE)],
    "invoice_refused": [facts.InvoiceRefused("own", "no")],
    "paid": [facts.Paid(HASH, 2000, 150)],
    "paid_short": [facts.PaidShort(HASH, 1, 150)],
    "zapped": [facts.Zapped(HASH, amount, 150, whose) for amount in (1, 2000) for whose in (False, True)],
    "invoice_dead": [facts.InvoiceDead(HASH, lost_early=early) for early in (False, True)],
    "started": [facts.Started(), facts.Started("another")],
    "rerouted": [facts.Rerouted(1, "another")],
    "partial_sent": [facts.PartialSent()],
    "output": [facts.Output(1, "cd" * 32, "{}", facts.Usage())],
    "metered": [
        facts.Metered(1, "text", price, facts.Usage(), deposit)
        for price, deposit in ((1000, 0), (9000, 1000), (1000, 1000), (9000, 9000))
    ],
    "attempt_failed": [facts.AttemptFailed(1, "broke", retryable=retryable) for retryable in (False, True)],
    "put_back": [facts.PutBack(1, "the owner wants the machine")],
    "confirmed": [facts.Confirmed()],
    "gave_up": [facts.GaveUp("no relay")],
    "cancel_by_customer": [facts.Cancel(facts.CancelledBy.CUSTOMER)],
    "cancel_by_operator": [facts.Cancel(facts.CancelledBy.OPERATOR)],
    "deadline": [facts.Deadline()],
    "refund_started": [facts.RefundStarted(REFUND)],
    "refund_paid": [facts.RefundPaid("back", HASH, 2000, 2, left) for left in (0, 500)],
    "refund_failed": [
        facts.RefundFailed("back", "x", "no route", retryable=retryable) for retryable in (False, True)
    ],
    "payee_refused": [facts.PayeeRefused("lnbcrt1", "it asks too much")],
    "written_off": [facts.WrittenOff("paid by hand")],
    "restarted": [facts.Restarted()],
    "found": [facts.Found("cd" * 32)],
}


def make_job(
    work: Work,
    money: Money,
    *,
    attempts: int = 1,
    partial: bool = False,
    invoices: int = 1,
    postpaid: bool = False,
    deposit: int = 0,
) -> Job:
    return Job(
        id="01" * 32,
        customer="02" * 32,
        kind=5050,
        backend="b",
        model="m",
        price_msats=2000,
        max_tokens=64,
        accepted_at=100,
        deadline_at=1000,
        work=work,
        money=money,
        attempts=attempts,
        partial_sent=partial,
        invoices=invoices,
        postpaid=postpaid,
        deposit_msats=deposit,
    )


def condition(job: Job, fact: facts.Fact) -> set[str]:
    """Every `when` text of the page that holds for this job and fact."""
    last = job.attempts >= RULES.max_attempts
    if isinstance(fact, facts.AttemptFailed):
        last = last or not fact.retryable
    holds = {
        "",
        "last attempt" if last else "attempts left",
        "partial sent" if job.partial_sent else "no partial sent",
        "postpaid" if job.postpaid else "not postpaid",
        "from a deposit" if job.deposit_msats >= job.price_msats else "paid",
        "postpaid, partial sent" if job.postpaid and job.partial_sent else "not postpaid, or no partial sent",
    }
    source = "from a deposit" if job.deposit_msats >= job.price_msats else "paid"
    holds |= {f"{each}, {source}" for each in ("last attempt", "no partial sent") if each in holds}
    if isinstance(fact, facts.Metered) and job.postpaid:
        covered = fact.deposit_msats >= min(fact.price_msats, job.price_msats)
        holds.add("postpaid, from a deposit" if covered else "postpaid, something to pay")
    if isinstance(fact, facts.Zapped):
        enough = fact.amount_msats >= job.price_msats - job.deposit_msats
        holds.add("the price" if enough else "less")
        holds.add("the price, postpaid" if enough and job.postpaid else "less, or not postpaid")
    if isinstance(fact, facts.RefundPaid):
        holds.add("more is due" if fact.left_msats else "nothing left")
    if isinstance(fact, facts.RefundFailed):
        holds.add("another can be fetched" if fact.retryable else "the customer must send another")
    if isinstance(fact, facts.InvoiceDead):
        left = "invoices left" if job.invoices < RULES.max_invoices else "none left"
        holds |= {"lost early", f"lost early, {left}"} if fact.lost_early else {"expired"}
    return holds


def effect_name(effect: do.Effect) -> str:
    if isinstance(effect, do.Say):
        prefix = f" {effect.prefix.value}" if effect.prefix else ""
        return f"say {effect.status.value}{prefix}"
    if isinstance(effect, do.Announce):
        return "announce processing"
    return re.sub(r"(?<!^)([A-Z])", r"_\1", type(effect).__name__).lower()


def variants() -> list[tuple[Job, facts.Fact, str]]:
    found = []
    for (work, money), name in itertools.product(sorted(PAIRS), FACT_NAMES):
        for fact in FACTS[name]:
            # Facts of an attempt name the current one, so it is varied with them.
            several = itertools.product((1, 3), (False, True), (1, 2), (False, True), (0, 1000, 2000))
            for attempts, partial, invoices, postpaid, deposit in several:
                current = replace(fact, attempt=attempts) if isinstance(fact, OF_AN_ATTEMPT) else fact
                job = make_job(
                    work,
                    money,
                    attempts=attempts,
                    partial=partial,
                    invoices=invoices,
                    postpaid=postpaid,
                    deposit=deposit,
                )
                found.append((job, current, name))
    return found


def row_for(job: Job, fact: facts.Fact, name: str) -> Row:
    holds = condition(job, fact)
    found = [
        row
        for row in ROWS
        if row.fact == name and job.work in row.works and job.money in row.moneys and row.when in holds
    ]
    assert len(found) == 1, f"{name} on {job.work}/{job.money} ({holds}) has {len(found)} rows"
    return found[0]


def test_every_cell_of_the_page_is_what_the_code_does() -> None:
    for job, fact, name in variants():
        row = row_for(job, fact, name)
        step = lifecycle.step(job, fact, RULES)
        where = f"{name} on {job.work}/{job.money} when {condition(job, fact)}"
        assert step.job.work == (job.work if row.work == "=" else row.work), where
        assert step.job.money == (job.money if row.money == "=" else row.money), where
        assert tuple(effect_name(each) for each in step.effects) == row.effects, where
        assert (step.job.work, step.job.money) in PAIRS, where


def test_every_row_of_the_page_can_be_reached() -> None:
    used = {row_for(job, fact, name) for job, fact, name in variants()}
    assert set(ROWS) == used


def test_the_page_names_every_fact_and_effect() -> None:
    assert set(FACT_NAMES) == set(FACTS)
    assert {facts.fact_name(each) for group in FACTS.values() for each in group} == set(FACT_NAMES)
    effects_table = {
        r[0]
        for r in table_with(
            [
                "effect",
                "stored in the transaction",
                "the call after COMMIT",
                "crash before the call",
                "crash after the call, before its answer is stored",
            ]
        )
    }
    used = {"say …" if each.startswith("say ") else each for row in ROWS for each in row.effects}
    assert used == effects_table


def test_the_pairs_are_exactly_those_reachable() -> None:
    reached = set()
    frontier = [
        lifecycle.begin(make_job(Work.QUEUED, Money.NONE, attempts=0, deposit=deposit), mode).job
        for mode in facts.Mode
        for deposit in (0, 1000, 2000)
        if not deposit or mode is facts.Mode.PREPAY
    ]
    seen = set(frontier)
    while frontier:
        job = frontier.pop()
        reached.add((job.work, job.money))
        for group in FACTS.values():
            for fact in group:
                current = replace(fact, attempt=job.attempts) if isinstance(fact, OF_AN_ATTEMPT) else fact
                after = replace(lifecycle.step(job, current, RULES).job, reason="")
                # What is put back is tried again without end; no step looks beyond the last attempt.
                after = replace(after, attempts=min(after.attempts, RULES.max_attempts + 1))
                if after not in seen:
                    seen.add(after)
                    frontier.append(after)
    assert reached == PAIRS


@pytest.mark.parametrize(
    "fact",
    [
        facts.Output(1, "aa", "{}", facts.Usage()),
        facts.AttemptFailed(1, "x", True),
        facts.PutBack(1, "x"),
        facts.Metered(1, "text", 1000, facts.Usage()),
    ],
)
@pytest.mark.parametrize(("money", "postpaid"), [(Money.SETTLED, False), (Money.NONE, True)])
def test_an_attempt_that_is_not_the_current_one_is_no_news(fact: facts.Fact, money: Money, postpaid: bool) -> None:
    job = make_job(Work.RUNNING, money, attempts=2, postpaid=postpaid)
    assert lifecycle.step(job, fact, RULES) == lifecycle.Step(job, (), changed=False)


def test_a_metered_price_is_never_above_the_quoted_one() -> None:
    job = make_job(Work.RUNNING, Money.NONE, postpaid=True)
    metered = [facts.Metered(1, "text", price, facts.Usage()) for price in (1000, 2000, 3000)]
    assert [lifecycle.step(job, fact, RULES).job.price_msats for fact in metered] == [1000, 2000, 2000]


@pytest.mark.parametrize("attempts", [1, 3, 9])
def test_what_is_put_back_is_never_ended_by_it(attempts: int) -> None:
    job = make_job(Work.RUNNING, Money.SETTLED, attempts=attempts)
    step = lifecycle.step(job, facts.PutBack(attempts, "x"), RULES)
    assert (step.job.work, step.job.money, step.job.attempts) == (Work.QUEUED, Money.SETTLED, attempts)


@pytest.mark.parametrize("work", [Work.BILLING, Work.PRODUCED, Work.DELIVERED])
def test_a_bill_paid_short_is_forgiven_the_rest(work: Work) -> None:
    job = make_job(work, Money.NONE if work is Work.BILLING else Money.INVOICED, postpaid=True)
    after = lifecycle.step(job, facts.PaidShort(HASH, 700, 150), RULES).job
    assert (after.money, after.price_msats) == (Money.SETTLED, 700)


class JobStory(RuleBasedStateMachine):
    """Any order of facts: what must hold of every story, however odd."""

    def __init__(self) -> None:
        super().__init__()
        self.job = make_job(Work.QUEUED, Money.NONE, attempts=0)
        self.effects: list[do.Effect] = []
        self.told: dict[Work, int] = defaultdict(int)
        self.history: list[Job] = []
        self.hashes = 0
        self.asked_msats = 0
        self.booked_msats: list[int] = []
        self.earned_msats = 0
        self.put_back = 0
        self.committed: list[Refund] = []  # under way: at most one
        self.given_back_msats: dict[RefundState, int] = defaultdict(int)

    @initialize(mode=st.sampled_from(facts.Mode), deposit=st.sampled_from([0, 0, 1000, 2000]))
    def start(self, mode: facts.Mode, deposit: int) -> None:
        self.deposit_msats = deposit if mode is facts.Mode.PREPAY else 0
        step = lifecycle.begin(self.job.evolve(deposit_msats=self.deposit_msats), mode)
        self.job, self.effects, self.mode = step.job, list(step.effects), mode
        self.history = [self.job]

    def tell(self, fact: facts.Fact) -> lifecycle.Step:
        step = lifecycle.step(self.job, fact, RULES)
        self.job = step.job
        self.put_back += isinstance(fact, facts.PutBack) and step.changed
        self.effects += step.effects
        self.history.append(self.job)
        for effect in step.effects:
            if isinstance(effect, do.WantInvoice):
                self.asked_msats = self.job.price_msats - self.job.deposit_msats
            elif isinstance(effect, do.BookMoney):
                self.booked_msats.append(effect.amount_msats)
            elif isinstance(effect, do.Earn):
                received_msats = self.booked_msats[0] if self.booked_msats else 0
                self.earned_msats = min(received_msats + self.job.deposit_msats, self.job.price_msats)
            elif isinstance(effect, do.PayRefund):
                self.committed.append(effect.refund)
            elif isinstance(effect, do.EndRefund):
                self.given_back_msats[effect.state] += self.committed.pop().amount_msats
            elif isinstance(effect, do.WriteOff):
                self.given_back_msats[RefundState.WRITTEN_OFF] += self.due_msats
        return step

    @property
    def due_msats(self) -> int:
        """What is owed and not for work, a refund under way included."""
        ended = self.given_back_msats[RefundState.PAID] + self.given_back_msats[RefundState.WRITTEN_OFF]
        return 0 if self.earned_msats else sum(self.booked_msats) - ended

    @rule(data=st.data(), name=st.sampled_from([n for n in FACT_NAMES if n not in TOLD_APART]))
    def anything(self, data: st.DataObject, name: str) -> None:
        fact = data.draw(st.sampled_from(FACTS[name]))
        if isinstance(fact, OF_AN_ATTEMPT):
            fact = replace(fact, attempt=data.draw(st.integers(0, 4)))
        self.tell(fact)

    @precondition(lambda self: self.job.work is Work.RUNNING)
    @rule(name=st.sampled_from(["output", "metered"]))
    def give_text(self, name: str) -> None:
        """What `anything` finds too seldom: the current attempt comes to its end."""
        (fact, *_) = FACTS[name]
        assert isinstance(fact, OF_AN_ATTEMPT)
        self.tell(replace(fact, attempt=self.job.attempts))

    # The wallet may settle what we never published.
    @precondition(lambda self: any(isinstance(each, do.WantInvoice) for each in self.effects))
    @rule(amount=st.sampled_from([1, 2000, 5000]))
    def pay(self, amount: int) -> None:
        self.hashes += 1
        kind = facts.Paid if amount >= self.asked_msats else facts.PaidShort
        self.tell(kind(f"{self.hashes:064x}", amount, 150))

    @rule(amount=st.sampled_from([1, 1000, 2000, 5000]), by_customer=st.booleans())
    def zap(self, amount: int, by_customer: bool) -> None:
        self.hashes += 1
        self.tell(facts.Zapped(f"{self.hashes:064x}", amount, 150, by_customer))

    # As the recorder tells it: over what is due, and about the refund under way.
    @rule()
    def start_refund(self) -> None:
        self.tell(facts.RefundStarted(replace(REFUND, amount_msats=self.due_msats)))

    @precondition(lambda self: self.committed)
    @rule(paid=st.booleans(), fee_msats=st.integers(0, 9))
    def end_refund(self, paid: bool, fee_msats: int) -> None:
        amount = self.committed[0].amount_msats
        if paid:
            self.tell(facts.RefundPaid("back", HASH, amount, fee_msats, self.due_msats - amount))
        else:
            self.tell(facts.RefundFailed("back", "x", "no route", retryable=fee_msats > 4))

    @rule(name=st.sampled_from(["written_off", "payee_refused"]))
    def decide(self, name: str) -> None:
        self.tell(FACTS[name][0])

    @invariant()
    def what_is_due_is_given_back_once(self) -> None:
        assert len(self.committed) == (self.job.money is Money.REFUNDING)
        assert self.due_msats >= 0
        if self.job.money in (Money.REFUND_DUE, Money.REFUNDING):
            assert self.due_msats > 0
        if self.job.money in (Money.REFUNDED, Money.WRITTEN_OFF):
            assert self.due_msats == 0
            said = [each.prefix for each in self.effects if isinstance(each, do.Say)]
            assert "refunded" in said or "written-off" in said

    @invariant()
    def money_is_never_lost(self) -> None:
        booked = [each for each in self.effects if isinstance(each, do.BookMoney)]
        gifts = [each for each in self.effects if isinstance(each, do.BookGift)]
        assert len(booked) + len(gifts) == self.hashes
        if booked:
            assert self.job.money in {Money.SETTLED} | GIVING_BACK

    @invariant()
    def a_deposit_is_held_until_it_is_spent_or_given_back(self) -> None:
        job = self.job
        if job.money is Money.REFUND_DUE or (job.work in ENDED and job.money is Money.VOID):
            assert job.deposit_msats == 0
        elif not job.postpaid:
            assert job.deposit_msats in (self.deposit_msats, 0)
        if job.money is Money.SETTLED and not self.booked_msats:
            assert job.deposit_msats == job.price_msats

    @invariant()
    def at_most_one_result_and_one_earning(self) -> None:
        assert sum(isinstance(each, do.DeliverResult | do.DeliverBilled) for each in self.effects) <= 1
        assert sum(isinstance(each, do.Earn) for each in self.effects) <= 1

    @invariant()
    def ended_work_stays_ended(self) -> None:
        ended = [job.work for job in self.history if job.work in ENDED]
        assert len(set(ended)) <= 1

    @invariant()
    def attempts_and_invoices_are_bounded(self) -> None:
        assert self.job.attempts <= RULES.max_attempts + self.put_back
        assert sum(isinstance(each, do.WantInvoice) for each in self.effects) <= RULES.max_invoices

    @invariant()
    def nothing_runs_unpaid(self) -> None:
        if any(isinstance(each, do.BeginAttempt) for each in self.effects) and self.mode is facts.Mode.PREPAY:
            assert self.deposit_msats == 2000 or any(isinstance(each, do.BookMoney) for each in self.effects)

    @invariant()
    def work_on_credit_is_billed_what_it_used(self) -> None:
        works = [job.work for job in self.history]
        if Work.BILLING in works:
            assert self.job.postpaid and self.job.price_msats <= 1000
            assert self.job.money is not Money.INVOICED or self.job.work in (Work.PRODUCED, Work.DELIVERED)
        if self.job.money is Money.UNPAID:
            assert Work.BILLING in works and not self.booked_msats
        assert self.job.postpaid is (self.mode is facts.Mode.POSTPAY)

    @invariant()
    def delivered_and_paid_is_earned(self) -> None:
        if (self.job.work, self.job.money) == (Work.DELIVERED, Money.SETTLED):
            received_msats = self.booked_msats[0] if self.booked_msats else 0
            assert self.earned_msats == min(received_msats + self.job.deposit_msats, self.job.price_msats) > 0
        if self.job.postpaid and self.job.work is not Work.DELIVERED:
            assert self.earned_msats == 0

    @invariant()
    def a_refund_that_falls_due_is_said(self) -> None:
        if self.job.money in GIVING_BACK:
            said = [
                each for each in self.effects if isinstance(each, do.Say) and each.status is FeedbackStatus.ERROR
            ]
            assert any(each.prefix == "refund-due" for each in said)


TestJobStory = JobStory.TestCase
TestJobStory.settings = settings(max_examples=200, stateful_step_count=25, deadline=None)
