"""The runner: from a queued job to a signed result, its partials, its failures, and the slots."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from pylon.jobs import facts
from pylon.jobs.ports import (
    BackendError,
    BackendHealth,
    BackendRefused,
    BackendState,
    BackendUnavailable,
    GenerationRequest,
    Message,
    ModelMissing,
)
from pylon.nostr.event import Event, parse_event, verify
from pylon.nostr.messages import event_frame
from pylon.nostr.nip90 import FeedbackStatus
from pylon.nostr.nip90_fit import BARE_RESULT_BYTES
from pylon.nostr.nip90_replies import parse_feedback, parse_result
from pylon.store.records import Job, Money, OutboxTopic, Work
from tests.support.events import CUSTOMER, PROVIDER, STRANGER, job_request
from tests.support.house import OFFER, PRICE_MSATS, House, World, open_house, until
from tests.support.stand_ins import RELAY, FakeBackend, Run


def free(path: Path, **changes: object) -> World:
    return replace(World(path / "db", mode=facts.Mode.FREE), **changes)  # type: ignore[arg-type]


def manual(world: World) -> World:
    """Let the test say what the backend answers."""
    world.backend.answer = None
    return world


async def delivered(house: House, request: Event) -> Event:
    await house.reaches(request.id, Work.DELIVERED)
    (result,) = house.world.relays.results(request.id)
    return result


def partials(world: World, request: Event) -> list[tuple[int | None, int | None, str]]:
    found = world.relays.feedback(request.id, FeedbackStatus.PARTIAL)
    return [(each.attempt, each.number, each.content) for each in found]


# --- a result -------------------------------------------------------------------------------------------------


async def test_a_free_job_ends_in_one_result_with_every_tag(tmp_path: Path) -> None:
    world = free(tmp_path)
    async with open_house(world) as house:
        request = house.ask("Tell me a joke.")
        result = await delivered(house, request)
        assert verify(result)
        assert result.pubkey == PROVIDER.public_hex
        assert result.kind == 6050
        assert result.content == "Echo: Tell me a joke."
        assert parse_event(json.loads(result.tag_values("request")[0])) == request
        assert result.tag("e") == ("e", request.id, RELAY)
        assert result.tag("p") == ("p", CUSTOMER.public_hex)
        assert result.tag("i") == ("i", "Tell me a joke.", "text")
        assert result.tag("amount") is None
        assert (await house.job(request.id)).result_id == result.id
        assert (await house.job(request.id)).money is Money.NONE


async def test_a_free_job_says_nothing_durable_but_its_result(tmp_path: Path) -> None:
    world = free(tmp_path)
    async with open_house(world) as house:
        request = house.ask()
        result = await delivered(house, request)
        assert world.relays.durable == [result]


async def test_a_result_goes_to_the_relays_that_the_request_names(tmp_path: Path) -> None:
    world = free(tmp_path)
    async with open_house(world) as house:
        urls = [f"wss://{name}.example" for name in "abcd"]
        result = await delivered(house, house.ask(relays=urls))
        assert world.relays.named[result.id] == tuple(urls[:3])


async def test_a_paid_job_says_success_once_and_its_amount(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    async with open_house(world) as house:
        request = house.ask()
        await house.pay(request.id)
        result = await delivered(house, request)
        await until(lambda: world.relays.feedback(request.id, FeedbackStatus.SUCCESS))
        assert parse_result(result).amount_msats == PRICE_MSATS
        assert [each.kind for each in world.relays.durable] == [7000, 6050, 7000]


async def test_success_can_be_left_unsaid(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    world.recorder = replace(world.recorder, success_feedback=False)
    async with open_house(world) as house:
        request = house.ask()
        await house.pay(request.id)
        await delivered(house, request)
        await house.quiet()
        assert world.relays.feedback(request.id, FeedbackStatus.SUCCESS) == []


async def test_every_parameter_reaches_the_backend(tmp_path: Path) -> None:
    world = free(tmp_path)
    params = [
        ("model", ["tiny"]),
        ("system", ["Be brief."]),
        ("max_tokens", ["33"]),
        ("temperature", ["0.5"]),
        ("top-k", ["40"]),
        ("top_p", ["0.9"]),
        ("frequency_penalty", ["-1"]),
        ("presence_penalty", ["1.5"]),
        ("seed", ["7"]),
        ("stop", ["END", "\n\n"]),
    ]
    async with open_house(world) as house:
        await delivered(house, house.ask("Hi", params=params))
    assert world.backend.runs[0].request == GenerationRequest(
        model="served-model",
        messages=(Message("system", "Be brief."), Message("user", "Hi")),
        max_tokens=33,
        temperature=0.5,
        top_k=40,
        top_p=0.9,
        frequency_penalty=-1.0,
        presence_penalty=1.5,
        seed=7,
        stop=("END", "\n\n"),
    )


async def test_parameters_reach_the_backend_after_a_restart_too(tmp_path: Path) -> None:
    world = manual(free(tmp_path))
    async with open_house(world) as house:
        request = house.ask("Hi", params=[("seed", ["7"]), ("max_tokens", ["9"])])
        await house.run()
    async with open_house(world) as house:
        again = await house.run(2)
        assert again.request == world.backend.runs[0].request
        again.finish()
        await delivered(house, request)


async def test_what_an_attempt_used_is_recorded(tmp_path: Path) -> None:
    world = free(tmp_path)
    async with open_house(world) as house:
        request = house.ask()
        await delivered(house, request)
        (attempt,) = await house.attempts(request.id)
        assert (attempt.prompt_tokens, attempt.output_tokens, attempt.estimated) == (5, 7, False)
        assert attempt.outcome == "output"


# --- what fits a relay ----------------------------------------------------------------------------------------

LIMIT = 6_000


@pytest.mark.parametrize(
    ("output_chars", "tags"),
    [(100, {"request", "i"}), (2_000, {"request"}), (3_000, set())],
)
async def test_a_result_near_the_limit_loses_its_inputs_first_then_the_request(
    tmp_path: Path, output_chars: int, tags: set[str]
) -> None:
    world = free(tmp_path)
    world.runner = replace(world.runner, limit_bytes=LIMIT)
    world.backend.answer = speaker("x" * output_chars)
    async with open_house(world) as house:
        result = await delivered(house, house.ask("p" * 2_000))
        assert {tag[0] for tag in result.tags} & {"request", "i"} == tags
        assert result.content == "x" * output_chars
        assert len(event_frame(result)) <= LIMIT


@pytest.mark.parametrize("piece", ["x", "\x01", "é", "\U0001f600"])
async def test_an_output_too_large_for_any_relay_is_cut_and_delivered(tmp_path: Path, piece: str) -> None:
    world = manual(free(tmp_path))
    world.runner = replace(world.runner, limit_bytes=LIMIT)
    async with open_house(world) as house:
        request = house.ask()
        run = await house.run()
        run.say(*[piece * 300] * 100)
        result = await delivered(house, request)
        assert run.closed
        assert set(result.content) == {piece}
        assert len(json.dumps(result.content, ensure_ascii=False).encode()) - 2 >= LIMIT - BARE_RESULT_BYTES - 6
        assert len(event_frame(result).encode()) <= LIMIT
        assert all(len(event_frame(event).encode()) <= LIMIT for event in world.relays.live)
        (attempt,) = await house.attempts(request.id)
        assert attempt.estimated


async def test_an_output_that_no_event_can_carry_is_mended(tmp_path: Path) -> None:
    world = free(tmp_path)
    world.backend.answer = speaker("a\ud800b")
    async with open_house(world) as house:
        assert (await delivered(house, house.ask())).content == "a\ufffdb"


async def test_an_empty_output_is_a_result(tmp_path: Path) -> None:
    world = free(tmp_path)
    world.backend.answer = speaker()
    async with open_house(world) as house:
        assert (await delivered(house, house.ask())).content == ""


def speaker(*texts: str) -> Callable[[Run], None]:
    def answer(run: Run) -> None:
        run.say(*texts)
        run.finish()

    return answer


# --- processing and partials ----------------------------------------------------------------------------------


async def test_work_that_takes_a_while_is_announced_once(tmp_path: Path) -> None:
    world = manual(free(tmp_path))
    ticks = Ticks()
    world.monotonic = ticks
    async with open_house(world) as house:
        request = house.ask()
        run = await house.run()
        ticks.now += 60
        await until(lambda: world.relays.feedback(request.id, FeedbackStatus.PROCESSING))
        ticks.now += 60
        run.finish()
        await delivered(house, request)
        said = [event for event in world.relays.live if parse_feedback(event).status is FeedbackStatus.PROCESSING]
        assert len(said) == 1
        assert said[0].tag("e") == ("e", request.id, RELAY)


class Ticks:
    """A monotonic clock that stands still."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


async def test_partials_are_numbered_cumulative_and_not_stored(tmp_path: Path) -> None:
    world = manual(free(tmp_path))
    async with open_house(world) as house:
        request = house.ask()
        run = await house.run()
        for number, text in enumerate(("one ", "two ", "three"), 1):
            run.say(text)
            await until(lambda number=number: len(partials(world, request)) == number)  # type: ignore[misc]
        run.finish()
        result = await delivered(house, request)
        assert partials(world, request) == [(1, 1, "one "), (1, 2, "one two "), (1, 3, "one two three")]
        assert result.content == "one two three"
        topics = {each.topic for each in await house.read(lambda tx: tx.pending_outbox())}
        assert topics <= {OutboxTopic.RESULT}
        assert world.relays.durable == [result]


async def test_partials_come_at_a_bounded_rate(tmp_path: Path) -> None:
    world = manual(free(tmp_path))
    ticks = Ticks()
    world.monotonic = ticks
    world.runner = replace(
        world.runner, first_partial_s=0.5, partial_interval_s=0.5, partial_min_chars=3, announce_after_s=1e9
    )
    async with open_house(world) as house:
        request = house.ask()
        run = await house.run()
        run.say(*["abc"] * 50)  # all at the same instant
        await until(lambda: run.waiting)
        assert partials(world, request) == []
        ticks.now += 0.5
        run.say("de")
        await until(lambda: len(partials(world, request)) == 1)
        run.say(*["f"] * 9)
        await until(lambda: run.waiting)
        ticks.now += 0.49
        run.say("g")
        await until(lambda: run.waiting)
        assert len(partials(world, request)) == 1
        ticks.now += 0.01
        run.say("h")
        await until(lambda: len(partials(world, request)) == 2)
        ticks.now += 10
        run.say("ij")  # time enough, but too little text
        await until(lambda: run.waiting)
        assert len(partials(world, request)) == 2
        run.finish()
        assert (await delivered(house, request)).content == "abc" * 50 + "de" + "f" * 9 + "ghij"


async def test_the_first_words_go_out_at_once_unless_the_answer_does_too(tmp_path: Path) -> None:
    world = manual(free(tmp_path))
    ticks = Ticks()
    world.monotonic = ticks
    world.runner = replace(world.runner, first_partial_s=0.02, partial_interval_s=0.5, partial_min_chars=100)
    async with open_house(world) as house:
        instant = house.ask("instant")
        run = await house.run(1)
        run.say("at once")
        run.finish()
        await delivered(house, instant)
        assert partials(world, instant) == []
        slow = house.ask("slow")
        run = await house.run(2)
        ticks.now += 0.03
        run.say("a")
        await until(lambda: partials(world, slow) == [(1, 1, "a")])
        run.finish()
        await delivered(house, slow)


async def test_the_partials_of_a_second_attempt_start_over(tmp_path: Path) -> None:
    world = manual(free(tmp_path))
    async with open_house(world) as house:
        request = house.ask()
        first = await house.run(1)
        first.say("half")
        await until(lambda: partials(world, request))
        first.fail(BackendUnavailable("it broke off"))
        second = await house.run(2)
        second.say("whole")
        await until(lambda: len(partials(world, request)) == 2)
        second.finish()
        assert (await delivered(house, request)).content == "whole"
        assert partials(world, request) == [(1, 1, "half"), (2, 1, "whole")]


# --- failures of backends -------------------------------------------------------------------------------------

BROKEN = "local at http://10.0.0.7:8080/v1 broke off: model secret-finetune-7b"


async def failed(house: House, request: Event, money: Money = Money.NONE) -> Job:
    job = await house.reaches(request.id, Work.FAILED, money)
    await house.quiet()
    return job


async def test_an_unavailable_backend_is_tried_again_with_growing_delay(tmp_path: Path) -> None:
    world = free(tmp_path)
    world.runner = replace(world.runner, retry_delay_s=0.04)
    world.backend.answer = lambda run: run.fail(BackendUnavailable(BROKEN))
    async with open_house(world) as house:
        request = house.ask()
        job = await failed(house, request)
        assert job.attempts == 3
        times = [run.began_at for run in world.backend.runs]
        assert times[1] - times[0] >= 0.04
        assert times[2] - times[1] >= 0.08
        assert world.relays.errors(request.id) == ["failed"]
        assert world.relays.results(request.id) == []
        assert len(await house.attempts(request.id)) == 3


async def test_a_backend_that_comes_back_gets_its_result_out(tmp_path: Path) -> None:
    world = manual(free(tmp_path))
    async with open_house(world) as house:
        request = house.ask()
        (await house.run(1)).fail(BackendUnavailable(BROKEN))
        (await house.run(2)).break_off()
        last = await house.run(3)
        last.say("there")
        last.finish()
        assert (await delivered(house, request)).content == "there"
        assert [each.number for each in await house.attempts(request.id)] == [1, 2, 3]


@pytest.mark.parametrize("error", [BackendRefused(BROKEN), ModelMissing(BROKEN)])
@pytest.mark.parametrize("paid", [False, True])
async def test_what_a_backend_refuses_is_not_tried_again(tmp_path: Path, error: BackendError, paid: bool) -> None:
    world = World(tmp_path / "db") if paid else free(tmp_path)
    world.backend.answer = lambda run: run.fail(error)
    async with open_house(world) as house:
        request = house.ask()
        if paid:
            await house.pay(request.id)
        job = await failed(house, request, Money.REFUND_DUE if paid else Money.NONE)
        assert job.attempts == 1
        assert world.relays.errors(request.id) == ["refund-due" if paid else "failed"]
        (said,) = world.relays.feedback(request.id, FeedbackStatus.ERROR)
        assert len(said.info.partition(": ")[2]) > 20
        await house.check_books()


@pytest.mark.parametrize("error", [BackendUnavailable(BROKEN), BackendRefused(BROKEN), ModelMissing(BROKEN)])
async def test_customers_never_read_what_a_backend_says_of_itself(tmp_path: Path, error: BackendError) -> None:
    world = free(tmp_path)
    world.backend.answer = lambda run: run.fail(error)
    async with open_house(world) as house:
        request = house.ask()
        await failed(house, request)
        said = "".join(event.to_json() for event in (*world.relays.live, *world.relays.durable))
        for private in ("10.0.0.7", "secret-finetune", "served-model"):
            assert private not in said


async def test_a_paid_job_whose_attempts_all_fail_is_owed_back(tmp_path: Path) -> None:
    world = World(tmp_path / "db")
    world.backend.answer = lambda run: run.fail(BackendUnavailable(BROKEN))
    async with open_house(world) as house:
        request = house.ask()
        await house.pay(request.id)
        job = await failed(house, request, Money.REFUND_DUE)
        assert job.attempts == 3
        assert world.relays.errors(request.id) == ["refund-due"]
        assert house.engine.books.refund_due_msats == PRICE_MSATS
        await house.check_books()


async def test_a_backend_that_dies_in_the_middle_is_tried_again(tmp_path: Path) -> None:
    world = manual(World(tmp_path / "db"))
    async with open_house(world) as house:
        request = house.ask()
        await house.pay(request.id)
        first = await house.run(1)
        first.say("half an ans")
        await until(lambda: partials(world, request))
        first.fail(BackendUnavailable(BROKEN))
        second = await house.run(2)
        second.say("an answer")
        second.finish()
        assert (await delivered(house, request)).content == "an answer"
        await house.reaches(request.id, Work.DELIVERED, Money.SETTLED)


async def test_a_stream_without_an_end_is_a_broken_attempt_not_a_result(tmp_path: Path) -> None:
    world = manual(free(tmp_path))
    async with open_house(world) as house:
        request = house.ask()
        first = await house.run(1)
        first.say("half an ans")
        first.break_off()
        second = await house.run(2)
        second.say("whole")
        second.finish()
        assert (await delivered(house, request)).content == "whole"


async def test_a_fault_of_ours_ends_the_attempt_and_not_the_house(tmp_path: Path) -> None:
    world = free(tmp_path)

    def bug(run: Run) -> None:
        raise ZeroDivisionError("a bug")

    world.backend.answer = bug
    async with open_house(world) as house:
        request = house.ask("first")
        await failed(house, request)
        assert world.relays.errors(request.id) == ["internal"]
        world.backend.answer = FakeBackend.echo
        assert (await delivered(house, house.ask("second"))).content == "Echo: second"


async def test_a_job_waits_until_its_backend_is_ready(tmp_path: Path) -> None:
    world = free(tmp_path)
    world.backend.health = BackendHealth.LOADING
    async with open_house(world) as house:
        request = house.ask()
        await house.reaches(request.id, Work.QUEUED)
        await house.quiet()
        assert world.backend.runs == []
        world.backend.health = BackendHealth.READY
        await delivered(house, request)


async def test_a_model_that_is_no_longer_offered_ends_its_paid_job_in_a_refund(tmp_path: Path) -> None:
    world = manual(World(tmp_path / "db"))
    async with open_house(world) as house:
        running, queued = house.ask("runs"), house.ask("waits")
        for request in (running, queued):
            await house.pay(request.id)
        await house.reaches(running.id, Work.RUNNING)
        await house.reaches(queued.id, Work.QUEUED)
    world.offers = (replace(OFFER, name="another", aliases=()),)
    world.backend.answer = FakeBackend.echo
    async with open_house(world) as house:
        for request in (running, queued):
            await failed(house, request, Money.REFUND_DUE)
            assert world.relays.errors(request.id) == ["refund-due"]
        fresh = house.ask("fresh", params=[("model", ["another"])])
        await house.pay(fresh.id)
        await delivered(house, fresh)
        await house.check_books()


# --- slots and order ------------------------------------------------------------------------------------------


def slots(world: World, count: int) -> World:
    world.offers = (replace(OFFER, slots=count),)
    return world


async def test_no_more_run_at_once_than_there_are_slots(tmp_path: Path) -> None:
    world = slots(manual(free(tmp_path)), 3)
    async with open_house(world) as house:
        requests = [house.ask(f"number {number}") for number in range(12)]
        await house.run(3)  # all three slots are taken before the first is free again
        for number in range(1, 13):
            (await house.run(number)).finish()
        for request in requests:
            await delivered(house, request)
        assert world.backend.most_at_once == 3
        assert [lane.busy for lane in house.runner.lanes.values()] == [0]


async def test_jobs_run_in_the_order_they_came(tmp_path: Path) -> None:
    world = slots(manual(free(tmp_path)), 1)
    prompts = [f"number {number}" for number in range(8)]
    async with open_house(world) as house:
        for prompt in prompts:
            house.ask(prompt)
        for number in range(1, 9):
            (await house.run(number)).finish()
        assert world.backend.prompts() == prompts


async def test_a_newcomer_does_not_overtake_the_queue(tmp_path: Path) -> None:
    world = slots(manual(free(tmp_path)), 1)
    world.backend.health = BackendHealth.LOADING
    async with open_house(world) as house:
        first = house.ask("first")
        await house.reaches(first.id, Work.QUEUED)
        world.backend.health = BackendHealth.READY  # and nobody has looked yet
        house.ask("second")
        (await house.run(1)).finish()
        (await house.run(2)).finish()
        assert world.backend.prompts() == ["first", "second"]


async def test_models_on_one_backend_have_slots_of_their_own(tmp_path: Path) -> None:
    world = manual(free(tmp_path))
    world.offers = (OFFER, replace(OFFER, name="large", backend_model="large-model", aliases=()))
    world.backend.models = ("served-model", "large-model")
    async with open_house(world) as house:
        house.ask("a", params=[("model", ["small"])])
        house.ask("b", params=[("model", ["small"])])
        house.ask("c", params=[("model", ["large"])])
        await house.run(2)
        assert sorted(world.backend.prompts()) == ["a", "c"]


async def test_a_slot_is_given_back_when_a_request_comes_a_second_time(tmp_path: Path) -> None:
    world = slots(manual(free(tmp_path)), 2)
    async with open_house(world) as house:
        event = job_request("once", providers=[PROVIDER.public_hex])
        house.offer(event)
        (await house.run(1)).finish()
        await delivered(house, event)
    async with open_house(world) as house:
        house.intake._seen = type(house.intake._seen)()  # as if it were too old to be remembered
        assert house.offer(event) is None
        await until(lambda: house.intake.counters.as_dict() == {"duplicate": 1})
        assert [lane.busy for lane in house.runner.lanes.values()] == [0]
        assert len(world.backend.runs) == 1
        assert len(house.engine.open_jobs) == 0


async def test_draining_lets_what_runs_finish_and_starts_nothing(tmp_path: Path) -> None:
    world = slots(manual(free(tmp_path)), 1)
    async with open_house(world) as house:
        running, waiting = house.ask("runs"), house.ask("waits", key=STRANGER)
        run = await house.run()
        drained = anyio.Event()

        async def drain() -> None:
            await house.runner.drain()
            drained.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(drain)
            await house.quiet()
            assert not drained.is_set()
            run.finish()
            with anyio.fail_after(5):
                await drained.wait()
        await delivered(house, running)
        assert (await house.job(waiting.id)).work is Work.QUEUED
        assert len(world.backend.runs) == 1


async def test_a_start_under_way_is_waited_for_by_drain(tmp_path: Path) -> None:
    world = slots(manual(free(tmp_path)), 1)
    async with open_house(world) as house:
        request = house.ask()  # its slot is taken, its attempt is not committed yet
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(house.runner.drain)
            (await house.run()).finish()
        await house.reaches(request.id, Work.DELIVERED)


async def test_the_speed_of_a_lane_is_learned(tmp_path: Path) -> None:
    world = manual(free(tmp_path))
    ticks = Ticks()
    world.monotonic = ticks
    async with open_house(world) as house:
        request = house.ask()
        run = await house.run()
        job = await house.job(request.id)
        assert house.runner.eta_s(job) == 0
        ticks.now += 8
        run.finish()
        await delivered(house, request)
        await until(lambda: not any(lane.busy for lane in house.runner.lanes.values()))
        assert house.runner.eta_s(job) == 8
        assert house.runner.eta_s(replace(job, model="unknown")) == 0
        house.ask("another")
        await house.run(2)
        assert house.runner.eta_s(job) == 16


async def test_a_backend_whose_check_breaks_its_word_is_asked_again_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = free(tmp_path)
    broke, asked_again = anyio.Event(), anyio.Event()

    async def check(self: FakeBackend) -> BackendState:
        if not broke.is_set():
            broke.set()
            raise KeyError("a plug-in's fault")
        asked_again.set()
        return self.state()

    monkeypatch.setattr(FakeBackend, "check", check)
    async with open_house(world) as house:
        await broke.wait()
        await delivered(house, house.ask())
        with anyio.fail_after(30):
            await asked_again.wait()
