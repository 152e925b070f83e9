"""An event loop for a command that asks others and ends on time, even where looking up their names hangs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def run_on_time(ask: Callable[[], Awaitable[T]]) -> T:
    """Run `ask` in a loop of its own and return its answer, without waiting for name look-ups it has given up.

    With broken DNS each may take half a minute to fail, and Python waits for the threads of a loop and at its exit.
    """
    import anyio

    async def asked() -> T:
        asyncio.get_running_loop().set_default_executor(_Abandonable())
        return await ask()

    return anyio.run(asked)


class _Abandonable(ThreadPoolExecutor):
    """Runs each call on a daemon thread of its own, for which nothing waits."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start a call at once."""
        future: Future[Any] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - whoever waits for the future gets it
                future.set_exception(error)
            else:
                future.set_result(result)

        threading.Thread(target=work, name="look-up", daemon=True).start()
        return future
