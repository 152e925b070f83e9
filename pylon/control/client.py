"""The client side of the control API: plain synchronous calls over the daemon's Unix socket.

Standard library only, because `pylon status` answers within 0.4 s. Every call opens one connection, asks once
and has a deadline and a size limit.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

from pylon.control.codec import BadShape, decode
from pylon.control.owner_line import OwnerLine
from pylon.control.views import (
    API_VERSION,
    AnnouncementView,
    DaemonStatus,
    EarningsView,
    JobDetail,
    JobsQuery,
    JobView,
    RefundView,
    SettingsLine,
)
from pylon.text import printable

MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
_CHUNK: Final = 64 * 1024

T = TypeVar("T")


class ControlError(Exception):
    """The daemon could not be asked, or refused; the message is one sentence fit for a terminal."""


class DaemonNotRunning(ControlError):
    """Nothing listens on the socket."""


class DaemonSilent(ControlError):
    """Something listens and did not answer in time; a command may have been carried out."""


class BadAnswer(ControlError):
    """The answer is not one of this API: another program, or a daemon of another version."""


class DaemonRefused(ControlError):
    """The daemon answered with an error; `code` is its word (`not-found`, `ambiguous`, `bad-query`, …)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class _UnixConnection(http.client.HTTPConnection):
    """`http.client` over AF_UNIX."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("pylon", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Open the socket; the time limit holds for every operation on it."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class ControlClient:
    """Asks one daemon. Every method raises `ControlError`s and nothing else."""

    def __init__(
        self, socket_path: Path, *, timeout_s: float = 10.0, max_answer_bytes: int = MAX_ANSWER_BYTES
    ) -> None:
        self._path = socket_path
        self._timeout_s = timeout_s
        self._max_answer_bytes = max_answer_bytes

    def status(self) -> DaemonStatus:
        """Return the daemon's state."""
        return _decoded(DaemonStatus, self._ask("GET", "/status"))

    def jobs(self, query: JobsQuery) -> tuple[JobView, ...]:
        """Return the jobs that match, newest first."""
        asked = {"work": query.work, "money": query.money, "limit": query.limit, "after": query.after}
        answer = self._ask("GET", "/jobs", asked)
        if not isinstance(answer, list):
            raise BadAnswer("the daemon's list of jobs is not a list")
        return tuple(_decoded(JobView, item) for item in answer)

    def job(self, id_or_prefix: str, *, show_input: bool = False) -> JobDetail:
        """Return one job with its history; with `show_input` the customer's request too."""
        asked = {"input": 1 if show_input else None}
        return _decoded(JobDetail, self._ask("GET", f"/jobs/{quote(id_or_prefix, safe='')}", asked))

    def cancel_job(self, id_or_prefix: str) -> JobView:
        """Cancel a job and return what became of it."""
        return _decoded(JobView, self._ask("POST", f"/jobs/{quote(id_or_prefix, safe='')}/cancel"))

    def refunds(self, *, ended: bool = False) -> tuple[RefundView, ...]:
        """Return what is due or under way, oldest first; with `ended` what was refunded or written off too."""
        answer = self._ask("GET", "/refunds", {"ended": 1 if ended else None})
        if not isinstance(answer, list):
            raise BadAnswer("the daemon's list of refunds is not a list")
        return tuple(_decoded(RefundView, item) for item in answer)

    def pay_refund(self, id_or_prefix: str, to: str = "") -> RefundView:
        """Order a refund and return what became of it so far."""
        where = f"/jobs/{quote(id_or_prefix, safe='')}/refund"
        return _decoded(RefundView, self._ask("POST", where, {"to": to or None}))

    def write_off(self, id_or_prefix: str, reason: str) -> RefundView:
        """Write a refund off and return it."""
        where = f"/jobs/{quote(id_or_prefix, safe='')}/write-off"
        return _decoded(RefundView, self._ask("POST", where, {"reason": reason}))

    def earnings(
        self, since: int | None, by: str, *, until: int | None = None, local: bool = False
    ) -> EarningsView:
        """Return settled payments of a time (unix seconds, None: all), split by an `EarningsBy`."""
        asked = {"since": since, "until": until, "by": by, "local": 1 if local else None}
        return _decoded(EarningsView, self._ask("GET", "/earnings", asked))

    def announcement(self) -> AnnouncementView:
        """Return how the announcement stands."""
        return _decoded(AnnouncementView, self._ask("GET", "/announcement"))

    def publish_announcement(self) -> AnnouncementView:
        """Have the daemon announce now."""
        return _decoded(AnnouncementView, self._ask("POST", "/announcement/publish"))

    def withdraw_announcement(self) -> AnnouncementView:
        """Have the daemon withdraw the announcement, until it is published again."""
        return _decoded(AnnouncementView, self._ask("POST", "/announcement/withdraw"))

    def pause(self, for_s: int | None = None, why: str = "", *, at_once: bool = False) -> OwnerLine:
        """Have the daemon take and start no more jobs, for a time or until `resume`."""
        asked = {"for_s": for_s, "why": why or None, "now": 1 if at_once else None}
        return _decoded(OwnerLine, self._ask("POST", "/pause", asked))

    def resume(self, for_s: int | None = None, *, ignore_rules: bool = False) -> OwnerLine:
        """End a pause or drain; with `ignore_rules` the rules say nothing for a time, or until they allow it."""
        asked = {"for_s": for_s, "ignore_rules": 1 if ignore_rules else None}
        return _decoded(OwnerLine, self._ask("POST", "/resume", asked))

    def drain(self, why: str = "", *, exits: bool = False) -> OwnerLine:
        """Have the daemon take no more jobs and finish what is there, then pause or end."""
        return _decoded(OwnerLine, self._ask("POST", "/drain", {"why": why or None, "exit": 1 if exits else None}))

    def reload(self) -> SettingsLine:
        """Have the daemon read its settings again, and return what came of it."""
        return _decoded(SettingsLine, self._ask("POST", "/reload"))

    def request_stop(self) -> None:
        """Ask for a graceful stop; returns when the daemon has heard it, not when it has ended."""
        self._ask("POST", "/stop")

    def _ask(self, method: str, path: str, query: Mapping[str, object] | None = None) -> Any:
        given = {key: value for key, value in (query or {}).items() if value is not None}
        target = f"{path}?{urlencode(given)}" if given else path
        connection = _UnixConnection(self._path, self._timeout_s)
        try:
            connection.request(method, target, headers={"Accept": "application/json"})
            # Closed here: what its finalizer meets, a Ctrl-C among it, Python drops without a word.
            with connection.getresponse() as response:
                body = self._read(response)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise DaemonNotRunning("pylon is not running") from error
        except PermissionError as error:
            raise ControlError(f"no permission to use {self._path}: the daemon belongs to another user") from error
        except TimeoutError as error:
            raise DaemonSilent(f"the daemon did not answer within {self._timeout_s:g} s") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ControlError(f"asking the daemon over {self._path} failed: {printable(error)}") from error
        finally:
            connection.close()
        return _unwrap(body, response.status)

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        # The socket's limit is per read; a daemon that drips bytes must not hold us for longer than we said.
        deadline = time.monotonic() + self._timeout_s
        body = bytearray()
        while chunk := response.read1(_CHUNK):
            body += chunk
            if len(body) > self._max_answer_bytes:
                raise BadAnswer(f"the daemon's answer is larger than {self._max_answer_bytes} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError
        return bytes(body)


def _unwrap(body: bytes, status: int) -> Any:
    try:
        envelope = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"the daemon's answer (HTTP {status}) is not JSON") from error
    if not isinstance(envelope, dict) or "api_version" not in envelope:
        raise BadAnswer(f"the daemon's answer (HTTP {status}) is not one of pylon's control API")
    if envelope["api_version"] != API_VERSION:
        version = printable(envelope["api_version"], limit=20)
        raise BadAnswer(f"the daemon speaks control API {version}, this command {API_VERSION}: restart the daemon")
    refusal = envelope.get("error")
    if isinstance(refusal, dict):
        raise DaemonRefused(printable(refusal.get("code", "")), printable(refusal.get("message", ""), limit=500))
    return envelope.get("data")


def _decoded(cls: type[T], value: object) -> T:
    try:
        return decode(cls, value)
    except BadShape as error:
        raise BadAnswer(f"the daemon's answer has another shape ({error}): restart the daemon") from error
