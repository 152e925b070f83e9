"""The control API: HTTP over a Unix socket that only its owner can open.

`serve_control` runs inside the daemon's task group and ends by cancellation. The socket is bound here, under a
umask, because it must be 0600 from its first moment (uvicorn's own Unix sockets become 0666). Where the system
tells who is at the other end, that is asked too: a folder that was opened later opens nothing. Every connection
carries one request, has a lifetime, and its body is never read: there is nothing a client could make grow.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import anyio
import orjson
import structlog
import uvicorn
from anyio.abc import TaskStatus
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from pylon.control.asked import asked_for_s, asked_job_id, asked_number, asked_text, asked_why, asked_word
from pylon.control.codec import dump_json
from pylon.control.protocol import ControlViews
from pylon.control.views import (
    API_VERSION,
    MAX_DESTINATION,
    MAX_JOBS,
    MAX_REASON,
    EarningsBy,
    JobsQuery,
    ViewError,
)
from pylon.paths import FolderError, private_folder
from pylon.store.records import Money, Work

log = structlog.get_logger("pylon.control")

_PEERCRED: Final = struct.Struct("iII")  # ucred: pid, uid, gid
_ROOT: Final = 0  # it could become any user anyway
_MAX_STRANGERS: Final = 16
_MAX_HEADER_BYTES: Final = 16 * 1024
_BACKLOG: Final = 64


class ControlSocketError(Exception):
    """The socket cannot be bound safely; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class ControlLimits:
    """What one client may take."""

    connections: int = 32
    lifetime_s: float = 30.0  # a connection, from accept to close
    answer_s: float = 10.0  # one answer of the daemon
    body_bytes: int = 64 * 1024  # a request announcing more is refused
    stop_s: int = 1  # open answers may take this long once the server is told to stop


async def serve_control(
    views: ControlViews,
    path: Path,
    limits: ControlLimits = ControlLimits(),
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `views` on the socket at `path` until cancelled. Hold the instance lock before: a stale socket goes.

    Raises `ControlSocketError`. Stopping takes at most about `limits.stop_s` plus a second.
    """
    with control_socket(path) as listener:
        server = _Server(_config(views, limits), task_status.started)
        try:
            await server.serve(sockets=[listener])
        finally:
            with anyio.CancelScope(shield=True):
                await server.end(listener)


@contextlib.contextmanager
def control_socket(path: Path) -> Generator[socket.socket, None, None]:
    """Bind the listening socket, mode 0600, and remove it at the end if it is still ours.

    Raises `ControlSocketError`.
    """
    _check_place(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listener:
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        except OSError as error:
            # The limit is 108 bytes on Linux and 104 on macOS, and the error only says "too long".
            hint = " (choose a shorter home)" if "too long" in str(error) else ""
            raise ControlSocketError(f"cannot bind the control socket {path}: {error}{hint}") from error
        finally:
            os.umask(before)
        ours = path.lstat()
        try:
            listener.setblocking(False)
            yield listener
        finally:
            with contextlib.suppress(OSError):
                now = path.lstat()
                if (now.st_dev, now.st_ino) == (ours.st_dev, ours.st_ino):
                    path.unlink()


def _check_place(path: Path) -> None:
    try:
        private_folder(path.parent)
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ControlSocketError(f"{path} is in the way and not a socket: move it")
        path.unlink()
    except FileNotFoundError:
        return  # nothing stale is there
    except FolderError as error:
        raise ControlSocketError(str(error)) from error
    except OSError as error:
        raise ControlSocketError(f"cannot remove the stale control socket {path}: {error.strerror}") from error


def _config(views: ControlViews, limits: ControlLimits) -> uvicorn.Config:
    return uvicorn.Config(
        _app(views, limits),
        http=_bounded_protocol(limits),
        ws="none",
        lifespan="off",
        log_config=None,  # its loggers are the standard library's and reach pylon.logs
        access_log=False,
        workers=1,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=limits.stop_s,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
    )


class _Server(uvicorn.Server):
    """uvicorn without signal handlers, without its ten wake-ups a second, and with an end that is an end."""

    def __init__(self, config: uvicorn.Config, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._listening = listening

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the signals to the daemon."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell who started us that connections are taken."""
        await super().startup(sockets)
        self._listening()

    async def main_loop(self) -> None:
        """Wait to be cancelled; there is nothing to poll for."""
        await anyio.sleep_forever()

    async def end(self, listener: socket.socket) -> None:
        """Let open answers finish for a bounded time, then cut what is left."""
        if not self.started:
            return
        await self.shutdown(sockets=[listener])
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=1)


def peer_uid(connection: socket.socket) -> int | None:
    """Return the user at the other end of a Unix socket, None where the system does not tell (only Linux does)."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    _, uid, _ = _PEERCRED.unpack(raw)
    return int(uid)


def _bounded_protocol(limits: ControlLimits) -> type[H11Protocol]:
    strangers: set[int] = set()

    class BoundedProtocol(H11Protocol):
        """HTTP/1.1 for our own user, with a limit on connections and on the life of each."""

        _cut: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            uid = peer_uid(transport.get_extra_info("socket"))
            if uid not in (None, os.geteuid(), _ROOT):
                if uid not in strangers and len(strangers) < _MAX_STRANGERS:
                    strangers.add(uid)  # one line each, however often it tries
                    log.warning("another user tried the control socket and was refused", uid=uid)
                transport.abort()
                return
            if len(self.connections) > limits.connections:
                transport.abort()
                return
            self._cut = self.loop.call_later(limits.lifetime_s, transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._cut is not None:
                self._cut.cancel()
            super().connection_lost(exc)

    return BoundedProtocol


# --- the questions --------------------------------------------------------------------------------------------


def _app(views: ControlViews, limits: ControlLimits) -> Starlette:
    api = _Api(views)

    def route(path: str, answer: Callable[[Request], Awaitable[object]], method: str) -> Route:
        async def endpoint(request: Request) -> Response:
            async with _within(limits, request):
                return _answer(200, {"data": await answer(request)})

        return Route(path, endpoint, methods=[method])

    return Starlette(
        routes=[
            route("/status", api.status, "GET"),
            route("/jobs", api.jobs, "GET"),
            route("/jobs/{id}", api.job, "GET"),
            route("/jobs/{id}/cancel", api.cancel, "POST"),
            route("/jobs/{id}/refund", api.pay_refund, "POST"),
            route("/jobs/{id}/write-off", api.write_off, "POST"),
            route("/refunds", api.refunds, "GET"),
            route("/earnings", api.earnings, "GET"),
            route("/announcement", api.announcement, "GET"),
            route("/announcement/publish", api.publish, "POST"),
            route("/announcement/withdraw", api.withdraw, "POST"),
            route("/pause", api.pause, "POST"),
            route("/resume", api.resume, "POST"),
            route("/drain", api.drain, "POST"),
            route("/reload", api.reload, "POST"),
            route("/stop", api.stop, "POST"),
        ],
        exception_handlers={
            ViewError: _view_error,
            TimeoutError: _too_slow,
            HTTPException: _http_error,
            Exception: _fault,
        },
    )


class _Api:
    """One method per question: read the request, ask the views."""

    def __init__(self, views: ControlViews) -> None:
        self._views = views

    async def status(self, request: Request) -> object:
        return self._views.status()

    async def jobs(self, request: Request) -> object:
        asked = request.query_params
        query = JobsQuery(
            work=asked_word(asked.get("work"), Work, "work"),
            money=asked_word(asked.get("money"), Money, "money"),
            limit=asked_number(asked.get("limit", "50"), "limit", 1, MAX_JOBS),
            after=asked_job_id(asked["after"]) if "after" in asked else None,
        )
        return list(await self._views.jobs(query))

    async def job(self, request: Request) -> object:
        show_input = request.query_params.get("input") == "1"
        detail = await self._views.job(asked_job_id(request.path_params["id"]), show_input=show_input)
        return detail if show_input else replace(detail, request_json=None)

    async def cancel(self, request: Request) -> object:
        return await self._views.cancel_job(asked_job_id(request.path_params["id"]))

    async def refunds(self, request: Request) -> object:
        return list(await self._views.refunds(ended=request.query_params.get("ended") == "1"))

    async def pay_refund(self, request: Request) -> object:
        to = asked_text(request.query_params.get("to", ""), "to", 0, MAX_DESTINATION)
        return await self._views.pay_refund(asked_job_id(request.path_params["id"]), to)

    async def write_off(self, request: Request) -> object:
        reason = asked_text(request.query_params.get("reason", ""), "reason", 1, MAX_REASON)
        return await self._views.write_off(asked_job_id(request.path_params["id"]), reason)

    async def earnings(self, request: Request) -> object:
        asked = request.query_params
        since = asked_number(asked["since"], "since", 0, 2**53) if "since" in asked else None
        until = asked_number(asked["until"], "until", 0, 2**53) if "until" in asked else None
        by = asked_word(asked.get("by"), EarningsBy, "by") or EarningsBy.TOTAL
        return await self._views.earnings(since, by, until=until, local=asked.get("local") == "1")

    async def announcement(self, request: Request) -> object:
        return self._views.announcement()

    async def publish(self, request: Request) -> object:
        return await self._views.publish_announcement()

    async def withdraw(self, request: Request) -> object:
        return await self._views.withdraw_announcement()

    async def pause(self, request: Request) -> object:
        asked = request.query_params
        return await self._views.pause(asked_for_s(asked), asked_why(asked), at_once=asked.get("now") == "1")

    async def resume(self, request: Request) -> object:
        asked = request.query_params
        return await self._views.resume(asked_for_s(asked), ignore_rules=asked.get("ignore_rules") == "1")

    async def drain(self, request: Request) -> object:
        asked = request.query_params
        return await self._views.drain(asked_why(asked), exits=asked.get("exit") == "1")

    async def reload(self, request: Request) -> object:
        return await self._views.reload()

    async def stop(self, request: Request) -> object:
        self._views.request_stop()
        return {"stopping": True, "pid": os.getpid()}


# --- the answers ----------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _within(limits: ControlLimits, request: Request) -> AsyncIterator[None]:
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or len(length) > 9 or int(length) > limits.body_bytes:
        raise HTTPException(413, f"a request holds at most {limits.body_bytes} bytes")
    with anyio.fail_after(limits.answer_s):
        yield


def _answer(status: int, content: dict[str, Any]) -> Response:
    envelope = {"api_version": API_VERSION, **content}
    try:
        body = orjson.dumps(envelope)
    except TypeError:
        # A lone surrogate in a stranger's text, or a number over 64 bits: the slow encoder takes both.
        body = dump_json(envelope).encode()
    return Response(body, status, {"connection": "close"}, "application/json")


def _error(status: int, code: str, message: str) -> Response:
    return _answer(status, {"error": {"code": code, "message": message}})


async def _view_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ViewError)
    return _error(error.http_status, error.code, str(error))


async def _too_slow(request: Request, error: Exception) -> Response:
    log.warning("a control request took too long", path=request.url.path)
    return _error(504, "busy", "the daemon is too busy to answer; what was asked for may still happen")


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, "bad-request", error.detail)


async def _fault(request: Request, error: Exception) -> Response:
    # Starlette raises it again after this answer and uvicorn logs it: one line, from pylon.logs.
    return _error(500, "internal", f"{type(error).__name__} in the daemon: its log has more")
