"""The control server and its client over a real Unix socket."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import structlog

from pylon.control import server
from pylon.control.client import (
    BadAnswer,
    ControlClient,
    ControlError,
    DaemonNotRunning,
    DaemonRefused,
    DaemonSilent,
)
from pylon.control.owner_line import OwnerLine, RuleLine
from pylon.control.server import ControlLimits, ControlSocketError, control_socket, serve_control
from pylon.control.views import EarningsBy, JobsQuery, ViewError
from tests.support.control_views import ANNOUNCED, JOBS, NASTY, PLAINTEXT, RELOADED, STATUS, FakeViews

T = TypeVar("T")


@asynccontextmanager
async def served(path: Path, views: FakeViews, limits: ControlLimits | None = None) -> AsyncIterator[ControlClient]:
    async with anyio.create_task_group() as tasks:
        await tasks.start(partial(serve_control, views, path, limits or ControlLimits()))
        yield ControlClient(path, timeout_s=5)
        tasks.cancel_scope.cancel()


async def off_loop(call: Callable[[], T]) -> T:
    """The client blocks: the loop that serves it must stay free."""
    with anyio.fail_after(10):
        return await anyio.to_thread.run_sync(call)


async def raw(path: Path, request: bytes) -> bytes:
    """Send bytes and return everything until the server closes."""
    with anyio.fail_after(10):
        async with await anyio.connect_unix(path) as stream:
            await stream.send(request)
            answer = b""
            try:
                while True:
                    answer += await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return answer


def mode_of(path: Path) -> int:
    """Return type and permissions, 0 when nothing is there."""
    return path.lstat().st_mode if path.exists() else 0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "control.sock"


async def test_every_question_comes_back_as_the_same_values(path: Path) -> None:
    views = FakeViews()
    async with served(path, views) as client:
        assert await off_loop(client.status) == STATUS
        assert await off_loop(lambda: client.jobs(JobsQuery())) == JOBS
        only = JobsQuery(work="running", money="settled", limit=7, after="ab" * 32)
        assert await off_loop(lambda: client.jobs(only)) == JOBS[:1]
        assert only in views.asked
        detail = await off_loop(lambda: client.job(JOBS[2].id[:6]))
        assert detail.job == JOBS[2]
        assert detail.journal[1].text == NASTY
        earnings = await off_loop(lambda: client.earnings(1_700_000_000, "day"))
        assert earnings.by is EarningsBy.DAY
        assert earnings.total == STATUS.books
        assert (1_700_000_000, "day") in views.asked
        await off_loop(lambda: client.earnings(None, "total"))
        assert (None, "total") in views.asked
        cancelled = await off_loop(lambda: client.cancel_job(JOBS[0].id))
        assert (cancelled.work, cancelled.money) == ("cancelled", "refund_due")
        assert views.cancelled == [JOBS[0].id]
        assert await off_loop(client.announcement) == ANNOUNCED
        assert (await off_loop(client.publish_announcement)).confirmed_by == "wss://relay.one"
        assert (await off_loop(client.withdraw_announcement)).state == "withdrawn"
        assert await off_loop(client.reload) == RELOADED
        await off_loop(client.request_stop)
        assert views.stop_requested.is_set()


async def test_the_owners_orders_arrive_as_they_were_given(path: Path) -> None:
    views = FakeViews()
    rules = (RuleLine("hours", True, NASTY, False, 1_700_000_900), RuleLine("idle_only", True, "not known"))
    views.owner = OwnerLine("paused", "rules", 1_700_000_000, 1_700_000_900, NASTY, freed_bytes=5, rules=rules)
    async with served(path, views) as client:
        assert await off_loop(lambda: client.pause(60, "lunch", at_once=True)) == views.owner
        await off_loop(lambda: client.resume(3_600, ignore_rules=True))
        await off_loop(lambda: client.drain("a new disk", exits=True))
        for plain in (client.pause, client.resume, client.drain):
            await off_loop(plain)
        assert views.asked == [
            ("pause", 60, "lunch", True),
            ("resume", 3_600, True),
            ("drain", "a new disk", True),
            ("pause", None, "", False),
            ("resume", None, False),
            ("drain", "", False),
        ]
        for wrong in ("/pause?for_s=0", "/pause?for_s=x", f"/pause?why={'x' * 201}", "/resume?for_s=-1"):
            assert b'"code":"bad-query"' in await raw(
                path, b"POST %s HTTP/1.1\r\nHost: pylon\r\n\r\n" % wrong.encode()
            )
        views.fault = ViewError("the daemon is stopping: order it after the next start")
        with pytest.raises(DaemonRefused, match="order it after the next start"):
            await off_loop(client.pause)


async def test_plaintext_only_when_asked_for(path: Path) -> None:
    async with served(path, FakeViews()) as client:
        assert (await off_loop(lambda: client.job(JOBS[1].id))).request_json is None
        assert (await off_loop(lambda: client.job(JOBS[1].id, show_input=True))).request_json == PLAINTEXT


async def test_socket_is_private_and_goes_away(path: Path) -> None:
    async with served(path, FakeViews()):
        assert mode_of(path) == stat.S_IFSOCK | 0o600
        assert mode_of(path.parent) == stat.S_IFDIR | 0o700
    assert mode_of(path) == 0


def test_socket_is_private_from_its_first_moment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []

    class Watching(socket.socket):
        def bind(self, address: object) -> None:
            super().bind(address)  # type: ignore[arg-type]
            modes.append(stat.S_IMODE(path.lstat().st_mode))

    monkeypatch.setattr(socket, "socket", Watching)
    before = os.umask(0)
    try:
        with control_socket(path):
            assert os.umask(0) == 0  # ours was put back
    finally:
        os.umask(before)
    assert modes == [0o600]


AS_NOBODY = """
import os, socket, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
client = socket.socket(socket.AF_UNIX)
client.settimeout(10)
client.connect(sys.argv[1])
try:
    client.sendall(b"GET /status HTTP/1.1\\r\\nhost: pylon\\r\\n\\r\\n")
    print(len(client.recv(100)))
except ConnectionError:
    print(0)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user_is_refused_even_where_folder_and_socket_let_it_in() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own lies where no other user gets to
        path = Path(folder) / "run" / "control.sock"
        views = FakeViews()
        async with served(path, views) as client:
            for opened, mode in ((path.parent.parent, 0o711), (path.parent, 0o711), (path, 0o666)):
                opened.chmod(mode)
            command = [sys.executable, "-I", "-S", "-c", AS_NOBODY, str(path)]
            with structlog.testing.capture_logs() as lines:
                for _ in range(2):
                    with anyio.fail_after(20):
                        done = await anyio.run_process(command)
                    assert done.stdout == b"0\n"
            assert [line["uid"] for line in lines] == [65534], "one line, however often it tries"
            assert views.asked == []
            assert await off_loop(client.status) == STATUS, "and its owner is served as before"


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="the system does not tell")
@pytest.mark.parametrize(("uid", "answered"), [(12345, False), (0, True), (None, True), (os.geteuid(), True)])
async def test_who_is_served_by_the_credential(
    path: Path, monkeypatch: pytest.MonkeyPatch, uid: int | None, answered: bool
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert server.peer_uid(ours) == os.geteuid()
    monkeypatch.setattr(server, "peer_uid", lambda _: uid)
    async with served(path, FakeViews()):
        said = await raw(path, b"GET /status HTTP/1.1\r\nhost: pylon\r\n\r\n")
    assert bool(said) is answered


async def test_stale_socket_is_replaced(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with served(path, FakeViews()) as client:
        assert (await off_loop(client.status)).pid == STATUS.pid


def test_successors_socket_is_left_alone(path: Path) -> None:
    with control_socket(path):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(str(path))
    assert path.exists()


def test_what_is_not_a_socket_stays(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_text("mine")
    with pytest.raises(ControlSocketError, match="not a socket"), control_socket(path):
        pass
    assert path.read_text() == "mine"


def test_folder_open_to_others_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o777)
    (path.parent / "somebody's file").touch()
    with pytest.raises(ControlSocketError, match="chmod 700"), control_socket(path):
        pass


def test_too_long_path_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ControlSocketError, match="shorter home"), control_socket(tmp_path / ("x" * 120) / "s"):
        pass


def test_nobody_there(path: Path) -> None:
    client = ControlClient(path)
    with pytest.raises(DaemonNotRunning):
        client.status()
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(DaemonNotRunning):
        client.status()


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        ("GET /jobs/ffffffff", 404, "not-found"),
        ("GET /jobs/010101", 409, "ambiguous"),
        ("GET /jobs/0101", 400, "bad-query"),
        ("GET /jobs/..%2f..%2fetc", 404, "bad-request"),
        ("GET /jobs/%1b%5b31m", 400, "bad-query"),
        ("GET /jobs?limit=0", 400, "bad-query"),
        ("GET /jobs?limit=501", 400, "bad-query"),
        ("GET /jobs?limit=" + "9" * 5000, 400, "bad-query"),
        ("GET /jobs?limit=%C2%B2", 400, "bad-query"),
        ("GET /jobs?work=sleeping", 400, "bad-query"),
        ("GET /jobs?after=zz", 400, "bad-query"),
        ("GET /earnings?by=moon", 400, "bad-query"),
        ("GET /earnings?since=-1", 400, "bad-query"),
        ("POST /jobs/020202/cancel", 409, "refused"),
        ("POST /status", 405, "bad-request"),
        ("GET /stop", 405, "bad-request"),
        ("GET /nothing", 404, "bad-request"),
    ],
)
async def test_bad_questions_get_a_reason(path: Path, target: str, status: int, code: str) -> None:
    views = FakeViews()
    async with served(path, views):
        answer = await raw(path, f"{target} HTTP/1.1\r\nHost: pylon\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert json.loads(body)["error"]["code"] == code
    assert not views.stop_requested.is_set()


async def test_the_client_sees_the_reason(path: Path) -> None:
    async with served(path, FakeViews()) as client:
        with pytest.raises(DaemonRefused, match="2 jobs start with 010101") as caught:
            await off_loop(lambda: client.job("010101"))
        assert caught.value.code == "ambiguous"
        with pytest.raises(DaemonRefused):
            await off_loop(lambda: client.job("../status"))


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x00\xff\x16\x03\x01 garbage \r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 20_000,
        b"POST /stop HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n",
        b"POST /stop HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nContent-Length: x\r\n\r\n",
    ],
)
async def test_garbage_and_oversize_end_in_an_error_and_nothing_else(path: Path, request_bytes: bytes) -> None:
    views = FakeViews()
    async with served(path, views) as client:
        answer = await raw(path, request_bytes)
        assert answer[:10] in (b"HTTP/1.1 4", b"")
        assert not views.stop_requested.is_set()
        assert await off_loop(client.status) == STATUS


async def test_slow_clients_are_cut_and_do_not_stop_others(path: Path) -> None:
    async with (
        served(path, FakeViews(), ControlLimits(lifetime_s=0.3)) as client,
        await anyio.connect_unix(path) as silent,
        await anyio.connect_unix(path) as half,
    ):
        await half.send(b"GET /status HTTP/1.1\r\nHost")
        assert await off_loop(client.status) == STATUS
        with anyio.fail_after(5):
            for stream in (silent, half):
                with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                    await stream.receive()


async def test_connections_are_bounded(path: Path) -> None:
    async with (
        served(path, FakeViews(), ControlLimits(connections=2)) as client,
        await anyio.connect_unix(path),
        await anyio.connect_unix(path),
    ):
        with pytest.raises(ControlError):
            await off_loop(client.status)


async def test_slow_answer_is_told(path: Path) -> None:
    views = FakeViews()
    views.pause_s = 60
    async with served(path, views, ControlLimits(answer_s=0.1)) as client:
        with pytest.raises(DaemonRefused, match="too busy") as caught:
            await off_loop(lambda: client.jobs(JobsQuery()))
    assert caught.value.code == "busy"


async def test_fault_in_the_daemon_is_one_line_without_its_text(path: Path) -> None:
    views = FakeViews()
    views.fault = RuntimeError("token=hunter2")
    async with served(path, views) as client:
        with pytest.raises(DaemonRefused, match="RuntimeError in the daemon") as caught:
            await off_loop(lambda: client.jobs(JobsQuery()))
        assert "hunter2" not in str(caught.value)
        assert await off_loop(client.status) == STATUS


async def test_stop_is_clean_and_bounded_with_open_connections(path: Path) -> None:
    views = FakeViews()
    views.pause_s = 60
    async with anyio.create_task_group() as tasks:
        await tasks.start(partial(serve_control, views, path))
        silent = await anyio.connect_unix(path)
        waiting = await anyio.connect_unix(path)
        await waiting.send(b"GET /jobs HTTP/1.1\r\nHost: x\r\n\r\n")
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(5):
            tasks.cancel_scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert mode_of(path) == 0
    await silent.aclose()
    await waiting.aclose()


@asynccontextmanager
async def impostor(path: Path, answer: bytes) -> AsyncIterator[ControlClient]:
    """Something else on the socket: sends `answer` and waits."""
    path.parent.mkdir(exist_ok=True)
    listener = await anyio.create_unix_listener(path)

    async def handle(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(answer)
            if not answer.endswith(b"}"):
                await anyio.sleep_forever()

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        yield ControlClient(path, timeout_s=0.5, max_answer_bytes=1000)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", DaemonSilent),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nab", DaemonSilent),
        (b"SSH-2.0-OpenSSH\r\n", ControlError),
        (b'HTTP/1.0 200 OK\r\n\r\n{"a":1}', BadAnswer),
        (b'HTTP/1.0 200 OK\r\n\r\n[[[{"a":1}', BadAnswer),
        (b'HTTP/1.0 200 OK\r\n\r\n{"api_version":2,"data":{}}', BadAnswer),
        (b'HTTP/1.0 200 OK\r\n\r\n{"api_version":1,"data":{"pid":"x"}}', BadAnswer),
        (b"HTTP/1.0 200 OK\r\n\r\n" + b"[" * 900 + b"}", BadAnswer),
        (b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 2000 + b"}", BadAnswer),
    ],
)
async def test_the_client_survives_any_answer(path: Path, answer: bytes, error: type[ControlError]) -> None:
    async with impostor(path, answer) as client:
        with pytest.raises(error):
            await off_loop(client.status)
