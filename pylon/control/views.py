"""What the control API answers, as frozen values, and the protocol by which the daemon provides them.

`pylon status` imports this module, so it stays on the standard library: states of other parts travel as their
plain words. Times are unix seconds, money is msats. Text in here may come from strangers: whoever prints it
passes it through `pylon.text.printable`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, Final

from pylon.control.owner_line import OwnerLine

API_VERSION: Final = 1
"""Goes up when an answer changes so that an older client would misread it; new fields do not raise it."""

MIN_PREFIX: Final = 6
"""How many hex digits of a job's id name it at least."""

MAX_REASON: Final = 500
"""Characters of the reason for writing a refund off."""

MAX_DESTINATION: Final = 2_100
"""Characters of an address or invoice to pay to."""

MAX_JOBS: Final = 500
"""How many jobs one listing holds at most."""


class ViewError(Exception):
    """A question that cannot be answered; the message is one sentence. `code` is its word in the API."""

    code: ClassVar[str] = "refused"
    http_status: ClassVar[int] = 409


class NotFound(ViewError):
    """Nothing has this id."""

    code = "not-found"
    http_status = 404


class Ambiguous(ViewError):
    """More than one job's id starts like this."""

    code = "ambiguous"


class BadQuery(ViewError):
    """The question itself is wrong (a limit that is no number, a state that does not exist)."""

    code = "bad-query"
    http_status = 400


class DaemonState(StrEnum):
    """The daemon in one word."""

    STARTING = "starting"  # not every part has reported yet
    READY = "ready"  # takes jobs
    DEGRADED = "degraded"  # runs, but something that it needs does not: see the reasons
    PAUSED = "paused"  # takes and starts no jobs: the owner wants the machine, or a rule of `[owner]` does
    DRAINING = "draining"  # takes no jobs and finishes what it has
    STOPPING = "stopping"  # takes no more jobs and ends when what runs is safe


class EarningsBy(StrEnum):
    """How earnings are split into rows."""

    TOTAL = "total"
    DAY = "day"  # by the time of settlement
    MODEL = "model"
    CUSTOMER = "customer"
    KIND = "kind"


@dataclass(frozen=True, slots=True)
class RelayLine:
    """One relay, counted since the daemon started. `latency_ms` is None until a ping came back."""

    url: str
    status: str
    authenticated: bool = False
    detail: str = ""
    received: int = 0
    sent: int = 0
    accepted: int = 0
    refused: int = 0
    dropped: int = 0
    reconnects: int = 0
    latency_ms: float | None = None


@dataclass(frozen=True, slots=True)
class BackendLine:
    """One backend: its health, the models it really lists, and how many of its slots are busy."""

    name: str
    kind: str
    health: str
    detail: str = ""
    models: tuple[str, ...] = ()
    slots: int = 0
    busy: int = 0
    memory_bytes: int | None = None  # what its models take now, None where it does not tell
    keeps_memory: bool = False  # it cannot be told to give that back


@dataclass(frozen=True, slots=True)
class ModelLine:
    """One model on offer with its price in msats; `available` tells whether a ready backend has it now."""

    name: str
    backend: str
    base_msats: int
    per_1k_input_msats: int
    per_1k_output_msats: int
    aliases: tuple[str, ...] = ()
    available: bool = True


@dataclass(frozen=True, slots=True)
class WalletLine:
    """The wallet; `network` is the BOLT11 network of its invoices."""

    kind: str
    ready: bool
    detail: str = ""
    network: str = ""


@dataclass(frozen=True, slots=True)
class QueueLine:
    """One (backend, model): jobs waiting, running, and slots promised to open invoices."""

    backend: str
    model: str
    queued: int
    running: int
    slots: int
    reserved: int = 0


@dataclass(frozen=True, slots=True)
class BooksLine:
    """Settled money, msats: `received = earned + owed + refunded + written_off`.

    `owed = in_work + refund_due + deposits`.
    """

    received_msats: int = 0
    earned_msats: int = 0
    owed_msats: int = 0
    in_work_msats: int = 0
    refund_due_msats: int = 0
    refunded_msats: int = 0
    refund_fees_msats: int = 0
    written_off_msats: int = 0
    deposits_msats: int = 0


@dataclass(frozen=True, slots=True)
class IntakeLine:
    """Job requests accepted since the start; `paused` says why none is taken now, or is empty."""

    accepted: int = 0
    paused: str = ""


@dataclass(frozen=True, slots=True)
class StoreLine:
    """The database."""

    healthy: bool
    detail: str = ""
    database_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ChangeLine:
    """One setting that changed, or would; None where it is not set. Never the value of a secret."""

    key: str
    before: str | None = None
    after: str | None = None

    @property
    def text(self) -> str:
        """The change in words."""
        before, after = ("not set" if each is None else each or "nothing" for each in (self.before, self.after))
        return f"{self.key}: {before} -> {after}"


@dataclass(frozen=True, slots=True)
class SettingsLine:
    """How the settings in force stand to the files, as last read at `read_at`.

    `error` is why that reading changed nothing, `applied` what it changed, `restart` what waits for a restart.
    """

    read_at: int
    error: str = ""
    applied: tuple[ChangeLine, ...] = ()
    restart: tuple[ChangeLine, ...] = ()


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """Everything `pylon status` shows."""

    version: str
    pid: int
    npub: str
    pubkey: str
    started_at: int
    uptime_s: int
    state: DaemonState
    payment_mode: str
    store: StoreLine
    state_reasons: tuple[str, ...] = ()
    relays: tuple[RelayLine, ...] = ()
    backends: tuple[BackendLine, ...] = ()
    models: tuple[ModelLine, ...] = ()
    wallet: WalletLine | None = None
    queue: tuple[QueueLine, ...] = ()
    jobs_by_state: dict[str, int] = field(default_factory=dict)  # "work/money" -> jobs
    books: BooksLine = field(default_factory=BooksLine)
    refused: dict[str, int] = field(default_factory=dict)  # reason -> requests, since the start
    missed_models: dict[str, int] = field(default_factory=dict)  # model asked for and not offered -> requests
    intake: IntakeLine = field(default_factory=IntakeLine)
    owner: OwnerLine = field(default_factory=OwnerLine)
    outbox_pending: int = 0
    dead_letters: int = 0
    settings: SettingsLine | None = None


@dataclass(frozen=True, slots=True)
class JobsQuery:
    """Which jobs to list, newest first; `after` is the id of the last job already seen."""

    work: str | None = None
    money: str | None = None
    limit: int = 50
    after: str | None = None


@dataclass(frozen=True, slots=True)
class JobView:
    """One job; `customer` is the npub, `work` and `money` are the states of `docs/lifecycle.md`."""

    id: str
    customer: str
    kind: int
    model: str
    work: str
    money: str
    price_msats: int
    attempts: int
    accepted_at: int
    deadline_at: int
    reason: str = ""
    result_id: str | None = None


@dataclass(frozen=True, slots=True)
class JournalLine:
    """One thing that happened to a job."""

    at: int
    text: str


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """One invoice of a job, in order of `number`."""

    number: int
    state: str
    amount_msats: int
    created_at: int
    expires_at: int
    payment_hash: str | None = None
    bolt11: str | None = None


@dataclass(frozen=True, slots=True)
class AttemptLine:
    """One run of a job; `outcome` is empty while it runs."""

    number: int
    started_at: int
    ended_at: int | None = None
    outcome: str = ""


@dataclass(frozen=True, slots=True)
class JobDetail:
    """One job with its history. `request_json` (the customer's plaintext) is None unless it was asked for."""

    job: JobView
    journal: tuple[JournalLine, ...] = ()
    invoices: tuple[InvoiceLine, ...] = ()
    attempts: tuple[AttemptLine, ...] = ()
    request_json: str | None = None


@dataclass(frozen=True, slots=True)
class RefundLine:
    """One payment of a refund, or what was written off; `reason` tells why it failed or was written off."""

    number: int
    state: str
    amount_msats: int
    created_at: int
    fee_msats: int = 0
    destination: str = ""
    payment_hash: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RefundView:
    """What one job's customer is to get back, or got. `waits` says for what, while nothing is paid.

    `reason` is why the job was not done; `destination` where the refund goes, "" while nobody has said it.
    """

    job: str
    customer: str
    money: str
    due_msats: int
    reason: str = ""
    destination: str = ""
    source: str = ""
    ordered: bool = False
    waits: str = ""
    payments: tuple[RefundLine, ...] = ()


@dataclass(frozen=True, slots=True)
class EarningsRow:
    """Settled payments of one day, model, customer (the npub) or job kind."""

    label: str
    payments: int
    books: BooksLine


@dataclass(frozen=True, slots=True)
class EarningsView:
    """Settled payments since a time and before another (None: all), in total and split by `by`."""

    by: EarningsBy
    payments: int
    total: BooksLine
    since: int | None = None
    rows: tuple[EarningsRow, ...] = ()
    until: int | None = None


@dataclass(frozen=True, slots=True)
class AnnouncementView:
    """How the announcement stands (a word of `AnnounceState`), and the events published last, as JSON.

    `confirmed_by` is the first relay that has the announcement or its withdrawal, after one was asked for.
    """

    state: str
    events: tuple[str, ...] = ()
    confirmed_by: str | None = None
