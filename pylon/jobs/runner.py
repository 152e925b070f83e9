"""Runs jobs: one lane a model, with slots on each backend that serves it; `router` says which one is next.

A slot is taken before the attempt is committed and given back when it ends, however it ends. A backend that fails
before its first token hands the attempt on to another one that is free. What an attempt says is `output`'s; the
runner reports it to the engine, and what became of it is the engine's word alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping

import anyio
import orjson
import structlog

from pylon.errors import describe_error
from pylon.jobs import facts
from pylon.jobs.catalogue import Offer
from pylon.jobs.engine import Engine
from pylon.jobs.kinds import read_text_job
from pylon.jobs.lanes import Attempt, Lane, Place, Run, RunnerConfig, Speed
from pylon.jobs.output import OutputWriter
from pylon.jobs.policy import OutputBudget
from pylon.jobs.ports import (
    Backend,
    BackendBusy,
    BackendError,
    BackendHealth,
    BackendRefused,
    BackendUnavailable,
    Clock,
    ModelMissing,
    Publisher,
)
from pylon.jobs.router import Circuit, can_serve, choose
from pylon.jobs.textgen import TextJob, to_generation
from pylon.nostr.event import parse_event
from pylon.nostr.keys import SecretKey
from pylon.nostr.nip90 import ErrorPrefix
from pylon.store.records import Job, Work
from pylon.tasks import Crew
from pylon.text import printable

log = structlog.get_logger(__name__)


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
        self._config = config
        self._clock = clock
        self._monotonic = monotonic
        self._writer = OutputWriter(engine, key, publisher, config, clock, monotonic)
        self._circuits = {name: Circuit(config.circuit) for name in backends}
        self._lanes = {offer.name: self._make_lane(offer) for offer in offers}
        self._running: dict[str, Run] = {}
        self._of_customer: Counter[str] = Counter()  # slots taken; strangers choose the keys: none at 0 stays
        self._crew = Crew()
        self._check_now = {name: anyio.Event() for name in backends}
        self._draining = False
        self._held = False
        self._put_back = ""  # why what was about to start when it was held is put back too
        self._idle = anyio.Event()

    # --- what others look at ----------------------------------------------------------------------------------

    @property
    def lanes(self) -> Mapping[str, Lane]:
        """Return the lanes by the offered models' names."""
        return self._lanes

    def circuit_open_s(self, backend: str) -> float:
        """Return for how long a backend gets no work because it failed too often; 0 when it gets some."""
        return self._circuits[backend].open_for_s(self._monotonic())

    def can_serve(self, model: str) -> bool:
        """Tell whether a job may be promised: some backend that serves the model is not known to be unable."""
        return any(can_serve(place, self._monotonic()) for place in self._lanes[model].places)

    def eta_s(self, job: Job) -> int:
        """Estimate how long a job takes from payment on, those before it included; 0 before any was measured."""
        lane = self._lanes.get(job.model)
        return 0 if lane is None else lane.eta_s(job.max_tokens)

    def expect(self, speeds: Mapping[tuple[str, str], Speed]) -> None:
        """Take what was measured by a bench, by backend and the model's name there, until jobs tell better."""
        for lane in self._lanes.values():
            for place in lane.places:
                place.expected = speeds.get((place.name, place.backend_model))

    def try_take(self, model: str, customer: str) -> str | None:
        """Take a slot for a job that would otherwise wait for nobody, and return its backend; None when there is
        none. It is given back with `give_back`."""
        lane = self._lanes[model]
        if self._starts_nothing or lane.queue or not self._may_run(customer):
            return None
        place = choose(lane.places, self._monotonic())
        if place is None:
            return None
        self._take(place, customer)
        return place.name

    def give_back(self, model: str, backend: str, customer: str) -> None:
        """Give back a slot whose attempt was never committed."""
        place = self._lanes[model].place(backend)
        assert place is not None
        place.circuit.gave_up()
        self._leave(self._lanes[model], place, customer)

    # --- running ----------------------------------------------------------------------------------------------

    def reconfigure(self, config: RunnerConfig, offers: tuple[Offer, ...]) -> None:
        """Take other rules, and what is sold from now on; an offer that was there before has the same routes.

        A model that is no longer sold keeps its lane: jobs that were promised are done.
        """
        self._config = config
        self._writer.reconfigure(config)
        sold = {offer.name: offer for offer in offers}
        for name, lane in self._lanes.items():
            lane.sold = name in sold
            lane.offer = sold.get(name, lane.offer)
        self._lanes |= {name: self._make_lane(offer) for name, offer in sold.items() if name not in self._lanes}
        for lane in self._lanes.values():
            self._pump(lane)  # a customer's share may have grown

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Run attempts and watch the backends' health until cancelled."""
        # What is committed after the crew has stopped working is found again on the next start.
        async with self._crew.working() as tasks:
            tasks.start_soon(self._announce)
            for backend in self._backends.values():
                tasks.start_soon(self._watch_health, backend)
            task_status.started()

    def start_nothing_more(self) -> None:
        """Leave what waits where it is, from now on."""
        self._draining = True

    async def drain(self) -> None:
        """Start nothing more, and return when the last attempt, or start of one, that was under way has ended."""
        self.start_nothing_more()
        await self.empty()

    async def empty(self) -> None:
        """Return when no attempt, or start of one, is under way."""
        while any(lane.busy for lane in self._lanes.values()):
            await self._idle.wait()

    def hold(self) -> None:
        """Leave what waits where it is, until `release`; what runs goes on."""
        self._held = True

    def release(self) -> None:
        """Start what waits again."""
        self._put_back = ""
        if self._held:
            self._held = False
            for lane in self._lanes.values():
                self._pump(lane)

    def put_back(self, sentence: str) -> None:
        """Hold, and have the attempts under way broken off and their jobs put back into the queue."""
        self.hold()
        self._put_back = sentence
        for run in self._running.values():
            self._engine.post(run.job.id, facts.PutBack(run.job.attempts, sentence))

    @property
    def _starts_nothing(self) -> bool:
        return self._draining or self._held

    # --- Workplace --------------------------------------------------------------------------------------------

    def enqueue(self, job: Job) -> None:
        """Put a queued job into its lane; one that failed before waits a little longer each time."""
        lane = self._lanes.get(job.model)
        if lane is None:
            self._crew.start(self._refuse, job.id, f"the model {job.model} is no longer offered")
        elif job.attempts and job.work is Work.QUEUED:
            self._crew.start(self._enqueue_later, lane, job)
        else:
            lane.queue[job.id] = job.customer
            self._pump(lane)

    def run_attempt(self, job: Job, text: TextJob | None) -> None:
        """Run an attempt that is committed; its slot was taken before."""
        lane = self._lanes.get(job.model)
        place = None if lane is None else lane.place(job.backend)
        if lane is None or place is None:
            return  # a model that is no longer offered: `_refuse` ends the attempt
        run = Run(job, place, self._monotonic())
        run.worker = self._crew.start(self._attempt, lane, run, text)
        if run.worker is not None:
            self._running[job.id] = run
            if self._put_back:
                self._engine.post(job.id, facts.PutBack(job.attempts, self._put_back))

    def stop(self, job_id: str) -> None:
        """Take a job out of its lane, or cancel its attempt; the backend's slot is freed."""
        for lane in self._lanes.values():
            lane.queue.pop(job_id, None)
        run = self._running.get(job_id)
        if run is not None and run.worker is not None:
            run.worker.cancel()

    # --- lanes ------------------------------------------------------------------------------------------------

    def _make_lane(self, offer: Offer) -> Lane:
        return Lane(
            offer,
            tuple(
                Place(route, self._backends[route.backend], self._circuits[route.backend]) for route in offer.routes
            ),
        )

    def _may_run(self, customer: str) -> bool:
        """Tell whether one more job of a customer may run beside those that do."""
        limit = self._config.running_per_customer
        return limit is None or self._of_customer[customer] < limit

    def _take(self, place: Place, customer: str) -> None:
        place.busy += 1
        place.circuit.began()
        self._of_customer[customer] += 1

    def _leave(self, lane: Lane, place: Place, customer: str) -> None:
        place.busy -= 1
        self._of_customer[customer] -= 1
        if not self._of_customer[customer]:
            del self._of_customer[customer]
        if not lane.busy:
            idle, self._idle = self._idle, anyio.Event()
            idle.set()
        self._pump(lane)
        if self._config.running_per_customer is not None:
            for other in self._lanes.values():  # where this customer's jobs may have waited for this one
                self._pump(other)

    def _pump(self, lane: Lane) -> None:
        """Start what may start, in the order of the queue; who runs as many as allowed is passed over."""
        while lane.queue and not self._starts_nothing:
            place = choose(lane.places, self._monotonic())
            found = next((each for each in lane.queue.items() if self._may_run(each[1])), None)
            if place is None or found is None:
                return
            job_id, customer = found
            if self._crew.start(self._start, lane, place, job_id, customer) is None:
                return
            del lane.queue[job_id]
            self._take(place, customer)

    async def _start(self, lane: Lane, place: Place, job_id: str, customer: str) -> None:
        job = await self._engine.apply(job_id, facts.Started(place.name))
        if job is None or job.work is not Work.RUNNING:
            self.give_back(lane.offer.name, place.name, customer)  # it was cancelled or expired on the way

    async def _enqueue_later(self, lane: Lane, job: Job) -> None:
        await anyio.sleep(self._config.retry_delay_s * 2 ** (job.attempts - 1))
        now = self._engine.open_jobs.get(job.id)
        if now is not None and now.work is Work.QUEUED:
            lane.queue[job.id] = job.customer
            self._pump(lane)

    async def _refuse(self, job_id: str, sentence: str) -> None:
        """Fail a job that no lane can run: an attempt begins and ends, so the books say what happened."""
        job = await self._engine.apply(job_id, facts.Started())
        if job is not None and job.work is Work.RUNNING:
            await self._engine.apply(job_id, facts.AttemptFailed(job.attempts, sentence, retryable=False))

    async def _watch_health(self, backend: Backend) -> None:
        while True:
            try:
                ready = (await backend.check()).health is BackendHealth.READY
            except Exception as error:  # noqa: BLE001 - a plug-in that breaks its word must not end the daemon
                ready = False
                log.error("a backend's check broke", backend=backend.name, error=describe_error(error))
            if ready:
                for lane in self._lanes.values():
                    if lane.place(backend.name) is not None:
                        self._pump(lane)
            pause_s = self._config.health_interval_s if ready else self._config.health_interval_down_s
            with anyio.move_on_after(pause_s):
                await self._check_now[backend.name].wait()
            self._check_now[backend.name] = anyio.Event()

    # --- one attempt ------------------------------------------------------------------------------------------

    async def _attempt(self, lane: Lane, run: Run, text: TextJob | None) -> None:
        try:
            await self._work(lane, run, text)
        finally:
            if self._running.get(run.job.id) is run:  # what was put back may run again already
                del self._running[run.job.id]
            run.place.circuit.gave_up()
            self._leave(lane, run.place, run.job.customer)

    async def _announce(self) -> None:
        """Say `processing` for every attempt that takes a while; a result that comes at once says it all."""
        while True:
            await anyio.sleep(self._config.announce_after_s / 2)
            before = self._monotonic() - self._config.announce_after_s
            for run in self._running.values():
                if not run.announced and run.started <= before:
                    run.announced = True
                    self._writer.announce(run.job)

    async def _work(self, lane: Lane, run: Run, text: TextJob | None) -> None:
        job, place, failed = run.job, run.place, set[str]()
        while True:
            attempt: Attempt | None = None
            try:
                if text is None:
                    text = await self._load(job)
                asked = to_generation(text.asked, place.backend_model, job.max_tokens)
                budget = OutputBudget(self._config.limit_bytes)
                attempt = Attempt(job, text.event, lane, place, self._monotonic(), budget)
                output = await self._writer.write(attempt, asked)
            except BackendError as error:
                self._judge(place, error)
                detail = printable(error, limit=300)
                failed.add(place.name)
                other = None if attempt is None or attempt.parts else self._other(lane, error, failed)
                if other is not None:
                    log.warning("attempt goes on elsewhere", job=job.id, backend=other.name, error=detail)
                    if await self._move_on(lane, run, other):
                        place = other
                        continue
                    return
                if isinstance(error, BackendBusy) and self._may_wait(run, error):
                    log.info("attempt waits", job=job.id, backend=place.name, seconds=error.retry_after_s)
                    run.waited_s += error.retry_after_s
                    await anyio.sleep(error.retry_after_s)
                    failed.clear()
                    continue
                log.warning("attempt failed", job=job.id, attempt=job.attempts, error=detail)
                told = _told_to_customer(error)
                fact = facts.AttemptFailed(job.attempts, told, retryable=error.retryable, detail=detail)
                await self._engine.apply(job.id, fact)
            except Exception as error:  # noqa: BLE001 - a fault of ours must end the attempt, not the daemon
                detail = printable(f"{type(error).__name__}: {error}", limit=300)
                log.error("attempt broke", job=job.id, error=detail)
                broke = facts.AttemptFailed(job.attempts, "an internal error", True, ErrorPrefix.INTERNAL, detail)
                await self._engine.apply(job.id, broke)
            else:
                place.circuit.succeeded()
                # Not waited for: the slot is free for the next job while this result is stored.
                self._engine.post(job.id, output)
            return

    def _judge(self, place: Place, error: BackendError) -> None:
        """Tell the circuit what an error says of the backend: its own failure is only one that may pass."""
        if isinstance(error, BackendBusy):
            rest_s = min(error.retry_after_s, self._config.longest_rest_s)
            place.circuit.rests(self._monotonic() + rest_s)
            return
        if isinstance(error, BackendUnavailable):
            place.circuit.failed(self._monotonic())
        else:
            place.circuit.succeeded()
        self._check_now[place.name].set()

    def _may_wait(self, run: Run, busy: BackendBusy) -> bool:
        """Tell whether an attempt should wait for its backend: not for long, and not past the job's deadline."""
        ends_at = self._clock() + busy.retry_after_s
        return run.waited_s + busy.retry_after_s <= self._config.longest_wait_s and ends_at < run.job.deadline_at

    def _other(self, lane: Lane, error: BackendError, failed: set[str]) -> Place | None:
        """Return where an attempt without output may go on: a request that is refused is refused everywhere."""
        if not isinstance(error, BackendUnavailable | ModelMissing):
            return None
        return choose(lane.places, self._monotonic(), without=failed)

    async def _move_on(self, lane: Lane, run: Run, other: Place) -> bool:
        """Move a run to another place, committed before that backend is called; False when the job has ended."""
        self._take(other, run.job.customer)
        before, run.place = run.place, other
        self._leave(lane, before, run.job.customer)
        job = await self._engine.apply(run.job.id, facts.Rerouted(run.job.attempts, other.name))
        if job is None or job.work is not Work.RUNNING:
            return False
        run.job = job
        return True

    async def _load(self, job: Job) -> TextJob:
        stored = await self._engine.query(lambda tx: tx.request_json(job.id))
        if stored is None:
            raise LookupError("the request's text is gone")
        return read_text_job(parse_event(orjson.loads(stored)))


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
