"""The way in: from an event a relay sent to a stored job or a counted refusal, cheapest check first.

Until a customer has paid, a request may cost bounded memory, one signature check and one budgeted reply. `offer` is
called by the relays' reading loops: it is synchronous, never raises on what a stranger sent, and only posts to the
store. A refused request is a counter and a remembered id, never a row; if it was addressed to us, its customer
gets one error reply within a global budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import structlog

from pylon.jobs import facts
from pylon.jobs.access import Access, check_access
from pylon.jobs.allowance import Allowance
from pylon.jobs.catalogue import Catalogue, Offer, promised_context
from pylon.jobs.credit import Credit
from pylon.jobs.engine import Engine
from pylon.jobs.kinds import parse_job
from pylon.jobs.policy import (
    Address,
    Counters,
    Drop,
    IntakePolicy,
    RateLimiter,
    SeenIds,
    TokenBucket,
    TopCounts,
    addressed_to,
    check_load,
    check_prompt,
    check_prompt_tokens,
    check_times,
    job_deadline,
)
from pylon.jobs.ports import Backend, BackendHealth, BackendState, Clock, Publisher
from pylon.jobs.pricing import Price, Quote, check_bid, quote
from pylon.jobs.quoting import fitting_tokens, quote_job
from pylon.jobs.recorder import Moved
from pylon.jobs.runner import Runner
from pylon.jobs.textgen import TextGeneration, TextJob
from pylon.nostr.event import Event, verify
from pylon.nostr.keys import SecretKey
from pylon.nostr.nip90 import (
    DELETION_KIND,
    BadRequest,
    Denial,
    ErrorPrefix,
    JobRequest,
    parse_deletion,
    parse_request,
)
from pylon.nostr.nip90_replies import error_draft
from pylon.store.records import Job
from pylon.text import printable

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class IntakeConfig:
    """What intake needs of the settings. `limit_bytes` is the largest frame relays take; times in seconds."""

    mode: facts.Mode = facts.Mode.PREPAY
    policy: IntakePolicy = field(default_factory=IntakePolicy)
    access: Access = field(default_factory=Access)
    job_timeout_s: int = 3_600
    max_pending: int = 256
    min_work_s: int = 30
    limit_bytes: int = 65_536
    customer_relays: int = 3
    relay_hint: str = ""


class _Refused(Exception):
    """Carries a denial, and our price when the bid is below it, out of the checks."""

    def __init__(self, denial: Denial, amount_msats: int | None = None) -> None:
        super().__init__(denial.info)
        self.denial = denial
        self.amount_msats = amount_msats


@dataclass(frozen=True, slots=True)
class Closed:
    """Why no job is taken: as the operator sees it, and what a customer is told."""

    shown: str
    told: str


@dataclass(frozen=True, slots=True)
class _Order:
    """A request that passed every check: what runs, on what, for how much."""

    request: JobRequest
    asked: TextGeneration
    offer: Offer
    quoted: Quote


class Intake:
    """Takes events from relays (`EventSink`) and turns the good ones into jobs."""

    def __init__(
        self,
        engine: Engine,
        runner: Runner,
        catalogue: Catalogue,
        backends: Callable[[str], Backend],
        publisher: Publisher,
        key: SecretKey,
        config: IntakeConfig,
        clock: Clock,
        payable: Callable[[], str | None] = lambda: None,
        credit: Credit | None = None,
        allowance: Allowance | None = None,
    ) -> None:
        self._engine = engine
        self._runner = runner
        self._catalogue = catalogue
        self._backends = backends
        self._publisher = publisher
        self._key = key
        self._config = config
        self._clock = clock
        self._payable = payable
        self._credit = credit
        self._allowance = allowance
        self._started_at = int(clock())
        self._fitting_tokens = fitting_tokens(config.limit_bytes)
        self._seen = SeenIds()
        self._customers = RateLimiter(config.policy.requests_per_customer_per_minute)
        self._everybody = TokenBucket(config.policy.requests_per_minute)
        self._replies = TokenBucket(config.policy.replies_per_minute)
        self._pending = 0
        self.access = config.access
        self.counters = Counters()
        self.missed_models = TopCounts()
        self.accepted = 0
        self.stopped: str | None = None
        self.held: Closed | None = None

    @property
    def closed(self) -> Closed | None:
        """Return why no job is taken now, or None: the daemon itself, its owner, or its disk."""
        if self.stopped is not None:
            return Closed(self.stopped, self.stopped)
        if self.held is not None:
            return self.held
        broken = "the database cannot be written"
        return None if self._engine.healthy else Closed(broken, broken)

    @property
    def paused(self) -> str | None:
        """Return why no job is taken now, as the operator sees it, or None."""
        closed = self.closed
        return None if closed is None else closed.shown

    def reconfigure(self, config: IntakeConfig, catalogue: Catalogue) -> None:
        """Take other rules and prices, for every request from now on; its mode of payment is the same."""
        policy, self._config = config.policy, config
        self._catalogue = catalogue
        self.access = config.access
        self._customers.change(policy.requests_per_customer_per_minute)
        self._everybody.change(policy.requests_per_minute)
        self._replies.change(policy.replies_per_minute)

    def remember(self, event_ids: Iterable[str]) -> None:
        """Count these requests as seen: they were accepted before a restart, and relays may send them again."""
        for event_id in event_ids:
            self._seen.add(event_id)

    # --- EventSink --------------------------------------------------------------------------------------------

    def offer(self, event: Event, relay_url: str) -> str | None:
        """Take an event; returns the drop's reason, or None when it was taken or properly refused."""
        if event.kind not in self._catalogue.kinds:
            return self._offer_deletion(event) if event.kind == DELETION_KIND else self._drop(Drop.UNWANTED_KIND)
        if event.id in self._seen:
            return self._drop(Drop.DUPLICATE)
        if not verify(event):
            return self._drop(Drop.BAD_SIGNATURE)
        if self._pending >= self._config.max_pending:
            # Not remembered: when the relay sends it again there may be room.
            return self._drop(Drop.INTAKE_FULL)
        self._seen.add(event.id)
        self._take(event)
        return None

    def _drop(self, reason: Drop) -> str:
        self.counters.add(reason)
        return reason.value

    # --- cancellations ----------------------------------------------------------------------------------------

    def _offer_deletion(self, event: Event) -> str | None:
        ids = [
            job_id
            for job_id in parse_deletion(event)
            if (job := self._engine.open_jobs.get(job_id)) is not None and job.customer == event.pubkey
        ]
        # Checked only when it would do something: a deletion of nothing of ours costs no signature check.
        if not ids:
            return self._drop(Drop.UNKNOWN_JOB)
        if not verify(event):
            return self._drop(Drop.BAD_SIGNATURE)
        for job_id in ids:
            self._engine.post(job_id, facts.Cancel(facts.CancelledBy.CUSTOMER))
        return None

    # --- requests ---------------------------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        now = self._clock()
        # Whom it is meant for must be known even when the rest cannot be read: only those addressed get an answer.
        address = addressed_to(event, self._key.public_hex)
        if address is Address.OTHER:
            self.counters.add(Drop.OTHER_PROVIDER)
            return
        if address is Address.BROADCAST and self.access.targeted_only:
            self.counters.add(Drop.NOT_TARGETED)
            return
        try:
            order = self._check(event, now)
        except BadRequest as error:
            self._refuse(event, address, error.denial, None, now)
        except _Refused as error:
            self._refuse(event, address, error.denial, error.amount_msats, now)
        else:
            self._accept(order, now)

    def _check(self, event: Event, now: float) -> _Order:
        policy = self._config.policy
        request = parse_request(event)
        _refuse_if(check_times(request, now, policy))
        if (closed := self.closed) is not None:
            raise _Refused(Denial(ErrorPrefix.PAUSED, f"no jobs are taken now: {closed.told}"))
        asked = parse_job(request)
        _refuse_if(check_access(event, self.access))
        self._check_rate(event.pubkey, now)
        offer = self._find_offer(asked, request.kind)
        load = self._engine.open_jobs.load(offer.name, event.pubkey)
        _refuse_if(check_load(load, policy, prepaid=self._config.mode is not facts.Mode.FREE))
        _refuse_if(check_prompt(asked.texts, policy))
        quoted = quote_job(
            offer,
            request.kind,
            asked,
            context_tokens=self._context(offer),
            most_tokens=self._fitting_tokens,
            free=self._config.mode is facts.Mode.FREE,
        )
        _refuse_if(check_prompt_tokens(quoted.input_tokens, policy))
        quoted = self._given_away(request.customer, quoted, now)
        if (denial := check_bid(quoted, request.bid_msats)) is not None:
            raise _Refused(denial, quoted.amount_msats)
        if quoted.amount_msats:
            self._check_owing(request)
            self._check_payable(request, now)
        return _Order(request, asked, offer, quoted)

    def _check_rate(self, customer: str, now: float) -> None:
        limit = self._config.policy.requests_per_customer_per_minute
        if not self._customers.take(customer, now):
            raise _Refused(Denial(ErrorPrefix.RATE_LIMITED, f"at most {limit} requests a minute: wait"))
        if not self._everybody.take(now):
            raise _Refused(Denial(ErrorPrefix.RATE_LIMITED, "too many requests by everybody together: wait"))

    def _check_owing(self, request: JobRequest) -> None:
        owing = None if self._credit is None else self._credit.owing(request.customer)
        if owing is not None:
            raise _Refused(Denial(ErrorPrefix.UNPAID, f"job {owing} was taken on credit: pay it first"))

    def _check_payable(self, request: JobRequest, now: float) -> None:
        if (why := self._payable()) is not None:
            raise _Refused(Denial(ErrorPrefix.PAYMENT_UNAVAILABLE, why))
        deadline_at = job_deadline(int(now), self._config.job_timeout_s, request.expires_at)
        if deadline_at - now < 2 * self._config.min_work_s:
            raise _Refused(Denial(ErrorPrefix.EXPIRED, "the request expires too soon to be paid and worked on"))

    def _find_offer(self, asked: TextGeneration, kind: int) -> Offer:
        offer = self._catalogue.find(asked.model, kind)
        if offer is None:
            self.missed_models.add(printable(asked.model or "", limit=64))
            raise _Refused(Denial(ErrorPrefix.UNSUPPORTED_MODEL, "the model asked for is not offered here"))
        if not self._runner.can_serve(offer.name):
            raise _Refused(Denial(ErrorPrefix.BACKEND_UNAVAILABLE, self._unable(offer)))
        return offer

    def _unable(self, offer: Offer) -> str:
        """Return why no backend of an offer can serve, fit for the customer."""
        states = [self._backends(route.backend).state() for route in offer.routes]
        if all(state.health is BackendHealth.DOWN for state in states):
            return "the model's server is down: try later"
        if any(state.models for state in states) and not any(_lists(state, offer) for state in states):
            return "the model's server does not have it now"
        return "the model's server keeps failing: try later"

    def _context(self, offer: Offer) -> int | None:
        return promised_context(
            offer, {route.backend: self._backends(route.backend).state() for route in offer.routes}
        )

    def _given_away(self, customer: str, quoted: Quote, now: float) -> Quote:
        """Return the quote, of nothing within what is given away in a day."""
        if self._allowance is None:
            return quoted
        covered = self._allowance.covers(customer, quoted.output_tokens, now)
        if self._config.mode is facts.Mode.FREE and not covered:
            sentence = "what is given away in a day is used up: come back tomorrow"
            raise _Refused(Denial(ErrorPrefix.FREE_LIMIT, sentence))
        return quote(Price(), quoted.input_tokens, quoted.output_tokens) if covered else quoted

    # --- outcomes ---------------------------------------------------------------------------------------------

    def _accept(self, order: _Order, now: float) -> None:
        request, offer = order.request, order.offer
        mode = self._mode(order, now)
        deadline_at = job_deadline(int(now), self._config.job_timeout_s, request.expires_at)
        may_start = mode is not facts.Mode.PREPAY
        backend = self._runner.try_take(offer.name, request.customer) if may_start else None
        job = Job(
            id=request.id,
            customer=request.customer,
            kind=request.kind,
            backend=backend or offer.backend,
            model=offer.name,
            price_msats=order.quoted.amount_msats,
            max_tokens=order.quoted.output_tokens,
            accepted_at=int(now),
            deadline_at=deadline_at,
            relays=request.relays[: self._config.customer_relays],
        )
        self._pending += 1
        credit = self._credit if mode is facts.Mode.POSTPAY else None
        if credit is not None:
            job = job.evolve(postpaid=True)
            credit.give(job)
        allowance = self._allowance if mode is facts.Mode.FREE else None
        given = allowance is not None and allowance.give(job)

        def undo() -> None:
            if credit is not None:
                credit.take_back(job)
            if allowance is not None and given:
                allowance.take_back(job.id)
            if backend is not None:
                self._runner.give_back(offer.name, backend, job.customer)

        def done(moved: Moved | None) -> None:
            self._pending -= 1
            if moved is None:
                self.counters.add(Drop.DUPLICATE)
                undo()
            else:
                self.accepted += 1

        def failed(error: BaseException) -> None:
            self._pending -= 1
            undo()
            log.error("job not stored", job=job.id, error=f"{type(error).__name__}: {error}")
            denial = Denial(ErrorPrefix.INTERNAL, "the job could not be stored: ask again later")
            self._refuse(request.event, addressed_to(request.event, self._key.public_hex), denial, None, now)

        text = TextJob(request.event, order.asked)
        self._engine.accept(job, text, mode, start=backend is not None, done=done, failed=failed)

    def _mode(self, order: _Order, now: float) -> facts.Mode:
        """Return how a job is paid for: on credit where that covers all it can cost, else beforehand."""
        request, mode = order.request, self._config.mode
        if not order.quoted.amount_msats:
            return facts.Mode.FREE
        if mode is not facts.Mode.POSTPAY:
            return mode
        # With a deadline of its own a stream could be had for nothing: it would end just before it is billed.
        own_deadline = request.expires_at is not None and request.expires_at < now + self._config.job_timeout_s
        # What is older than this process may have been refused before: its customer must want it still.
        stale = request.created_at < self._started_at
        if self._credit is None or own_deadline or stale:
            return facts.Mode.PREPAY
        covered = self._credit.covers(request.customer, order.quoted.amount_msats, now)
        return facts.Mode.POSTPAY if covered else facts.Mode.PREPAY

    def _refuse(self, event: Event, address: Address, denial: Denial, amount_msats: int | None, now: float) -> None:
        self.counters.add(denial.prefix)
        if address is not Address.TARGETED:
            return
        if not self._replies.take(now):
            self.counters.add(Drop.NO_REPLY_BUDGET)
            return
        draft = error_draft(
            event.id, event.pubkey, denial, amount_msats=amount_msats, relay_hint=self._config.relay_hint
        )
        self._publisher.publish_live(draft.sign(self._key, int(now)), ())


def _refuse_if(denial: Denial | None) -> None:
    if denial is not None:
        raise _Refused(denial)


def _lists(state: BackendState, offer: Offer) -> bool:
    return any(state.lists(route.backend_model) for route in offer.routes if route.backend == state.name)
