"""What an attempt says: from a backend's chunks to partial results and the signed result.

Partials go out live at a bounded rate; the output is counted while it grows, so that the result surely fits a
relay's frame. A postpaid job's result carries its invoice, so it is made later, by the recorder.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing

from pylon.jobs import facts
from pylon.jobs.engine import Engine
from pylon.jobs.lanes import Attempt, RunnerConfig
from pylon.jobs.ports import (
    BackendUnavailable,
    Clock,
    Delta,
    Finished,
    FinishReason,
    GenerationRequest,
    Publisher,
)
from pylon.jobs.pricing import quote
from pylon.nostr.event import Draft
from pylon.nostr.keys import SecretKey
from pylon.nostr.nip90 import FeedbackStatus
from pylon.nostr.nip90_fit import fit_result
from pylon.nostr.nip90_replies import feedback_draft, partial_draft
from pylon.store.records import Job, Money


class OutputWriter:
    """Writes for all attempts of a runner; what one attempt has said so far lies in its `Attempt`."""

    def __init__(
        self,
        engine: Engine,
        key: SecretKey,
        publisher: Publisher,
        config: RunnerConfig,
        clock: Clock,
        monotonic: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._key = key
        self._publisher = publisher
        self._config = config
        self._clock = clock
        self._monotonic = monotonic

    def reconfigure(self, config: RunnerConfig) -> None:
        """Take other rules for partial results."""
        self._config = config

    def announce(self, job: Job) -> None:
        """Say `processing`, live only."""
        status, hint = FeedbackStatus.PROCESSING, self._config.relay_hint
        self._publish(job, feedback_draft(job.id, job.customer, status, relay_hint=hint))

    async def write(self, attempt: Attempt, asked: GenerationRequest) -> facts.Output | facts.Metered:
        """Return the signed result of one run on the attempt's backend, or what a postpaid one is billed for.

        Raises `BackendError`.
        """
        finished = None
        async with aclosing(attempt.place.backend.generate(asked)) as chunks:
            async for chunk in chunks:
                if isinstance(chunk, Finished):
                    finished = chunk
                    break
                await self._keep(attempt, chunk)
                if attempt.budget.exhausted:
                    break
        if finished is None and not attempt.budget.exhausted:
            raise BackendUnavailable(f"{attempt.place.name} ended its answer before it was finished")
        if finished is None:
            # Cut where no more fits a relay's frame: what it used is estimated.
            finished = Finished(FinishReason.LENGTH, 0, len(attempt.parts), estimated=True)
        return self._output(attempt, finished)

    async def _keep(self, attempt: Attempt, chunk: Delta) -> None:
        text = attempt.budget.take(chunk.text)
        if not text:
            return
        now = self._monotonic()
        if attempt.first_token is None:
            attempt.first_token = now
        attempt.parts.append(text)
        attempt.unsent_chars += len(text)
        if self._partial_is_due(attempt, now):
            await self._send_partial(attempt, now)

    def _partial_is_due(self, attempt: Attempt, now: float) -> bool:
        """Tell whether what was said since should go out: the first words at once, then at a bounded rate."""
        config = self._config
        if not attempt.partials:
            return now - attempt.started >= config.first_partial_s
        return (
            now - attempt.last_partial >= config.partial_interval_s
            and attempt.unsent_chars >= config.partial_min_chars
        )

    async def _send_partial(self, attempt: Attempt, now: float) -> None:
        job = attempt.job
        if not attempt.partials and (job.postpaid or job.money is Money.SETTLED):
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

    def _output(self, attempt: Attempt, finished: Finished) -> facts.Output | facts.Metered:
        job = attempt.job
        took_s = self._monotonic() - attempt.started
        first_s = (attempt.first_token or attempt.started) - attempt.started
        attempt.lane.ran(took_s)
        attempt.place.measured(first_s, took_s - first_s, finished.output_tokens)
        usage = facts.Usage(
            prompt_tokens=finished.prompt_tokens,
            output_tokens=finished.output_tokens,
            estimated=finished.estimated,
            first_token_ms=round(first_s * 1000),
            duration_ms=round(took_s * 1000),
        )
        price_msats = job.price_msats
        if job.postpaid:
            used = quote(attempt.lane.offer.price_of(job.kind), usage.prompt_tokens, usage.output_tokens)
            price_msats = min(used.amount_msats, job.price_msats)
            if price_msats:
                return facts.Metered(job.attempts, attempt.text, price_msats, usage)
        draft = fit_result(
            attempt.event,
            attempt.text,
            limit_bytes=self._config.limit_bytes,
            amount_msats=price_msats or None,
            relay_hint=self._config.relay_hint,
        )
        event = draft.sign(self._key, int(self._clock()))
        return facts.Output(job.attempts, event.id, event.to_json(), usage)

    def _publish(self, job: Job, draft: Draft) -> None:
        self._publisher.publish_live(draft.sign(self._key, int(self._clock())), job.relays)
