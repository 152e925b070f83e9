"""What can go wrong with the store, named after what the operator must know."""

from __future__ import annotations


class StoreError(Exception):
    """The database could not do it; the message is one sentence."""


class StoreUnavailable(StoreError):
    """Nothing was committed (disk full, I/O error, closed): the same transaction may be tried again."""


class StaleVersion(StoreError):
    """Somebody else moved the job first: load it again."""


class StoreTooNew(StoreError):
    """The database was written by a newer Pylon."""


class Conflict(StoreError):
    """A constraint refused it: something that may be stored once is stored already."""


class AlreadyAccepted(Conflict):
    """The job request was accepted before."""
