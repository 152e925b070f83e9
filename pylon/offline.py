"""Views of the database alone: jobs and earnings, with or without a running daemon.

The daemon's own views ask here from a worker thread; `pylon jobs` and `pylon earnings` ask directly when no
daemon runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pylon.control.views import (
    MAX_JOBS,
    Ambiguous,
    AttemptLine,
    BadQuery,
    BooksLine,
    EarningsBy,
    EarningsRow,
    EarningsView,
    InvoiceLine,
    JobDetail,
    JobsQuery,
    JobView,
    JournalLine,
    NotFound,
    RefundLine,
    RefundView,
)
from pylon.jobs.giving_back import GIVING_BACK, books_of
from pylon.nostr.keys import encode_npub
from pylon.store.records import UNDER_WAY, Books, Job, Money, Work
from pylon.store.reports import GivingBack, Reports, Takings


class OfflineViews:
    """Answers about jobs and money from a database file, read-only."""

    def __init__(self, database: Path) -> None:
        self._reports = Reports(database)

    def jobs(self, query: JobsQuery) -> Sequence[JobView]:
        """Return at most `query.limit` jobs, newest first; `query.after` may be the beginning of an id.

        Raises `BadQuery` on a state that does not exist, `NotFound` or `Ambiguous` for `after`.
        """
        try:
            work = None if query.work is None else Work(query.work)
            money = None if query.money is None else Money(query.money)
        except ValueError as error:
            raise BadQuery(f"there is no such state: {error}") from error
        after = None if query.after is None else self.find(query.after)
        found = self._reports.jobs(work=work, money=money, limit=query.limit, after=after)
        return [job_view(job) for job in found]

    def find(self, id_or_prefix: str) -> str:
        """Return the one id that starts like this. Raises `NotFound` or `Ambiguous`."""
        match self._reports.ids_like(id_or_prefix):
            case []:
                raise NotFound(f"no job's id starts with {id_or_prefix}")
            case [job_id]:
                return job_id
            case _:
                raise Ambiguous(f"more than one job's id starts with {id_or_prefix}: give more of it")

    def job(self, id_or_prefix: str, *, show_input: bool = False) -> JobDetail:
        """Return one job with its history. Raises `NotFound` or `Ambiguous`."""
        detail = self._reports.detail(self.find(id_or_prefix))
        if detail is None:
            raise NotFound(f"no job's id starts with {id_or_prefix}")
        return JobDetail(
            job=job_view(detail.job),
            journal=tuple(JournalLine(int(line.at), line.entry) for line in detail.journal),
            invoices=tuple(
                InvoiceLine(
                    number=row.number,
                    state=row.state.value,
                    amount_msats=row.amount_msats,
                    created_at=row.created_at,
                    expires_at=row.expires_at,
                    payment_hash=row.payment_hash,
                    bolt11=row.bolt11,
                )
                for row in detail.invoices
            ),
            attempts=tuple(
                AttemptLine(
                    number=each.number,
                    started_at=int(each.started_at),
                    ended_at=None if each.ended_at is None else int(each.ended_at),
                    outcome=each.outcome,
                )
                for each in detail.attempts
            ),
            request_json=detail.request_json if show_input else None,
        )

    def refunds(self, *, ended: bool = False) -> Sequence[RefundView]:
        """Return what is due or under way, oldest first; with `ended` what was refunded or written off too."""
        wanted = GIVING_BACK if ended else {Money.REFUND_DUE, Money.REFUNDING}
        return [_refund_view(each) for each in self._reports.giving_back(wanted, MAX_JOBS)]

    def refund(self, job_id: str) -> RefundView:
        """Return one job's refund. Raises `NotFound` when none ever was due."""
        found = self._reports.giving_back(GIVING_BACK, 1, job_id=job_id)
        if not found:
            raise NotFound("nothing is or was to be refunded for this job")
        return _refund_view(found[0])

    def earnings(
        self, since: int | None, by: str, *, until: int | None = None, local: bool = False
    ) -> EarningsView:
        """Return settled payments of a time (unix seconds), split by an `EarningsBy`; see `ControlViews`."""
        split = EarningsBy(by)
        takings = self._reports.takings(since, until)
        groups: dict[str, list[Takings]] = defaultdict(list)
        if split is not EarningsBy.TOTAL:
            for each in takings:
                groups[_label(each, split, local=local)].append(each)
        rows = tuple(EarningsRow(label, len(group), _sum(group)) for label, group in sorted(groups.items()))
        return EarningsView(
            by=split, payments=len(takings), total=_sum(takings), since=since, rows=rows, until=until
        )


def offline_views(database: Path) -> OfflineViews:
    """Return the views of a database file."""
    return OfflineViews(database)


def job_view(job: Job) -> JobView:
    """Return a job as the control API shows it."""
    return JobView(
        id=job.id,
        customer=encode_npub(job.customer),
        kind=job.kind,
        model=job.model,
        work=job.work.value,
        money=job.money.value,
        price_msats=job.price_msats,
        attempts=job.attempts,
        accepted_at=job.accepted_at,
        deadline_at=job.deadline_at,
        reason=job.reason,
        result_id=job.result_id,
    )


def books_line(books: Books) -> BooksLine:
    """Return sums of money as the control API shows them."""
    return BooksLine(
        received_msats=books.received_msats,
        earned_msats=books.earned_msats,
        owed_msats=books.owed_msats,
        in_work_msats=books.in_work_msats,
        refund_due_msats=books.refund_due_msats,
        refunded_msats=books.refunded_msats,
        refund_fees_msats=books.refund_fees_msats,
        written_off_msats=books.written_off_msats,
        deposits_msats=books.deposits_msats,
    )


def _label(taking: Takings, split: EarningsBy, *, local: bool) -> str:
    """Return the name of the row that a settlement belongs to."""
    match split:
        case EarningsBy.DAY:
            return datetime.fromtimestamp(taking.settled_at, None if local else UTC).date().isoformat()
        case EarningsBy.CUSTOMER:
            return encode_npub(taking.customer)
        case EarningsBy.KIND:
            return str(taking.kind)
        case _:
            return taking.model


def _sum(takings: Sequence[Takings]) -> BooksLine:
    received = sum(each.received_msats for each in takings)
    earned = sum(each.earned_msats for each in takings)
    deposits = sum(each.deposit_msats for each in takings)
    under_way = [each for each in takings if each.money is Money.SETTLED and each.work in UNDER_WAY]
    in_work = sum(each.rest_msats for each in under_way)
    rest = received - earned - deposits - in_work
    jobs = {each.job: each for each in takings}.values()
    # A job may have settlements outside of these: what was given back of those is not counted here.
    refunded = min(sum(each.refunded_msats for each in jobs), rest)
    written_off = min(sum(each.written_off_msats for each in jobs), rest - refunded)
    return books_line(
        Books(
            received_msats=received,
            earned_msats=earned,
            in_work_msats=in_work,
            refund_due_msats=rest - refunded - written_off,
            refunded_msats=refunded,
            refund_fees_msats=sum(each.refund_fees_msats for each in jobs),
            written_off_msats=written_off,
            deposits_msats=deposits,
        )
    )


def _refund_view(found: GivingBack) -> RefundView:
    job, payee = found.job, found.payee
    due = job.money in (Money.REFUND_DUE, Money.REFUNDING)
    return RefundView(
        job=job.id,
        customer=encode_npub(job.customer),
        money=job.money.value,
        due_msats=books_of(job, found.settlements, found.refunds).refund_due_msats,
        reason=job.reason,
        destination="" if payee is None else payee.destination,
        source="" if payee is None or not payee.destination else payee.source.value,
        ordered=payee is not None and payee.ordered,
        waits="pylon is not running: pylon start" if due else "",
        payments=tuple(
            RefundLine(
                number=each.number,
                state=each.state.value,
                amount_msats=each.amount_msats,
                created_at=each.created_at,
                fee_msats=each.fee_msats,
                destination=each.destination,
                payment_hash=each.payment_hash,
                reason=each.reason,
            )
            for each in found.refunds
        ),
    )
