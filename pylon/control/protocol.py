"""What the control API asks of the daemon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pylon.control.owner_line import OwnerLine
from pylon.control.views import (
    AnnouncementView,
    DaemonStatus,
    EarningsView,
    JobDetail,
    JobsQuery,
    JobView,
    RefundView,
    SettingsLine,
)


class ControlViews(Protocol):
    """What the daemon implements for the control API. `ViewError`s become the client's error."""

    def status(self) -> DaemonStatus:
        """Return the state of every part, without asking any of them anything slow."""
        ...

    async def jobs(self, query: JobsQuery) -> Sequence[JobView]:
        """Return at most `query.limit` jobs, newest first."""
        ...

    async def job(self, id_or_prefix: str, *, show_input: bool = False) -> JobDetail:
        """Return one job. Raises `NotFound` or `Ambiguous`."""
        ...

    async def cancel_job(self, id_or_prefix: str) -> JobView:
        """Cancel as the operator and return what became of it. Raises `NotFound`, `Ambiguous`, `ViewError`."""
        ...

    async def refunds(self, *, ended: bool = False) -> Sequence[RefundView]:
        """Return what is due or under way, oldest first; with `ended` what was refunded or written off too."""
        ...

    async def pay_refund(self, id_or_prefix: str, to: str = "") -> RefundView:
        """Order a refund, to an address or invoice if one is named. Raises `NotFound`, `Ambiguous`, `ViewError`."""
        ...

    async def write_off(self, id_or_prefix: str, reason: str) -> RefundView:
        """Record that a refund will not be paid. Raises `NotFound`, `Ambiguous`, `ViewError`."""
        ...

    async def earnings(
        self, since: int | None, by: str, *, until: int | None = None, local: bool = False
    ) -> EarningsView:
        """Return settled payments of a time (unix seconds), split by an `EarningsBy`.

        Days are UTC, or with `local` those of this machine's zone.
        """
        ...

    def announcement(self) -> AnnouncementView:
        """Return how the announcement stands."""
        ...

    async def publish_announcement(self) -> AnnouncementView:
        """Announce now. Raises `ViewError`."""
        ...

    async def withdraw_announcement(self) -> AnnouncementView:
        """Withdraw the announcement until it is published again. Raises `ViewError`."""
        ...

    async def pause(self, for_s: int | None = None, why: str = "", *, at_once: bool = False) -> OwnerLine:
        """Take and start no more jobs, for a time or until `resume`. Raises `ViewError`."""
        ...

    async def resume(self, for_s: int | None = None, *, ignore_rules: bool = False) -> OwnerLine:
        """End a pause or drain; with `ignore_rules` the rules say nothing for a time. Raises `ViewError`."""
        ...

    async def drain(self, why: str = "", *, exits: bool = False) -> OwnerLine:
        """Take no more jobs and finish what is there, then pause or end. Raises `ViewError`."""
        ...

    async def reload(self) -> SettingsLine:
        """Read the settings again; a wrong file is an outcome. Raises `ViewError` while starting or stopping."""
        ...

    def request_stop(self) -> None:
        """Ask for a graceful stop and return at once."""
        ...
