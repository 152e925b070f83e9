"""How fast a model is on a backend: jobs of different lengths, some at once, and what their times say.

The jobs are those of `benchmarks/inference.py`, asked of the backend itself. No two prompts begin alike, in this
run or in any other, so that nothing is read from a server's cache; a model's first job is not counted, as a server
may load the model for it. What a level says is arithmetic over the jobs' times (`level_of`); where those come from
is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count
from statistics import median
from typing import Final

import anyio

from pylon.backends.trial import first_model, until_up
from pylon.jobs.ports import (
    Backend,
    BackendError,
    BackendUnavailable,
    Delta,
    Finished,
    GenerationRequest,
    Message,
    ModelInfo,
)

LENGTHS: Final = (2, 6, 3, 5, 4)
"""Quarters of the tokens asked for, job by job: equal jobs would march in step."""

_PROMPT: Final = "Tale {run}-{number}: write a short story about a lighthouse keeper and the sea."
_WARM_UP_TOKENS: Final = 8

Now = Callable[[], float]
"""Returns seconds that only ever rise."""


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """What is asked: at each of `concurrency` so many jobs at once, `jobs_each` times, of `tokens` on average.

    A level takes `limit_s` at most: jobs that run then are cut off, and count with what they had written.
    """

    concurrency: tuple[int, ...] = (1, 2, 4)
    jobs_each: int = 3
    tokens: int = 64
    limit_s: float = 60.0


@dataclass(frozen=True, slots=True)
class JobTimes:
    """When one job began, had its first token and ended (seconds), and how many tokens it wrote until then."""

    began: float
    first: float
    ended: float
    tokens: int
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Level:
    """How fast a model was with so many jobs at once.

    `tokens_per_s` is over all of them, the reading of the prompts included; `first_token_s` and `token_s` (each
    token after the first) are the medians of what a job saw. `estimated` tells that not every count was the
    backend's own.
    """

    concurrency: int
    jobs: int
    tokens: int
    tokens_per_s: float
    first_token_s: float
    token_s: float
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class ModelBench:
    """What was measured of one model, and what its backend said of it."""

    model: ModelInfo
    levels: tuple[Level, ...]


def level_of(concurrency: int, jobs: Sequence[JobTimes]) -> Level:
    """Return what the times of at least one job say."""
    tokens = sum(job.tokens for job in jobs)
    took_s = max(job.ended for job in jobs) - min(job.began for job in jobs)
    rest = [(job.ended - job.first) / (job.tokens - 1) for job in jobs if job.tokens > 1]
    return Level(
        concurrency,
        len(jobs),
        tokens,
        tokens_per_s=tokens / took_s if took_s > 0 else 0.0,
        first_token_s=median(job.first - job.began for job in jobs),
        token_s=median(rest) if rest else 0.0,
        estimated=any(job.estimated for job in jobs),
    )


async def bench_models(
    backend: Backend,
    models: Sequence[str],
    plan: BenchPlan,
    *,
    run: str,
    start_timeout_s: float = 0.0,
    now: Now = anyio.current_time,
    told: Callable[[str, Level], None] = lambda model, level: None,
) -> dict[str, ModelBench | BackendError]:
    """Measure models by their names at the backend, one after another; without any, the first that it lists.

    `run` is what no other run's prompts have. A backend that is loading is waited for, at most `start_timeout_s`.
    `told` hears of each level as it is done. A model that could not be measured has its error. Raises
    `BackendError` when the backend does not come up.
    """
    measured: dict[str, ModelBench | BackendError] = {}
    fault: BackendError | None = None
    numbers = count(1)
    async with backend.running():
        try:
            state = await until_up(backend, start_timeout_s)
            names = tuple(models) or (first_model(state),)
        except BackendError as error:
            fault, names = error, ()  # raised outside: a backend's task group would wrap it
        for name in names:
            prompts = (_PROMPT.format(run=run, number=number) for number in numbers)
            try:
                levels = await _bench(backend, name, plan, prompts, now, told)
            except BackendError as error:
                measured[name] = error
                continue
            # Asked again: a server may know more of a model that is loaded.
            listed = (await backend.check()).find(name)
            measured[name] = ModelBench(listed or ModelInfo(name), levels)
    if fault is not None:
        raise fault
    return measured


async def _bench(
    backend: Backend,
    model: str,
    plan: BenchPlan,
    prompts: Iterator[str],
    now: Now,
    told: Callable[[str, Level], None],
) -> tuple[Level, ...]:
    warm_up = await _level(backend, [_request(model, next(prompts), _WARM_UP_TOKENS)], 1, plan.limit_s, now)
    if not warm_up:
        raise BackendUnavailable(f"{backend.name} wrote nothing within {plan.limit_s:g} s")
    levels: list[Level] = []
    for concurrency in plan.concurrency:
        lengths = [LENGTHS[at % len(LENGTHS)] for at in range(plan.jobs_each * concurrency)]
        requests = [_request(model, next(prompts), max(2, plan.tokens * length // 4)) for length in lengths]
        jobs = await _level(backend, requests, concurrency, plan.limit_s, now)
        if not jobs:
            many = "" if concurrency == 1 else f" with {concurrency} at once"
            raise BackendUnavailable(f"{backend.name} wrote nothing within {plan.limit_s:g} s{many}")
        levels.append(level_of(concurrency, jobs))
        told(model, levels[-1])
    return tuple(levels)


def _request(model: str, prompt: str, tokens: int) -> GenerationRequest:
    return GenerationRequest(model, (Message("user", prompt),), tokens, temperature=0.0, seed=1)


async def _level(
    backend: Backend, requests: Sequence[GenerationRequest], concurrency: int, limit_s: float, now: Now
) -> list[JobTimes]:
    """Run the requests, so many at once; return the times of those that wrote something. Raises `BackendError`."""
    times: list[JobTimes] = []
    faults: list[BackendError] = []
    waiting = iter(requests)

    async def work(scope: anyio.CancelScope) -> None:
        for request in waiting:
            try:
                await _job(backend, request, times, now)
            except BackendError as error:
                faults.append(error)
                scope.cancel()
                return

    with anyio.move_on_after(limit_s):
        async with anyio.create_task_group() as tasks:
            for _ in range(concurrency):
                tasks.start_soon(work, tasks.cancel_scope)
    if faults:
        raise faults[0]
    return times


async def _job(backend: Backend, request: GenerationRequest, times: list[JobTimes], now: Now) -> None:
    """Run one request and put its times down, also when it is cut off after its first token."""
    began, pieces = now(), 0
    first: float | None = None
    counted: Finished | None = None
    try:
        async with aclosing(backend.generate(request)) as chunks:
            async for chunk in chunks:
                if isinstance(chunk, Delta):
                    first = now() if first is None else first
                    pieces += 1
                else:
                    counted = chunk
    finally:
        if first is not None:
            # What was cut off has no count of the backend's; most send a token at a time.
            tokens, estimated = (pieces, True) if counted is None else (counted.output_tokens, counted.estimated)
            times.append(JobTimes(began, first, now(), tokens, estimated))
