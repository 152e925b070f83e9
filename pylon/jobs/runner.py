"""Runs jobs: one lane per (backend, model), as many attempts at once as the lane has slots.

A slot is taken before the attempt is committed and given back when it ends, however it ends. The attempt streams
from the backend, sends partials at a bounded rate, counts the output against what fits a relay, signs the result
and reports it to the engine; what became of it is the engine's word alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

import anyio
import orjson
import structlog

from pylon.jobs import facts
from pylon.jobs.catalogue import Offer
from pylon.jobs.engine import Engine
from pylon.jobs.lanes import Attempt, Lane, Run
from pylon.jobs.openjobs import LaneKey
from pylon.jobs.policy import OutputBudget
from pylon.jobs.ports import (
    Backend,
    BackendError,
    BackendHealth,
    BackendRefused,
    BackendUnavailable,
    Clock,
    Delta,
    Finished,
    FinishReason,
    GenerationRequest,
    ModelMissing,
    Publisher,
)
from pylon.jobs.textgen import TextJob, read_text_job, to_generation
from pylon.nostr.event import Draft, parse_event
from pylon.nostr.keys import SecretKey
from pylon.nostr.nip90 import ErrorPrefix, FeedbackStatus
from pylon.nostr.nip90_fit import fit_result
from pylon.nostr.nip90_replies import feedback_draft, partial_draft
from pylon.store.records import Job, Money, Work
from pylon.tasks import Crew
from pylon.text import printable

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RunnerConfig:
    """What running needs of the settings; times in seconds. `limit_bytes` is the largest frame relays take."""

    limit_bytes: int = 65_536
    partial_interval_s: float = 0.5
    partial_min_chars: int = 16
    retry_delay_s: float = 1.0
    health_interval_s: float = 5.0
    health_interval_down_s: float = 1.0
    announce_after_s: float = 0.2
    relay_hint: str = ""


class Runner:
    """The workplace: lanes, slots, attempts."""

    def __init__(
        self,
        engine: Engine,
        backends: Mapping[str, Backend],
        offers: tuple[Offer, ...],
        key: SecretKey,
        publisher: Publisher,
        config: RunnerConfig,
        clock: Clock,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._backends = backends
        self._key = key
        self._publisher = publisher
        self._config = config
        self._clock = clock
        self._monotonic = monotonic
        self._lanes = {(o.backend, o.name): Lane(o, backends[o.backend]) for o in offers}
        self._running: dict[str, Run] = {}
        self._crew = Crew()
        self._check_now = {name: anyio.Event() for name in backends}
        self._draining = False
        self._idle = anyio.Event()

    # --- what others look at ----------------------------------------------------------------------------------

    @property
    def lanes(self) -> Mapping[LaneKey, Lane]:
        """Return the lanes by name."""
        return self._lanes

    def eta_s(self, job: Job) -> int:
        """Estimate how long a job takes from payment on, those before it included; 0 before any was run."""
        lane = self._lanes.get((job.backend, job.model))
        if lane is None or lane.attempt_s is None:
            return 0
        ahead = lane.busy + len(lane.queue)
        return max(1, round((ahead // lane.offer.slots + 1) * lane.attempt_s))

    def try_take(self, key: LaneKey) -> bool:
        """Take a slot for a job that would otherwise wait for nobody; it is given back with `give_back`."""
        lane = self._lanes[key]
        if self._draining or lane.queue or lane.free <= 0 or not lane.ready:
            return False
        lane.busy += 1
        return True

    def give_back(self, key: LaneKey) -> None:
        """Give back a slot whose attempt was never committed."""
        lane = self._lanes[key]
        lane.busy -= 1
        if not lane.busy:
            self._idle.set()
        self._pump(lane)

    # --- running ----------------------------------------------------------------------------------------------

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Run attempts and watch the backends' health until cancelled."""
        # What is committed after the crew has stopped working is found again on the next start.
        async with self._crew.working() as tasks:
            tasks.start_soon(self._announce)
            for backend in self._backends.values():
                tasks.start_soon(self._watch_health, backend)
            task_status.started()

    async def drain(self) -> None:
        """Start nothing more, and return when the last attempt, or start of one, that was under way has ended."""
        self._draining = True
        while any(lane.busy for lane in self._lanes.values()):
            self._idle = anyio.Event()
            await self._idle.wait()

    # --- Workplace --------------------------------------------------------------------------------------------

    def enqueue(self, job: Job) -> None:
        """Put a queued job into its lane; one that failed before waits a little longer each time."""
        lane = self._lanes.get((job.backend, job.model))
        if lane is None:
            self._crew.start(self._refuse, job.id, f"the model {job.model} is no longer offered")
        elif job.attempts and job.work is Work.QUEUED:
            self._crew.start(self._enqueue_later, lane, job)
        else:
            lane.queue[job.id] = None
            self._pump(lane)

    def run_attempt(self, job: Job, text: TextJob | None) -> None:
        """Run an attempt that is committed; its slot was taken before."""
        lane = self._lanes.get((job.backend, job.model))
        if lane is None:
            return  # a model that is no longer offered: `_refuse` ends the attempt
        run = Run(job, self._monotonic())
        run.worker = self._crew.start(self._attempt, lane, run, text)
        if run.worker is not None:
            self._running[job.id] = run

    def stop(self, job_id: str) -> None:
        """Take a job out of its lane, or cancel its attempt; the backend's slot is freed."""
        for lane in self._lanes.values():
            lane.queue.pop(job_id, None)
        run = self._running.get(job_id)
        if run is not None and run.worker is not None:
            run.worker.cancel()

    # --- lanes ------------------------------------------------------------------------------------------------

    def _pump(self, lane: Lane) -> None:
        """Start what may start."""
        while lane.queue and lane.free > 0 and not self._draining and lane.ready:
            if self._crew.start(self._start, lane, next(iter(lane.queue))) is None:
                return
            lane.queue.popitem(last=False)
            lane.busy += 1

    async def _start(self, lane: Lane, job_id: str) -> None:
        job = await self._engine.apply(job_id, facts.Started())
        if job is None or job.work is not Work.RUNNING:
            self.give_back(lane.key)  # it was cancelled or expired on the way

    async def _enqueue_later(self, lane: Lane, job: Job) -> None:
        await anyio.sleep(self._config.retry_delay_s * 2 ** (job.attempts - 1))
        now = self._engine.open_jobs.get(job.id)
        if now is not None and now.work is Work.QUEUED:
            lane.queue[job.id] = None
            self._pump(lane)

    async def _refuse(self, job_id: str, sentence: str) -> None:
        """Fail a job that no lane can run: an attempt begins and ends, so the books say what happened."""
        job = await self._engine.apply(job_id, facts.Started())
        if job is not None and job.work is Work.RUNNING:
            await self._engine.apply(job_id, facts.AttemptFailed(job.attempts, sentence, retryable=False))

    async def _watch_health(self, backend: Backend) -> None:
        while True:
            state = await backend.check()
            ready = state.health is BackendHealth.READY
            if ready:
                for lane in self._lanes.values():
                    if lane.backend is backend:
                        self._pump(lane)
            pause_s = self._config.health_interval_s if ready else self._config.health_interval_down_s
            with anyio.move_on_after(pause_s):
                await self._check_now[backend.name].wait()
            self._check_now[backend.name] = anyio.Event()

    # --- one attempt ------------------------------------------------------------------------------------------

    async def _attempt(self, lane: Lane, run: Run, text: TextJob | None) -> None:
        try:
            await self._work(lane, run.job, text)
        finally:
            del self._running[run.job.id]
            self.give_back(lane.key)

    async def _announce(self) -> None:
        """Say `processing` for every attempt that takes a while; a result that comes at once says it all."""
        while True:
            await anyio.sleep(self._config.announce_after_s / 2)
            before = self._monotonic() - self._config.announce_after_s
            for run in self._running.values():
                if not run.announced and run.started <= before:
                    run.announced = True
                    self._publish(
                        run.job,
                        feedback_draft(
                            run.job.id,
                            run.job.customer,
                            FeedbackStatus.PROCESSING,
                            relay_hint=self._config.relay_hint,
                        ),
                    )

    def _publish(self, job: Job, draft: Draft) -> None:
        self._publisher.publish_live(draft.sign(self._key, int(self._clock())), job.relays)

    async def _work(self, lane: Lane, job: Job, text: TextJob | None) -> None:
        try:
            if text is None:
                text = await self._load(job)
            asked = to_generation(text.asked, lane.offer.backend_model, job.max_tokens)
            budget = OutputBudget(self._config.limit_bytes)
            output = await self._generate(Attempt(job, text.event, lane, self._monotonic(), budget), asked)
        except BackendError as error:
            self._check_now[lane.backend.name].set()
            detail = printable(error, limit=300)
            log.warning("attempt failed", job=job.id, attempt=job.attempts, error=detail)
            told = _told_to_customer(error)
            failed = facts.AttemptFailed(job.attempts, told, retryable=error.retryable, detail=detail)
            await self._engine.apply(job.id, failed)
        except Exception as error:  # noqa: BLE001 - a fault of ours must end the attempt, not the daemon
            detail = printable(f"{type(error).__name__}: {error}", limit=300)
            log.error("attempt broke", job=job.id, error=detail)
            broke = facts.AttemptFailed(job.attempts, "an internal error", True, ErrorPrefix.INTERNAL, detail)
            await self._engine.apply(job.id, broke)
        else:
            # Not waited for: the slot is free for the next job while this result is stored.
            self._engine.post(job.id, output)

    async def _load(self, job: Job) -> TextJob:
        stored = await self._engine.query(lambda tx: tx.request_json(job.id))
        if stored is None:
            raise LookupError("the request's text is gone")
        return read_text_job(parse_event(orjson.loads(stored)))

    async def _generate(self, attempt: Attempt, asked: GenerationRequest) -> facts.Output:
        finished = None
        attempt.last_partial = attempt.started
        async with aclosing(attempt.lane.backend.generate(asked)) as chunks:
            async for chunk in chunks:
                if isinstance(chunk, Finished):
                    finished = chunk
                    break
                await self._take(attempt, chunk)
                if attempt.budget.exhausted:
                    break
        if finished is None and not attempt.budget.exhausted:
            raise BackendUnavailable(f"{attempt.lane.backend.name} ended its answer before it was finished")
        if finished is None:
            # Cut where no more fits a relay's frame: what it used is estimated.
            finished = Finished(FinishReason.LENGTH, 0, len(attempt.parts), estimated=True)
        return self._output(attempt, finished)

    async def _take(self, attempt: Attempt, chunk: Delta) -> None:
        text = attempt.budget.take(chunk.text)
        if not text:
            return
        now = self._monotonic()
        if attempt.first_token is None:
            attempt.first_token = now
        attempt.parts.append(text)
        attempt.unsent_chars += len(text)
        due = now - attempt.last_partial >= self._config.partial_interval_s
        if due and attempt.unsent_chars >= self._config.partial_min_chars:
            await self._send_partial(attempt, now)

    async def _send_partial(self, attempt: Attempt, now: float) -> None:
        job = attempt.job
        if not attempt.partials and job.money is Money.SETTLED:
            # From the first partial on a cancelling customer's charge stands: that must be stored before it leaves.
            await self._engine.apply(job.id, facts.PartialSent())
        attempt.partials += 1
        attempt.unsent_chars = 0
        attempt.last_partial = now
        draft = partial_draft(
            job.id,
            job.customer,
            attempt.text,
            number=attempt.partials,
            attempt=job.attempts,
            relay_hint=self._config.relay_hint,
        )
        self._publish(job, draft)

    def _output(self, attempt: Attempt, finished: Finished) -> facts.Output:
        job = attempt.job
        draft = fit_result(
            attempt.event,
            attempt.text,
            limit_bytes=self._config.limit_bytes,
            amount_msats=job.price_msats or None,
            relay_hint=self._config.relay_hint,
        )
        event = draft.sign(self._key, int(self._clock()))
        took_s = self._monotonic() - attempt.started
        attempt.lane.ran(took_s)
        first_s = (attempt.first_token or attempt.started) - attempt.started
        usage = facts.Usage(
            prompt_tokens=finished.prompt_tokens,
            output_tokens=finished.output_tokens,
            estimated=finished.estimated,
            first_token_ms=round(first_s * 1000),
            duration_ms=round(took_s * 1000),
        )
        return facts.Output(job.attempts, event.id, event.to_json(), usage)


def _told_to_customer(error: BackendError) -> str:
    """Return why an attempt failed, without the backend's own words: they name the operator's hosts and models."""
    match error:
        case ModelMissing():
            return "the model's server does not have the model any more"
        case BackendRefused():
            return (
                "the model's server refused the request: the prompt may be too long, or a parameter not supported"
            )
        case _:
            return "the model's server could not be reached, or broke off"
