"""Our books beside the wallet's: every kind of difference, and that they add up to what is between the sums."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.jobs.ports import Direction, Invoice, Payment, PaymentState, Transaction
from pylon.jobs.reconcile import (
    REASONS,
    Kind,
    OurBooks,
    Reconciliation,
    WalletBooks,
    list_from,
    reconcile,
    to_look_up,
)
from pylon.store.records import InvoiceRow, InvoiceState, Refund, RefundState, Settlement

NOW = 10_000
JOB = "0a" * 32
HASH = "cd" * 32
OWN_ID = "pylon-" + "1" * 32


def row(
    state: InvoiceState = InvoiceState.PAID,
    *,
    payment_hash: str = HASH,
    own_id: str = OWN_ID,
    expires_at: int = 9_000,
) -> InvoiceRow:
    return InvoiceRow(own_id, JOB, 1, 2_000, 5_000, expires_at, state, payment_hash, "lnbcrt1")


def booked(amount_msats: int = 2_000, at: int = 5_100) -> Settlement:
    return Settlement(HASH, JOB, amount_msats, 0, at)


def received(
    amount_msats: int = 2_000,
    state: PaymentState = PaymentState.SETTLED,
    *,
    at: int = 5_100,
    payment_hash: str = HASH,
    description: str = "",
) -> Transaction:
    settled_at = at if state is PaymentState.SETTLED else None
    return Transaction(
        Direction.INCOMING, payment_hash, state, amount_msats, 5_000, settled_at=settled_at, description=description
    )


def sent(
    amount_msats: int = 2_000, fee_msats: int = 10, state: PaymentState = PaymentState.SETTLED, at: int = 6_000
) -> Transaction:
    return Transaction(Direction.OUTGOING, HASH, state, amount_msats, at, fee_msats, at)


def refund(state: RefundState = RefundState.PAID, fee_msats: int = 10, at: int = 6_000) -> Refund:
    return given_back(HASH, 2_000, fee_msats, state, at)


def given_back(payment_hash: str, amount_msats: int, fee_msats: int, state: RefundState, at: int) -> Refund:
    return Refund(
        f"back-{payment_hash}",
        JOB,
        amount_msats,
        created_at=1,
        payment_hash=payment_hash,
        state=state,
        fee_msats=fee_msats,
        updated_at=at,
    )


def kinds(
    ours: OurBooks, wallet: WalletBooks, *, since: int = 0, grace_s: int = 0
) -> list[tuple[Kind, str | None, int, int]]:
    found = reconcile(ours, wallet, since=since, now=NOW, grace_s=grace_s)
    return [(each.kind, each.job_id, each.ours_msats, each.wallet_msats) for each in found.differences]


def test_books_that_agree() -> None:
    ours = OurBooks([row()], [booked()], [given_back("ef" * 32, 500, 3, RefundState.PAID, 6_000)])
    paid = Transaction(Direction.OUTGOING, "ef" * 32, PaymentState.SETTLED, 500, 6_000, 3, 6_000)
    wallet = WalletBooks([received(), paid], balance_msats=5_497)
    found = reconcile(ours, wallet, since=0, now=NOW)
    assert found == Reconciliation((), 1, 1, 2_000, 500, 3, 1_497, 5_497, 4_000)
    assert found.books_msats == found.change_msats


@pytest.mark.parametrize("state", list(InvoiceState))
def test_paid_in_the_wallet_and_not_booked(state: InvoiceState) -> None:
    wallet = WalletBooks([received()])
    assert kinds(OurBooks([row(state)]), wallet) == [(Kind.NOT_BOOKED, JOB, 0, 2_000)]


def test_a_second_invoice_of_one_intent_is_known_by_our_id_in_its_description() -> None:
    wallet = WalletBooks([received(), received(payment_hash="ef" * 32, description=f"NIP-90 job 0a0a ({OWN_ID})")])
    assert kinds(OurBooks([row()], [booked()]), wallet) == [(Kind.NOT_BOOKED, JOB, 0, 2_000)]


def test_what_is_not_ours_is_foreign() -> None:
    wallet = WalletBooks([received(description="rent"), sent()])
    assert kinds(OurBooks(), wallet) == [
        (Kind.FOREIGN_RECEIPT, None, 0, 2_000),
        (Kind.FOREIGN_PAYMENT, None, 0, -2_010),
    ]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (None, Kind.NOT_IN_WALLET),
        (PaymentState.UNKNOWN, Kind.NOT_IN_WALLET),
        (PaymentState.PENDING, Kind.NOT_SETTLED),
        (PaymentState.EXPIRED, Kind.NOT_SETTLED),
        (PaymentState.FAILED, Kind.NOT_SETTLED),
    ],
)
def test_booked_and_not_settled_in_the_wallet(answer: PaymentState | None, kind: Kind) -> None:
    invoice = None if answer is None else Invoice(OWN_ID, HASH, "", 2_000, 5_000, 9_000, answer)
    wallet = WalletBooks(invoices={HASH: invoice})
    assert kinds(OurBooks([row()], [booked()]), wallet) == [(kind, JOB, 2_000, 0)]


def test_a_look_up_makes_up_for_what_the_list_leaves_out() -> None:
    invoice = Invoice(OWN_ID, HASH, "", 2_000, 5_000, 9_000, PaymentState.SETTLED, 2_000, 5_100)
    ours = OurBooks([row()], [booked()], [replace(refund(), payment_hash="ef" * 32)])
    payment = Payment("ef" * 32, PaymentState.SETTLED, 2_000, 10)
    wallet = WalletBooks(invoices={HASH: invoice}, payments={"ef" * 32: payment})
    assert kinds(ours, wallet, since=5_050) == []


def test_other_amounts() -> None:
    ours = OurBooks([row()], [booked()])
    assert kinds(ours, WalletBooks([received(1_500)])) == [(Kind.OTHER_AMOUNT, JOB, 2_000, 1_500)]
    assert kinds(ours, WalletBooks([received(), received()])) == [(Kind.OTHER_AMOUNT, JOB, 2_000, 4_000)]


@pytest.mark.parametrize("state", [PaymentState.EXPIRED, PaymentState.FAILED, PaymentState.UNKNOWN])
@pytest.mark.parametrize("ours", [InvoiceState.OPEN, InvoiceState.CLOSING])
def test_open_with_us_and_dead_in_the_wallet(state: PaymentState, ours: InvoiceState) -> None:
    wallet = WalletBooks([received(state=state)])
    assert kinds(OurBooks([row(ours)]), wallet, grace_s=60) == [(Kind.DEAD_INVOICE, JOB, 0, 0)]
    late = row(ours, expires_at=NOW - 50)
    assert kinds(OurBooks([late]), wallet, grace_s=60) == []


def test_what_is_unpaid_on_both_sides_is_no_difference() -> None:
    for state in (InvoiceState.DEAD, InvoiceState.UNUSED, InvoiceState.OPEN):
        assert kinds(OurBooks([row(state)]), WalletBooks([received(state=PaymentState.PENDING)])) == []
    assert kinds(OurBooks([row(InvoiceState.DEAD)]), WalletBooks([received(state=PaymentState.FAILED)])) == []


def test_refunds() -> None:
    def found(ours: Refund, wallet: WalletBooks) -> list[tuple[Kind, int, int]]:
        return [(kind, mine, theirs) for kind, _, mine, theirs in kinds(OurBooks(refunds=[ours]), wallet)]

    assert found(refund(), WalletBooks([sent()])) == []
    assert found(refund(), WalletBooks(payments={HASH: None})) == [(Kind.REFUND_NOT_PAID, -2_010, 0)]
    failed = WalletBooks([sent(state=PaymentState.FAILED)])
    assert found(refund(), failed) == [(Kind.REFUND_NOT_PAID, -2_010, 0)]
    assert found(refund(RefundState.COMMITTED), failed) == [(Kind.DEAD_REFUND, 0, 0)]
    assert found(refund(RefundState.COMMITTED), WalletBooks([sent(state=PaymentState.PENDING)])) == []
    assert found(refund(RefundState.FAILED), failed) == []
    written_off = Refund("off", JOB, 2_000, 1, state=RefundState.WRITTEN_OFF)  # nothing was paid, nobody is asked
    assert found(written_off, WalletBooks()) == []
    assert to_look_up(OurBooks(refunds=[written_off]), [], 0) == ([], [])
    for state in (RefundState.COMMITTED, RefundState.FAILED):
        assert found(refund(state), WalletBooks([sent()])) == [(Kind.REFUND_NOT_BOOKED, 0, -2_010)]
    assert found(refund(), WalletBooks([sent(1_900)])) == [(Kind.OTHER_REFUND, -2_010, -1_910)]
    assert found(refund(fee_msats=0), WalletBooks([sent()])) == [(Kind.OTHER_FEE, -2_000, -2_010)]


def test_a_wallet_that_holds_less_than_its_list_says() -> None:
    ours = OurBooks([row()], [booked()])
    assert kinds(ours, WalletBooks([received()], balance_msats=1_900)) == [(Kind.BALANCE, None, 2_000, 1_900)]


def test_a_wallet_without_a_list_and_a_balance_is_asked_about_ours_alone() -> None:
    invoice = Invoice(OWN_ID, HASH, "", 2_000, 5_000, 9_000, PaymentState.SETTLED, 2_000, 5_100)
    wallet = WalletBooks(invoices={HASH: invoice}, listed=False)
    found = reconcile(OurBooks([row()], [booked()]), wallet, since=0, now=NOW)
    assert (found.differences, found.change_msats, found.opening_msats) == ((), None, None)


def test_a_period_begins_for_both_sides_at_once() -> None:
    ours = OurBooks([row()], [booked(at=5_101)])  # our clock was a second late
    wallet = WalletBooks([received(at=5_100)], balance_msats=2_000)
    late = reconcile(ours, wallet, since=5_101, now=NOW)
    assert (late.differences, late.received_msats, late.change_msats) == ((), 0, 0)
    early = reconcile(ours, wallet, since=5_100, now=NOW)
    assert (early.differences, early.received_msats, early.change_msats) == ((), 2_000, 2_000)


def test_what_the_wallet_is_asked() -> None:
    ours = OurBooks(
        [row(InvoiceState.OPEN), row(payment_hash="ef" * 32), row(InvoiceState.DEAD, payment_hash="01" * 32)],
        [replace(booked(), payment_hash="ef" * 32)],
        [replace(refund(RefundState.COMMITTED, at=1), payment_hash="23" * 32)],
    )
    assert to_look_up(ours, [], 0) == (["ef" * 32, HASH], ["23" * 32])
    assert to_look_up(ours, [received(payment_hash="ef" * 32)], 0) == ([HASH], ["23" * 32])
    assert to_look_up(ours, [], 6_000) == ([HASH], ["23" * 32])
    assert list_from(ours, 0) == 0
    assert list_from(ours, 200_000) == 0  # a day before the open invoice was made
    assert list_from(OurBooks(), 200_000) == 200_000 - 86_400


def test_every_kind_has_its_reason() -> None:
    assert set(REASONS) == set(Kind)


# --- whatever the two sides say -------------------------------------------------------------------------------

HASHES = st.sampled_from([f"{number:064x}" for number in range(6)])
AMOUNTS = st.integers(1, 5_000)
TIMES = st.integers(0, NOW)
TRANSACTIONS = st.builds(
    Transaction,
    direction=st.sampled_from(Direction),
    payment_hash=HASHES,
    state=st.sampled_from(PaymentState),
    amount_msats=AMOUNTS,
    created_at=TIMES,
    fee_msats=st.integers(0, 20),
    settled_at=TIMES,
)
OURS = st.builds(
    OurBooks,
    invoices=st.lists(
        st.builds(row, st.sampled_from(InvoiceState), payment_hash=HASHES), unique_by=lambda each: each.payment_hash
    ),
    settlements=st.lists(
        st.builds(Settlement, HASHES, st.just(JOB), AMOUNTS, st.just(0), TIMES),
        unique_by=lambda each: each.payment_hash,
    ),
    refunds=st.lists(
        st.builds(
            given_back, HASHES, AMOUNTS, st.integers(0, 20), st.sampled_from(RefundState), st.integers(1, NOW)
        ),
        unique_by=lambda each: each.payment_hash,
    ),
)


@given(OURS, st.lists(TRANSACTIONS, max_size=12))
def test_the_differences_are_what_is_between_the_sums(ours: OurBooks, listed: list[Transaction]) -> None:
    found = reconcile(ours, WalletBooks(listed), since=0, now=NOW)
    assert found.change_msats is not None
    between = sum(each.wallet_msats - each.ours_msats for each in found.differences)
    assert found.change_msats - found.books_msats == between


@given(OURS, TIMES)
def test_a_wallet_that_says_what_we_booked_agrees(ours: OurBooks, since: int) -> None:
    paid = {each.payment_hash for each in ours.settlements}
    ours = replace(ours, refunds=[each for each in ours.refunds if each.state is RefundState.PAID])
    listed = [
        received(each.amount_msats, at=each.settled_at, payment_hash=each.payment_hash) for each in ours.settlements
    ]
    listed += [
        Transaction(
            *(Direction.OUTGOING, each.payment_hash or "", PaymentState.SETTLED),
            *(each.amount_msats, each.updated_at, each.fee_msats, each.updated_at),
        )
        for each in ours.refunds
    ]
    listed += [
        received(state=PaymentState.PENDING, payment_hash=each.payment_hash or "")
        for each in ours.invoices
        if each.payment_hash not in paid
    ]
    found = reconcile(ours, WalletBooks(listed), since=since, now=NOW)
    assert found.differences == ()
    assert found.books_msats == found.change_msats
