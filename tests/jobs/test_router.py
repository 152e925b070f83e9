"""Routing: who gets an attempt, who takes over, when a backend is left alone. The rules, then in the house."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.jobs import facts
from pylon.jobs.catalogue import Route
from pylon.jobs.lanes import Speed
from pylon.jobs.ports import (
    BackendBusy,
    BackendHealth,
    BackendRefused,
    BackendState,
    BackendUnavailable,
    ModelInfo,
    ModelMissing,
)
from pylon.jobs.router import Circuit, CircuitRule, can_serve, choose
from pylon.nostr.event import Event
from pylon.nostr.nip90 import FeedbackStatus
from pylon.store.records import Job, Money, Work
from tests.support.house import OFFER, House, World, open_house, until
from tests.support.stand_ins import FakeBackend, Run

READY = BackendHealth.READY
RULE = CircuitRule(failures=2, open_s=10.0, max_open_s=35.0)


@dataclass
class Candidate:
    name: str
    health: BackendHealth = READY
    models: tuple[str, ...] = ("m",)
    loaded: bool | None = None
    free: int = 1
    token_s: float | None = None
    backend_model: str = "m"
    circuit: Circuit = field(default_factory=lambda: Circuit(RULE))

    @property
    def state(self) -> BackendState:
        models = tuple(ModelInfo(name, loaded=self.loaded) for name in self.models)
        return BackendState(self.name, "fake", self.health, models=models)


def chosen(*candidates: Candidate, now: float = 0.0, without: tuple[str, ...] = ()) -> str | None:
    found = choose(candidates, now, without)
    return None if found is None else found.name


# --- the rules ------------------------------------------------------------------------------------------------


def test_of_equals_the_first_in_the_settings_is_taken() -> None:
    assert chosen(Candidate("a"), Candidate("b")) == "a"


@pytest.mark.parametrize(
    "unable",
    [
        Candidate("a", free=0),
        Candidate("a", health=BackendHealth.DOWN),
        Candidate("a", health=BackendHealth.LOADING),
        Candidate("a", health=BackendHealth.UNKNOWN),
    ],
)
def test_who_cannot_take_it_now_is_out(unable: Candidate) -> None:
    assert chosen(unable) is None
    assert chosen(unable, Candidate("b", models=(), token_s=9.0)) == "b"


def test_who_is_named_as_out_is_out() -> None:
    assert chosen(Candidate("a"), Candidate("b"), without=("a",)) == "b"
    assert chosen(Candidate("a"), without=("a",)) is None


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        (Candidate("a", models=("other",), loaded=True), Candidate("b", token_s=9.0)),
        (Candidate("a", token_s=0.001), Candidate("b", loaded=True, token_s=9.0)),
        (Candidate("a", token_s=0.02), Candidate("b", token_s=0.01)),
        (Candidate("a", token_s=0.02), Candidate("b", token_s=None)),
        (Candidate("a", token_s=0.02, free=1), Candidate("b", token_s=0.02, free=2)),
    ],
    ids=["has the model", "has it loaded", "is faster", "was never measured", "is less busy"],
)
def test_what_makes_one_better(worse: Candidate, better: Candidate) -> None:
    assert chosen(worse, better) == chosen(better, worse) == "b"


def test_a_job_is_promised_only_where_it_may_run() -> None:
    broken = Candidate("a")
    for _ in range(RULE.failures):
        broken.circuit.failed(0.0)
    assert not can_serve(broken, 5.0)
    assert can_serve(broken, 10.0), "half open: the next job is the trial"
    assert not can_serve(Candidate("a", models=("other",)), 0.0)
    assert not can_serve(Candidate("a", health=BackendHealth.DOWN), 0.0)
    assert can_serve(Candidate("a", models=()), 0.0), "nothing is known of its models"
    assert can_serve(Candidate("a", health=BackendHealth.LOADING, free=0), 0.0), "it may wait"


def test_a_circuit_opens_after_failures_in_a_row_and_lets_one_through_when_its_time_is_over() -> None:
    circuit = Circuit(RULE)
    circuit.failed(0.0)
    circuit.succeeded()
    circuit.failed(1.0)
    assert circuit.allows(1.0)
    circuit.failed(2.0)
    assert not circuit.allows(2.0)
    assert circuit.open_for_s(2.0) == 10.0
    assert circuit.allows(12.0)
    circuit.began()
    assert not circuit.allows(12.0), "one at a time"
    circuit.succeeded()
    assert circuit.allows(12.0)
    assert circuit.open_for_s(12.0) == 0


def test_a_trial_that_fails_doubles_the_time_up_to_the_most() -> None:
    circuit, now, opened = Circuit(RULE), 0.0, []
    circuit.failed(now)
    for _ in range(4):
        circuit.began()
        circuit.failed(now)
        opened.append(circuit.open_for_s(now))
        now += opened[-1]
    assert opened == [10.0, 20.0, 35.0, 35.0]


def test_a_trial_that_is_cancelled_makes_room_for_another() -> None:
    circuit = Circuit(RULE)
    circuit.failed(0.0)
    circuit.failed(0.0)
    circuit.began()
    circuit.gave_up()
    assert circuit.allows(10.0)


def test_a_backend_that_wants_quiet_gets_nothing_and_is_still_promised() -> None:
    busy = Candidate("a")
    busy.circuit.rests(10.0)
    busy.circuit.rests(5.0)
    assert chosen(busy, now=9.9) is None
    assert chosen(busy, Candidate("b", token_s=9.0), now=9.9) == "b"
    assert chosen(busy, now=10.0) == "a"
    assert can_serve(busy, 0.0)


@given(st.lists(st.sampled_from(["began", "succeeded", "failed", "gave_up", "wait"]), max_size=60))
def test_no_circuit_stays_shut_for_ever(steps: list[str]) -> None:
    circuit, now = Circuit(RULE), 0.0
    for step in steps:
        if step == "wait":
            now += 3.0
        elif step == "failed":
            circuit.failed(now)
        else:
            getattr(circuit, step)()
    circuit.gave_up()
    assert circuit.open_for_s(now) <= RULE.max_open_s
    assert circuit.allows(now + RULE.max_open_s)


# --- in the house ---------------------------------------------------------------------------------------------


def two(path: Path, *, also: tuple[Route, ...] = (Route("spare", "model-at-spare"),)) -> World:
    """A model on two backends, where each answers with its own name."""
    world = World(path / "db", mode=facts.Mode.FREE)
    world.offers = (replace(OFFER, also=also),)
    world.backends["spare"] = FakeBackend("spare", models=("model-at-spare",))
    for name, backend in world.backends.items():
        backend.answer = says(name)
    return world


def says(name: str) -> Callable[[Run], None]:
    def answer(run: Run) -> None:
        run.say(f"from {name}")
        run.finish()

    return answer


def breaks(run: Run) -> None:
    run.fail(BackendUnavailable("broke"))


async def delivered(house: House, request: Event) -> tuple[str, Job]:
    job = await house.reaches(request.id, Work.DELIVERED)
    (result,) = house.world.relays.results(request.id)
    return result.content, job


async def test_a_backend_that_is_down_is_passed_over(tmp_path: Path) -> None:
    world = two(tmp_path)
    world.backend.health = BackendHealth.DOWN
    async with open_house(world) as house:
        content, job = await delivered(house, house.ask())
        assert (content, job.backend, job.attempts) == ("from spare", "spare", 1)
        assert world.backends["spare"].runs[0].request.model == "model-at-spare"


async def test_jobs_spread_over_the_slots_of_all(tmp_path: Path) -> None:
    world = two(tmp_path)
    for backend in world.backends.values():
        backend.answer = None
    async with open_house(world) as house:
        requests = [house.ask(f"number {number}") for number in range(3)]
        runs = [await house.run(1), await house.run(1, "spare")]
        assert [len(backend.runs) for backend in world.backends.values()] == [1, 1]
        runs[1].finish()
        runs.append(await house.run(2, "spare"))
        for run in (runs[0], runs[2]):
            run.finish()
        for request in requests:
            await house.reaches(request.id, Work.DELIVERED)
        (lane,) = house.runner.lanes.values()
        await until(lambda: not lane.busy)


async def test_before_the_first_token_another_takes_over_within_the_attempt(tmp_path: Path) -> None:
    world = two(tmp_path)
    world.backend.answer = breaks
    async with open_house(world) as house:
        request = house.ask()
        content, job = await delivered(house, request)
        assert (content, job.backend, job.attempts) == ("from spare", "spare", 1)
        assert [each.outcome for each in await house.attempts(request.id)] == ["output"]
        journal = await house.read(lambda tx: [line.entry for line in tx.journal_of(request.id)])
        assert "rerouted -> running/none" in journal
        (lane,) = house.runner.lanes.values()
        await until(lambda: not lane.busy)


async def test_after_the_first_token_it_is_another_attempt(tmp_path: Path) -> None:
    world = two(tmp_path)

    def half(run: Run) -> None:
        run.say("half an answer")
        run.fail(BackendUnavailable("broke"))

    world.backend.answer = half
    world.runner = replace(world.runner, circuit=CircuitRule(failures=1, open_s=60.0))
    async with open_house(world) as house:
        request = house.ask()
        content, job = await delivered(house, request)
        assert (content, job.backend, job.attempts) == ("from spare", "spare", 2)
        partials = world.relays.feedback(request.id, FeedbackStatus.PARTIAL)
        assert partials[0].content == "half an answer"


async def test_a_model_that_one_backend_lost_is_run_on_the_other_and_never_replaced(tmp_path: Path) -> None:
    world = two(tmp_path)
    world.backend.models = ("served-model", "another")
    world.backend.answer = lambda run: run.fail(ModelMissing("local does not list the model"))
    async with open_house(world) as house:
        content, _ = await delivered(house, house.ask())
        assert content == "from spare"
        world.backends["spare"].health = BackendHealth.DOWN
        await house.reaches(house.ask("again").id, Work.FAILED)
    assert {run.request.model for run in world.backend.runs} == {"served-model"}


async def test_a_refused_request_is_not_taken_elsewhere(tmp_path: Path) -> None:
    world = two(tmp_path)
    world.backend.answer = lambda run: run.fail(BackendRefused("too long"))
    async with open_house(world) as house:
        await house.reaches(house.ask().id, Work.FAILED)
        assert world.backends["spare"].runs == []


async def test_a_paid_job_that_both_fail_ends_in_a_refund(tmp_path: Path) -> None:
    world = two(tmp_path)
    world.mode = facts.Mode.PREPAY
    for backend in world.backends.values():
        backend.answer = breaks
    async with open_house(world) as house:
        request = house.ask()
        await house.pay(request.id)
        job = await house.reaches(request.id, Work.FAILED, Money.REFUND_DUE)
        assert job.attempts == 3
        assert [len(backend.runs) for backend in world.backends.values()] == [3, 3]
        await house.check_books()


async def test_a_cancelled_job_does_not_go_on_elsewhere(tmp_path: Path) -> None:
    world = two(tmp_path)
    world.backend.answer = None
    async with open_house(world) as house:
        request = house.ask()
        run = await house.run()
        house.cancel(request.id)
        await house.reaches(request.id, Work.CANCELLED)
        await until(lambda: run.closed)
        await house.quiet()
        assert world.backends["spare"].runs == []
        (lane,) = house.runner.lanes.values()
        await until(lambda: not lane.busy)


async def test_a_backend_that_keeps_failing_is_left_alone_and_tried_again(tmp_path: Path) -> None:
    world = two(tmp_path, also=())
    world.backend.answer = breaks
    ticks = [0.0]
    world.monotonic = lambda: ticks[0]
    world.runner = replace(world.runner, circuit=CircuitRule(failures=3, open_s=60.0))
    async with open_house(world) as house:
        await house.reaches(house.ask("first").id, Work.FAILED)  # three attempts
        assert house.runner.circuit_open_s("local") == 60.0
        refused = house.ask("while it is left alone")
        (said,) = world.relays.feedback(refused.id, FeedbackStatus.ERROR)
        assert said.info == "backend-unavailable: the model's server keeps failing: try later"
        world.backend.answer = says("local")
        ticks[0] += 60
        content, _ = await delivered(house, house.ask("the trial"))
        assert content == "from local"
        assert house.runner.circuit_open_s("local") == 0


async def test_a_queued_job_waits_out_an_open_circuit(tmp_path: Path) -> None:
    world = two(tmp_path, also=())
    world.backend.answer = breaks
    ticks = [0.0]
    world.monotonic = lambda: ticks[0]
    world.runner = replace(world.runner, circuit=CircuitRule(failures=1, open_s=60.0))
    async with open_house(world) as house:
        request = house.ask()
        await until(lambda: house.runner.circuit_open_s("local"))
        job = await house.reaches(request.id, Work.QUEUED)
        await house.quiet()
        assert (job.attempts, len(world.backend.runs)) == (1, 1)
        world.backend.answer = says("local")
        ticks[0] += 60
        _, job = await delivered(house, request)
        assert job.attempts == 2


def busy_once(wait_s: float) -> Callable[[Run], None]:
    """Want to be asked later, the first time."""
    answers = iter([lambda run: run.fail(BackendBusy("busy", wait_s))])
    return lambda run: next(answers, says("local"))(run)


async def test_an_attempt_waits_as_long_as_its_only_backend_wants(tmp_path: Path) -> None:
    world = two(tmp_path, also=())
    world.backend.answer = busy_once(0.1)
    world.runner = replace(world.runner, circuit=CircuitRule(failures=1, open_s=60.0))
    async with open_house(world) as house:
        content, job = await delivered(house, house.ask())
        assert (content, job.attempts) == ("from local", 1)
        first, second = world.backend.runs
        assert second.began_at - first.began_at >= 0.1
        assert house.runner.circuit_open_s("local") == 0, "that is no failure"


async def test_an_attempt_goes_elsewhere_rather_than_wait(tmp_path: Path) -> None:
    world = two(tmp_path)
    world.backend.answer = busy_once(1000.0)
    async with open_house(world) as house:
        content, job = await delivered(house, house.ask())
        assert (content, job.attempts) == ("from spare", 1)
        content, _ = await delivered(house, house.ask("the next one"))
        assert content == "from spare"
        assert len(world.backend.runs) == 1, "it is left alone"


@pytest.mark.parametrize(("longest_wait_s", "job_timeout_s"), [(10.0, 600), (1000.0, 45)])
async def test_an_attempt_does_not_wait_long_nor_past_its_deadline(
    tmp_path: Path, longest_wait_s: float, job_timeout_s: int
) -> None:
    world = two(tmp_path, also=())
    world.backend.answer = busy_once(50.0)
    ticks = [0.0]
    world.monotonic = lambda: ticks[0]
    world.runner = replace(world.runner, longest_wait_s=longest_wait_s)
    world.intake = replace(world.intake, job_timeout_s=job_timeout_s)
    async with open_house(world) as house:
        request = house.ask()
        await until(lambda: world.backend.runs)
        job = await house.reaches(request.id, Work.QUEUED)
        await house.quiet()
        assert (job.attempts, len(world.backend.runs)) == (1, 1)
        ticks[0] += 50
        _, job = await delivered(house, request)
        assert job.attempts == 2


async def test_a_cancelled_job_waits_no_longer(tmp_path: Path) -> None:
    world = two(tmp_path, also=())
    world.backend.answer = busy_once(50.0)
    async with open_house(world) as house:
        request = house.ask()
        await until(lambda: world.backend.runs)
        house.cancel(request.id)
        await house.reaches(request.id, Work.CANCELLED)
        (lane,) = house.runner.lanes.values()
        await until(lambda: not lane.busy)


async def test_the_smallest_context_is_what_is_promised(tmp_path: Path) -> None:
    world = two(tmp_path)
    world.backend.context_tokens, world.backends["spare"].context_tokens = 100_000, 200
    async with open_house(world) as house:
        refused = house.ask("x" * 300)
        (said,) = world.relays.feedback(refused.id, FeedbackStatus.ERROR)
        assert said.info.startswith("too-large:")


async def test_the_eta_is_no_longer_than_the_tokens_asked_for_can_take(tmp_path: Path) -> None:
    world = two(tmp_path, also=())
    async with open_house(world) as house:
        (lane,) = house.runner.lanes.values()
        lane.ran(60.0)
        lane.places[0].measured(first_token_s=1.0, rest_s=59.0, tokens=60)
        assert lane.eta_s(max_tokens=10) == 11
        assert lane.eta_s(max_tokens=1_000) == 60
        lane.places[0].busy = 1
        assert lane.eta_s(max_tokens=10) == 71
        lane.places[0].busy = 0


async def test_a_bench_tells_the_time_until_jobs_tell_better(tmp_path: Path) -> None:
    async with open_house(two(tmp_path, also=())) as house:
        (lane,) = house.runner.lanes.values()
        (place,) = lane.places
        assert lane.eta_s(max_tokens=100) == 0
        house.runner.expect({("local", place.backend_model): Speed(1.0, 0.09), ("local", "other"): Speed(9, 9)})
        assert (place.first_token_s, place.token_s) == (1.0, 0.09)
        assert lane.eta_s(max_tokens=100) == 10
        place.busy = lane.slots
        assert lane.eta_s(max_tokens=100) == 20
        place.busy = 0
        place.measured(first_token_s=2.0, rest_s=18.0, tokens=10)
        assert (place.first_token_s, place.token_s) == (2.0, 2.0), "a job's own word is not mixed with a bench's"
        lane.ran(20.0)
        house.runner.expect({})
        assert (place.token_s, lane.eta_s(max_tokens=1_000)) == (2.0, 20)


@pytest.mark.parametrize(("local_s", "spare_s", "first"), [(0.01, 0.02, "local"), (0.02, 0.01, "spare")])
async def test_the_first_job_goes_where_a_bench_was_faster(
    tmp_path: Path, local_s: float, spare_s: float, first: str
) -> None:
    async with open_house(two(tmp_path)) as house:
        (lane,) = house.runner.lanes.values()
        speeds = dict(zip(("local", "spare"), (Speed(1, local_s), Speed(1, spare_s)), strict=True))
        house.runner.expect({(each.name, each.backend_model): speeds[each.name] for each in lane.places})
        content, _ = await delivered(house, house.ask("first"))
        assert content == f"from {first}"
