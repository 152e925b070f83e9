"""Who carries out the engine's effects, as it sees them: the workplace, the till and the refund desk."""

from __future__ import annotations

from typing import Protocol

from pylon.jobs.textgen import TextJob
from pylon.store.records import InvoiceRow, Job, Refund


class Workplace(Protocol):
    """Where jobs wait and run."""

    def enqueue(self, job: Job) -> None:
        """Put a queued job into its lane."""
        ...

    def run_attempt(self, job: Job, text: TextJob | None) -> None:
        """Run an attempt that is committed; its slot was taken before."""
        ...

    def stop(self, job_id: str) -> None:
        """Take a job out of its lane, or cancel its attempt."""
        ...


class Till(Protocol):
    """Where invoices are made and watched."""

    def make(self, row: InvoiceRow, *, fresh: bool) -> None:
        """Have a wanted invoice made. Not `fresh`: it may have been made before, so look first."""
        ...

    def watch(self, row: InvoiceRow) -> None:
        """Ask the wallet about an invoice until it has ended."""
        ...


class RefundDesk(Protocol):
    """Where money is given back."""

    def follow(self, job: Job) -> None:
        """Hear of a job whose money is given back, or was, each time it moved."""
        ...

    def pay(self, refund: Refund, *, fresh: bool) -> None:
        """Have a committed refund paid. Not `fresh`: it may have been paid before a crash, so ask first."""
        ...
