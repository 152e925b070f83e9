"""A process that looks like a daemon to the command line: the lock of a home and the control API, no more.

`python -m tests.support.fake_daemon HOME [deaf|stubborn|mute] [STATE]`; prints a line when it is there. A deaf one
ignores the API's stop, a stubborn one SIGTERM too, a mute one has no API at all.
Another line tells that the API was asked to stop.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio

from pylon.control.server import serve_control
from pylon.control.views import DaemonState
from pylon.lock import instance_lock
from pylon.paths import paths_under
from tests.support.control_views import STATUS, FakeViews


async def _serve(home: Path, manner: str, state: str) -> None:
    views = FakeViews()
    views.answer = replace(STATUS, state=DaemonState(state))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_hear_signals, tasks.cancel_scope, manner)
        if manner != "mute":
            await tasks.start(partial(serve_control, views, paths_under(home).control_socket))
        print("up", flush=True)
        await views.stop_requested.wait()
        print("asked to stop", flush=True)
        if manner in ("deaf", "stubborn"):
            await anyio.sleep_forever()
        tasks.cancel_scope.cancel()


async def _hear_signals(scope: anyio.CancelScope, manner: str) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            if manner != "stubborn":
                scope.cancel()


@contextlib.contextmanager
def fake_daemon(
    home: Path, manner: str = "", state: str = "ready"
) -> Generator[subprocess.Popen[bytes], None, None]:
    """Run one until the end of the block."""
    command = [sys.executable, "-m", "tests.support.fake_daemon", str(home), manner, state]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            yield process
        finally:
            process.kill()


def run_pylon(*arguments: str, home: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run the real command in its own process."""
    environment = {**os.environ, "PYLON_HOME": str(home), "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pylon", *arguments],
        capture_output=True, text=True, input=stdin, timeout=30, env=environment, cwd=Path(__file__).parents[2],
        check=False,
    )  # fmt: skip


if __name__ == "__main__":
    with instance_lock(paths_under(Path(sys.argv[1])).lock_file):
        anyio.run(_serve, Path(sys.argv[1]), sys.argv[2], sys.argv[3])
