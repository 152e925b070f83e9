"""What a bench asks and what it makes of the times: exact, because the times are the test's own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.backends.bench import BenchPlan, JobTimes, Level, ModelBench, bench_models, level_of
from pylon.backends.openai import OpenAIBackend, OpenAIConfig
from pylon.jobs.ports import (
    BackendError,
    BackendHealth,
    BackendRefused,
    BackendState,
    BackendUnavailable,
    Chunk,
    Delta,
    Finished,
    FinishReason,
    GenerationRequest,
    ModelInfo,
    ModelMissing,
)
from tests.support.openai_server import DONE, answer, piece, scripted_server, stream, usage
from tests.support.stand_ins import FakeClock

Answer = Callable[[GenerationRequest], AsyncGenerator[Chunk, None]]


class Machine:
    """A backend on a clock of its own: 0.25 s to the first token, 0.5 s for each one after it."""

    name = "machine"

    def __init__(self, *models: ModelInfo, says: Answer | None = None) -> None:
        self.clock = FakeClock()
        self.asked: list[GenerationRequest] = []
        self.at_once = 0
        self.most_at_once: list[int] = []
        self.now = BackendState(self.name, "fake", BackendHealth.READY, models=models or (ModelInfo("m"),))
        self._says = says or self.work

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with anyio.create_task_group():  # as backends with a child have
            yield

    def state(self) -> BackendState:
        return self.now

    async def check(self) -> BackendState:
        return self.now

    async def unload(self) -> None:
        pass

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        self.asked.append(request)
        self.at_once += 1
        self.most_at_once.append(self.at_once)
        try:
            async for chunk in self._says(request):
                yield chunk
        finally:
            self.at_once -= 1

    async def work(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        self.clock.advance(0.25)
        yield Delta("word ")
        for _ in range(request.max_tokens - 1):
            await anyio.lowlevel.checkpoint()
            self.clock.advance(0.5)
            yield Delta("word ")
        yield Finished(FinishReason.LENGTH, 20, request.max_tokens)


async def bench(machine: Machine, *models: str, **plan: object) -> dict[str, ModelBench | BackendError]:
    made = BenchPlan(**{"concurrency": (1,), "jobs_each": 5, "tokens": 8, **plan})  # type: ignore[arg-type]
    return await bench_models(machine, models, made, run="r", now=machine.clock)


async def levels(machine: Machine, **plan: object) -> tuple[Level, ...]:
    (found,) = (await bench(machine, **plan)).values()
    assert isinstance(found, ModelBench)
    return found.levels


# --- arithmetic -----------------------------------------------------------------------------------------------


def test_what_the_times_of_jobs_side_by_side_say() -> None:
    jobs = [JobTimes(10, 11, 15, 9), JobTimes(10, 13, 20, 8), JobTimes(16, 18, 19, 3)]
    assert level_of(2, jobs) == Level(2, 3, 20, tokens_per_s=2.0, first_token_s=2.0, token_s=0.5)


def test_a_job_of_one_token_says_nothing_of_the_tokens_after_it() -> None:
    assert level_of(1, [JobTimes(0, 1, 1, 1)]) == Level(1, 1, 1, 1.0, 1.0, 0.0)
    assert level_of(1, [JobTimes(0, 1, 1, 1), JobTimes(1, 2, 6, 3, estimated=True)]).token_s == 2.0
    assert level_of(1, [JobTimes(0, 1, 1, 1), JobTimes(1, 2, 6, 3, estimated=True)]).estimated


def test_no_time_at_all_divides_by_nothing() -> None:
    assert level_of(1, [JobTimes(5, 5, 5, 9)]).tokens_per_s == 0.0


moments = st.floats(0, 1e6, allow_nan=False)
times = st.builds(
    lambda parts, tokens: JobTimes(min(parts), sorted(parts)[1], max(parts), tokens),
    st.tuples(moments, moments, moments),
    st.integers(0, 10_000),
)


@given(st.lists(times, min_size=1, max_size=20))
def test_a_level_lies_between_what_its_jobs_saw(jobs: list[JobTimes]) -> None:
    level = level_of(3, jobs)
    took_s = max(job.ended for job in jobs) - min(job.began for job in jobs)
    assert level.tokens_per_s * took_s == pytest.approx(level.tokens if took_s else 0)
    firsts = [job.first - job.began for job in jobs]
    assert min(firsts) <= level.first_token_s <= max(firsts)
    assert level.token_s >= 0


# --- what is asked --------------------------------------------------------------------------------------------


async def test_a_machine_is_as_fast_as_it_is() -> None:
    machine = Machine()
    (level,) = await levels(machine)
    tokens = 4 + 12 + 6 + 10 + 8
    seconds = 5 * 0.25 + (tokens - 5) * 0.5
    assert level == Level(1, 5, tokens, tokens / seconds, first_token_s=0.25, token_s=0.5)


async def test_no_two_prompts_begin_alike_and_the_first_job_does_not_count() -> None:
    machine = Machine()
    found = await levels(machine, concurrency=(1, 2), jobs_each=2)
    assert [level.jobs for level in found] == [2, 4]
    prompts = [request.messages[0].content for request in machine.asked]
    assert len({prompt[:12] for prompt in prompts}) == len(prompts) == 1 + 2 + 4
    assert machine.asked[0].max_tokens == 8, "the warm-up"
    assert all((request.temperature, request.seed) == (0.0, 1) for request in machine.asked)


async def test_so_many_run_at_once_and_never_more() -> None:
    machine = Machine()
    await levels(machine, concurrency=(1, 2, 4), jobs_each=3)
    most = machine.most_at_once
    assert (max(most[:4]), max(most[4:10]), max(most[10:])) == (1, 2, 4)


async def test_each_model_is_measured_with_what_its_backend_says_of_it() -> None:
    big = ModelInfo("b", size_bytes=5, quantization="Q4_0")
    machine = Machine(ModelInfo("a"), big)
    found = await bench(machine, "b", "a", jobs_each=1)
    assert {name: each.model for name, each in found.items() if isinstance(each, ModelBench)} == {
        "a": ModelInfo("a"),
        "b": big,
    }
    assert list(await bench(machine, jobs_each=1)) == ["a"], "without a name the first that is listed"


# --- what goes wrong ------------------------------------------------------------------------------------------


async def test_a_job_that_is_cut_off_counts_with_what_it_had_written() -> None:
    machine = Machine()

    async def stalls(request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        if len(machine.asked) == 1:
            yield Delta("warm ")
            yield Finished(FinishReason.STOP, 1, 1)
            return
        for _ in range(3):
            machine.clock.advance(1.0)
            yield Delta("word ")
        await anyio.sleep_forever()

    machine._says = stalls
    (level,) = await levels(machine, limit_s=0.05)
    assert (level.jobs, level.tokens, level.estimated) == (1, 3, True)
    assert (level.first_token_s, level.token_s) == (1.0, 1.0)
    assert machine.at_once == 0


async def test_a_backend_that_says_nothing_in_time_is_a_sentence() -> None:
    async def silent(request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        await anyio.sleep_forever()
        yield Delta("never")

    (found,) = (await bench(Machine(says=silent), limit_s=0.02)).values()
    assert str(found) == "machine wrote nothing within 0.02 s"


async def test_a_model_that_fails_leaves_the_others_measured() -> None:
    machine = Machine(ModelInfo("a"), ModelInfo("b"))

    async def picky(request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        if request.model == "a" and len(machine.asked) > 1:
            await anyio.lowlevel.checkpoint()
            raise BackendRefused("a is not taken")
        async for chunk in machine.work(request):
            yield chunk

    machine._says = picky
    found = await bench(machine, "a", "b", concurrency=(2,), jobs_each=2)
    assert isinstance(found["a"], BackendRefused) and str(found["a"]) == "a is not taken"
    assert isinstance(found["b"], ModelBench)
    assert [request.model for request in machine.asked].count("a") == 1 + 2, "no more than were under way"
    assert machine.at_once == 0


async def test_a_backend_that_is_down_or_empty_raises() -> None:
    machine = Machine()
    machine.now = BackendState("machine", "fake", BackendHealth.DOWN, "it is off")
    with pytest.raises(BackendUnavailable, match="it is off"):
        await bench(machine, "m")
    machine.now = BackendState("machine", "fake", BackendHealth.READY)
    with pytest.raises(ModelMissing):
        await bench(machine)


# --- through a real connection --------------------------------------------------------------------------------


def scripted_times() -> Iterator[float]:
    """A job begins, has its first token 2 s later and ends after 6 s more; 1 s lies between two jobs."""
    for at in count(0, 9):
        yield from (float(at), at + 2.0, at + 8.0)


async def test_a_server_s_own_counts_and_its_word_on_the_model() -> None:
    said = stream(piece("One "), piece("two."), piece(None, "stop"), usage(9, 4), DONE)
    listed = {"id": "m", "meta": {"size": 96_576_768, "ftype": "Q4_1", "n_ctx": 2_048}}
    async with scripted_server(said) as server:
        server.routes["/v1/models"] = answer(200, {"object": "list", "data": [listed]})
        backend = OpenAIBackend(OpenAIConfig("local", server.url))
        clock = scripted_times()
        plan = BenchPlan((1,), jobs_each=3)
        (found,) = (await bench_models(backend, ["m"], plan, run="r", now=lambda: next(clock))).values()
        assert isinstance(found, ModelBench)
        assert found.levels == (Level(1, 3, 12, tokens_per_s=12 / 26, first_token_s=2.0, token_s=2.0),)
        assert (found.model.size_bytes, found.model.quantization) == (96_576_768, "Q4_1")
        assert [wire.json["max_tokens"] for wire in server.posts()] == [8, 32, 96, 48]
