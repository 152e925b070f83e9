"""A daemon's views without a daemon: fixed values, and a place to inject what tests need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import anyio

from pylon.control.owner_line import OwnerLine
from pylon.control.views import (
    Ambiguous,
    AnnouncementView,
    AttemptLine,
    BackendLine,
    BooksLine,
    ChangeLine,
    DaemonState,
    DaemonStatus,
    EarningsBy,
    EarningsRow,
    EarningsView,
    IntakeLine,
    InvoiceLine,
    JobDetail,
    JobsQuery,
    JobView,
    JournalLine,
    ModelLine,
    NotFound,
    QueueLine,
    RefundLine,
    RefundView,
    RelayLine,
    SettingsLine,
    StoreLine,
    ViewError,
    WalletLine,
)

NASTY = "\x1b[31mred\x1b[0m \u202eevil \ud800 \x9b31m"
"""Escape sequences, a bidi override, a lone surrogate, a C1 control."""

STATUS = DaemonStatus(
    version="0.1.0",
    pid=4242,
    npub="npub1example",
    pubkey="ab" * 32,
    started_at=1_700_000_000,
    uptime_s=93_784,
    state=DaemonState.READY,
    payment_mode="prepay",
    relays=(
        RelayLine("wss://relay.one", "connected", True, "", 120, 30, 10, 1, 2, 0, 41.5),
        RelayLine("wss://relay.two", "waiting", False, "refused " + NASTY, reconnects=3),
    ),
    backends=(BackendLine("local", "openai", "ready", "", ("smollm2",), 4, 1),),
    models=(ModelLine("smollm2", "local", 1000, 100, 2000, ("small",)),),
    wallet=WalletLine("fake", True, "", "regtest"),
    queue=(QueueLine("local", "smollm2", 2, 1, 4, 1),),
    jobs_by_state={"delivered/settled": 7, "running/settled": 1},
    books=BooksLine(21_500, 20_000, 1_500, 1_000, 500),
    refused={"bid-too-low": 3, NASTY: 1},
    missed_models={"gpt-4o": 2},
    intake=IntakeLine(11),
    store=StoreLine(True, "", 1_234_567),
    outbox_pending=2,
    dead_letters=1,
)

JOBS = tuple(
    JobView(
        id=f"{number:02x}" * 32,
        customer=f"npub1customer{number}",
        kind=5050,
        model=NASTY if number == 3 else "smollm2",
        work="running" if number == 1 else "delivered",
        money="settled",
        price_msats=number * 1000 + 500,
        attempts=1,
        accepted_at=1_700_000_000 + number,
        deadline_at=1_700_000_600 + number,
        reason="",
    )
    for number in (1, 2, 3)
)
TWIN = replace(JOBS[0], id=JOBS[0].id[:-2] + "ff")
REFUND = RefundView(
    job=JOBS[0].id,
    customer=JOBS[0].customer,
    money="refund_due",
    due_msats=1_500,
    reason=NASTY,
    destination="alice@pay.example",
    source="request",
    waits=f"it is for you to order: pylon refunds pay {JOBS[0].id[:12]}",
    payments=(
        RefundLine(1, "failed", 1_500, 1_700_000_700, 0, "alice@pay.example", "ab" * 32, f"no route {NASTY}"),
    ),
)
REFUNDED = replace(
    REFUND,
    job=JOBS[1].id,
    money="refunded",
    due_msats=0,
    waits="",
    payments=(RefundLine(1, "paid", 1_500, 1_700_000_700, 2, "alice@pay.example", "cd" * 32),),
)
RELOADED = SettingsLine(
    1_700_000_900,
    applied=(ChangeLine("announce.about", "old words", NASTY),),
    restart=(ChangeLine("relays.urls", "wss://relay.one", "wss://relay.two"), ChangeLine("wallet.url", None, "")),
)
ANNOUNCED = AnnouncementView("announced", ('{"kind":31990}',))
PLAINTEXT = '{"content":"the secret prompt"}'


class FakeViews:
    """Answers like a daemon would; `pause_s` delays and `fault` breaks every asynchronous answer."""

    def __init__(self) -> None:
        self.answer = STATUS
        self.pause_s = 0.0
        self.fault: Exception | None = None
        self.asked: list[object] = []
        self.reloaded = RELOADED
        self.stop_requested = anyio.Event()
        self.cancelled: list[str] = []
        self.owner = OwnerLine()

    def status(self) -> DaemonStatus:
        return self.answer

    async def jobs(self, query: JobsQuery) -> Sequence[JobView]:
        await self._trouble()
        self.asked.append(query)
        matching = [job for job in JOBS if query.work in (None, job.work) and query.money in (None, job.money)]
        return matching[: query.limit]

    async def job(self, id_or_prefix: str, *, show_input: bool = False) -> JobDetail:
        await self._trouble()
        self.asked.append(id_or_prefix)
        job = self._find(id_or_prefix)
        return JobDetail(
            job,
            journal=(JournalLine(1_700_000_001, "accepted"), JournalLine(1_700_000_002, NASTY)),
            invoices=(
                InvoiceLine(1, "paid", job.price_msats, 1_700_000_001, 1_700_000_300, "cd" * 32, "lnbcrt1x"),
            ),
            attempts=(AttemptLine(1, 1_700_000_003, 1_700_000_009, "finished"),),
            request_json=PLAINTEXT,  # a careless daemon: the server leaves it out unless it was asked for
        )

    async def cancel_job(self, id_or_prefix: str) -> JobView:
        await self._trouble()
        job = self._find(id_or_prefix)
        if job.work != "running":
            raise ViewError("the job has already ended")
        self.cancelled.append(job.id)
        return replace(job, work="cancelled", money="refund_due", reason="cancelled by the operator")

    async def refunds(self, *, ended: bool = False) -> Sequence[RefundView]:
        await self._trouble()
        self.asked.append(("refunds", ended))
        return [REFUND, REFUNDED] if ended else [REFUND]

    async def pay_refund(self, id_or_prefix: str, to: str = "") -> RefundView:
        await self._trouble()
        job = self._find(id_or_prefix)
        if to == "nobody":
            raise ViewError("a refund goes to a lightning address or an invoice")
        return replace(REFUNDED, job=job.id) if to else replace(REFUND, job=job.id, waits="the address is silent")

    async def write_off(self, id_or_prefix: str, reason: str) -> RefundView:
        await self._trouble()
        self.asked.append(reason)
        return replace(REFUND, job=self._find(id_or_prefix).id, money="written_off", due_msats=0)

    async def earnings(
        self, since: int | None, by: str, *, until: int | None = None, local: bool = False
    ) -> EarningsView:
        await self._trouble()
        self.asked.append((since, by))
        rows = (EarningsRow(NASTY, 2, STATUS.books),) if by != EarningsBy.TOTAL else ()
        return EarningsView(EarningsBy(by), 2, STATUS.books, since, rows, until)

    def announcement(self) -> AnnouncementView:
        return ANNOUNCED

    async def publish_announcement(self) -> AnnouncementView:
        await self._trouble()
        self.asked.append("publish")
        return replace(ANNOUNCED, confirmed_by="wss://relay.one")

    async def withdraw_announcement(self) -> AnnouncementView:
        await self._trouble()
        self.asked.append("withdraw")
        return AnnouncementView("withdrawn")

    async def pause(self, for_s: int | None = None, why: str = "", *, at_once: bool = False) -> OwnerLine:
        await self._trouble()
        self.asked.append(("pause", for_s, why, at_once))
        return self.owner

    async def resume(self, for_s: int | None = None, *, ignore_rules: bool = False) -> OwnerLine:
        await self._trouble()
        self.asked.append(("resume", for_s, ignore_rules))
        return self.owner

    async def drain(self, why: str = "", *, exits: bool = False) -> OwnerLine:
        await self._trouble()
        self.asked.append(("drain", why, exits))
        return self.owner

    async def reload(self) -> SettingsLine:
        await self._trouble()
        self.asked.append("reload")
        return self.reloaded

    def request_stop(self) -> None:
        self.stop_requested.set()

    def _find(self, id_or_prefix: str) -> JobView:
        found = [job for job in (*JOBS, TWIN) if job.id.startswith(id_or_prefix)]
        if not found:
            raise NotFound(f"no job starts with {id_or_prefix}")
        if len(found) > 1:
            raise Ambiguous(f"{len(found)} jobs start with {id_or_prefix}")
        return found[0]

    async def _trouble(self) -> None:
        if self.fault is not None:
            raise self.fault
        await anyio.sleep(self.pause_s)
