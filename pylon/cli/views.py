"""Where a command gets its answers: from the daemon, or without one from the database, read only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

from pylon.cli.output import fail
from pylon.control.client import ControlClient, DaemonNotRunning
from pylon.control.views import EarningsView, JobDetail, JobsQuery, JobView, RefundView
from pylon.lock import lock_holder
from pylon.paths import Paths

T = TypeVar("T")

NOT_RUNNING: Final = 3
"""The exit code that says that no daemon runs, as systemctl uses it."""


class ReadViews(Protocol):
    """The questions that need no running daemon. Raises `ViewError`s, `ControlError`s and `UserError`."""

    def jobs(self, query: JobsQuery) -> Sequence[JobView]:
        """Return the jobs that match, newest first."""
        ...

    def job(self, id_or_prefix: str, *, show_input: bool = False) -> JobDetail:
        """Return one job with its history."""
        ...

    def refunds(self, *, ended: bool = False) -> Sequence[RefundView]:
        """Return what is due or under way; with `ended` what was refunded or written off too."""
        ...

    def earnings(
        self, since: int | None, by: str, *, until: int | None = None, local: bool = False
    ) -> EarningsView:
        """Return settled payments."""
        ...


def control_client(paths: Paths, *, timeout_s: float = 10.0) -> ControlClient:
    """Return the client of this home's daemon; whether one runs shows when it is asked."""
    return ControlClient(paths.control_socket, timeout_s=timeout_s)


def require_free_home(paths: Paths) -> None:
    """Raise `UserError` when a daemon holds this home although nothing listens on its socket."""
    pid = lock_holder(paths.lock_file)
    if pid is not None:
        who = f"process {pid}" if pid else "a process"
        fail(f"pylon ({who}) is starting or stopping and does not answer yet: try again")


def open_views(paths: Paths) -> ReadViews:
    """Return what answers for this home."""
    return _EitherViews(paths)


class _EitherViews:
    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    def jobs(self, query: JobsQuery) -> Sequence[JobView]:
        return self._ask(lambda views: views.jobs(query))

    def job(self, id_or_prefix: str, *, show_input: bool = False) -> JobDetail:
        return self._ask(lambda views: views.job(id_or_prefix, show_input=show_input))

    def refunds(self, *, ended: bool = False) -> Sequence[RefundView]:
        return self._ask(lambda views: views.refunds(ended=ended))

    def earnings(
        self, since: int | None, by: str, *, until: int | None = None, local: bool = False
    ) -> EarningsView:
        return self._ask(lambda views: views.earnings(since, by, until=until, local=local))

    def _ask(self, question: Callable[[ReadViews], T]) -> T:
        try:
            return question(control_client(self._paths))
        except DaemonNotRunning:
            require_free_home(self._paths)
        database = self._paths.database
        if not database.exists():
            fail(f"no jobs yet: pylon is not running and there is no database at {database}")
        from pylon.offline import offline_views

        return question(offline_views(database))
