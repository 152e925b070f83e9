"""What the service manager is told, over real datagram sockets, and what happens where nobody listens."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from pylon.service.notify import Notifier, PipeManager
from tests.support.notify import notify_socket

PID = 4242


def test_what_the_environment_asks_for_is_taken_out_of_it() -> None:
    environ = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(PID), "HOME": "/"}
    assert Notifier.take(environ, PID).watchdog_s == 3.0
    assert environ == {"HOME": "/"}, "a child would speak for us"


@pytest.mark.parametrize(
    ("environ", "watchdog_s"),
    [
        ({"NOTIFY_SOCKET": "@x"}, None),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1500000"}, 1.5),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"}, None),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "soon"}, None),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "1500000"}, None),
        ({"NOTIFY_SOCKET": "vsock:2:1", "WATCHDOG_USEC": "1500000"}, None),
    ],
)
def test_the_watchdog_is_ours_or_none(environ: dict[str, str], watchdog_s: float | None) -> None:
    assert Notifier.take(environ, PID).watchdog_s == watchdog_s


@pytest.mark.parametrize("abstract", [True, False])
async def test_each_message_is_one_datagram(abstract: bool, tmp_path: Path) -> None:
    with notify_socket(None if abstract else str(tmp_path / "n")) as manager:
        notifier = Notifier.take({"NOTIFY_SOCKET": manager.address}, PID)
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        await notifier.reloading()
        await notifier.ready("takes\njobs \x1b[31m")
        await notifier.alive()
        await notifier.more_time(1.5)
        await notifier.stopping("done")
        said = [manager.next() for _ in range(5)]
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert said[0] is not None
    assert before <= int(said[0].pop("MONOTONIC_USEC")) <= after
    assert said == [
        {"RELOADING": "1"},
        {"READY": "1", "STATUS": "takes\\x0ajobs \\x1b[31m"},
        {"WATCHDOG": "1"},
        {"EXTEND_TIMEOUT_USEC": "1500000"},
        {"STOPPING": "1", "STATUS": "done"},
    ]


async def test_a_full_queue_is_waited_for() -> None:
    """READY must not be lost because the manager is slow."""
    with notify_socket() as manager:
        notifier = Notifier.take({"NOTIFY_SOCKET": manager.address}, PID)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
            filler.setblocking(False)
            filled = 0
            with pytest.raises(BlockingIOError):
                while True:
                    filler.sendto(b"X=1", f"\0{manager.address[1:]}")
                    filled += 1
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(notifier.ready, "takes jobs")
            await anyio.lowlevel.checkpoint()  # it has met the full queue by now
            for _ in range(filled):
                manager.next()
        assert manager.next() == {"READY": "1", "STATUS": "takes jobs"}


async def test_where_nobody_listens_nothing_is_held_up(tmp_path: Path) -> None:
    with anyio.fail_after(20):
        await Notifier().ready("takes jobs")
        await Notifier.take({"NOTIFY_SOCKET": str(tmp_path / "gone")}, PID).ready("takes jobs")


async def test_a_pipe_carries_the_same_lines_until_its_reader_leaves() -> None:
    hears, tells = os.pipe()
    notifier = Notifier(PipeManager(tells))
    await notifier.ready("takes jobs")
    assert os.read(hears, 100) == b"READY=1\nSTATUS=takes jobs\n"
    os.close(hears)
    await notifier.status("on its own")
    await notifier.alive()
    os.close(tells)
