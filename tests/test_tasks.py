"""Work started by synchronous code: done, cancelled alone, and never started in a group that is ending."""

from __future__ import annotations

import asyncio

import anyio
import anyio.lowlevel
import pytest

from pylon.tasks import Crew, Worker, beside

LIMIT_S = 5.0


async def test_work_is_done_and_its_task_used_again() -> None:
    crew, done = Crew(), []

    async def work(number: int) -> None:
        done.append((number, asyncio.current_task()))

    with anyio.fail_after(LIMIT_S):
        async with crew.working() as group:
            for number in range(3):
                assert crew.start(work, number) is not None
                while len(done) <= number:
                    await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
    assert [number for number, _ in done] == [0, 1, 2]
    assert len({task for _, task in done}) == 1


async def test_as_many_work_at_once_as_are_started() -> None:
    crew, at_work, release = Crew(), [], anyio.Event()

    async def work(number: int) -> None:
        at_work.append(number)
        await release.wait()

    with anyio.fail_after(LIMIT_S):
        async with crew.working() as group:
            for number in range(100):
                crew.start(work, number)
            while len(at_work) < 100:
                await anyio.lowlevel.checkpoint()
            release.set()
            group.cancel_scope.cancel()
    assert sorted(at_work) == list(range(100))


async def test_a_cancelled_work_ends_alone() -> None:
    crew, ended = Crew(), []

    async def work(name: str) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(name)

    with anyio.fail_after(LIMIT_S):
        async with crew.working() as group:
            first, second = crew.start(work, "first"), crew.start(work, "second")
            assert first is not None
            assert second is not None
            await anyio.lowlevel.checkpoint()
            first.cancel()
            while not ended:
                await anyio.lowlevel.checkpoint()
            assert ended == ["first"]
            group.cancel_scope.cancel()
    assert ended == ["first", "second"]


async def test_work_cancelled_before_it_began_does_not_go_past_its_first_wait() -> None:
    crew, reached = Crew(), []

    async def work() -> None:
        await anyio.lowlevel.checkpoint()
        reached.append(True)

    with anyio.fail_after(LIMIT_S):
        async with crew.working() as group:
            worker = crew.start(work)
            assert worker is not None
            worker.cancel()
            await anyio.sleep(0.01)
            group.cancel_scope.cancel()
    assert reached == []


async def test_a_cancellation_that_comes_as_the_work_ends_does_not_hit_the_next_work() -> None:
    crew, done = Crew(), []

    async def cancelled_at_its_end(worker: list[Worker]) -> None:
        worker[0].cancel()  # and then it returns without waiting for anything

    async def next_work() -> None:
        await anyio.lowlevel.checkpoint()
        done.append(True)

    with anyio.fail_after(LIMIT_S):
        async with crew.working() as group:
            holder: list[Worker] = []
            worker = crew.start(cancelled_at_its_end, holder)
            assert worker is not None
            holder.append(worker)
            await anyio.sleep(0.01)
            crew.start(next_work)
            while not done:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()


async def test_nothing_is_started_outside_working() -> None:
    crew, done = Crew(), []

    async def work() -> None:
        done.append(True)

    assert crew.start(work) is None
    async with crew.working() as group:
        group.cancel_scope.cancel()
        assert crew.start(work) is None
    assert crew.start(work) is None
    await anyio.lowlevel.checkpoint()
    assert done == []


async def test_a_group_that_is_cancelled_ends_though_its_last_task_asks_for_more() -> None:
    """When no task is left but the group is not over, anyio would start a task that it never cancels."""
    crew = Crew()

    async def for_ever() -> None:
        await anyio.sleep_forever()

    async def last() -> None:
        task = asyncio.current_task()
        assert task is not None
        # Called after anyio's own callback, which has woken the group up, and before the group goes on.
        task.add_done_callback(lambda _: crew.start(for_ever))
        with anyio.CancelScope(shield=True):
            await ending.wait()
            for _ in range(10):  # the group takes its own cancellation meanwhile
                await anyio.lowlevel.checkpoint()

    ending = anyio.Event()
    with anyio.fail_after(LIMIT_S):
        async with crew.working() as group:
            crew.start(last)
            await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
            ending.set()


async def test_a_fault_in_work_ends_the_group() -> None:
    crew = Crew()

    async def work() -> None:
        raise RuntimeError("broken")

    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="broken")):
        async with crew.working():
            crew.start(work)
            await anyio.sleep_forever()


async def test_what_a_block_raises_comes_out_as_it_is_and_ends_what_ran_beside_it() -> None:
    ended = anyio.Event()

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    with pytest.raises(KeyError, match="mine"):
        async with beside(work):
            await anyio.lowlevel.checkpoint()
            raise KeyError("mine")
    assert ended.is_set()
    with anyio.move_on_after(0.01) as scope:
        async with beside(work):
            await anyio.sleep_forever()
    assert scope.cancelled_caught
