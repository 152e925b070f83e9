"""The one writer: a plain thread that commits what arrives together in one transaction.

`Store.write(fn)` hands `fn(tx)` to the thread; every function that waits is run in one `BEGIN … COMMIT`, so many
transitions share a disk flush. Nobody hears anything before COMMIT: results, and the `on_commit` calls that carry
out effects, reach the event loop afterwards, in commit order.

A function that raises must leave nothing behind: the group is rolled back and its members are run again one by
one, each in a transaction of its own, so that only the faulty one fails. Functions therefore must be safe to run
twice. When COMMIT itself fails (disk full, I/O error) nothing of it happened and every member that is not
committed gets `StoreUnavailable`.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from pylon.store.errors import AlreadyAccepted, Conflict, StoreError, StoreUnavailable
from pylon.store.migrations import migrate
from pylon.store.tx import Tx

log = structlog.get_logger(__name__)

T = TypeVar("T")

_MAX_GROUP: Final = 256
_BUSY_TIMEOUT_MS: Final = 5000
_PATIENCE_S: Final = 0.01
_WAL_PAGES: Final = 1000
_WAL_FRAME_BYTES: Final = 4096 + 24
_TAKEN: Final = frozenset({sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY})


@dataclass(slots=True)
class _Member:
    """One transaction waiting for its group."""

    run: Callable[[Tx], Any]
    on_commit: Callable[[Any], None] | None
    future: asyncio.Future[Any] | None
    on_error: Callable[[BaseException], None] | None
    result: Any = None
    error: BaseException | None = None
    committed: bool = False


@dataclass(frozen=True, slots=True)
class StoreHealth:
    """Whether the last commit succeeded, and why not."""

    healthy: bool
    detail: str = ""


class Store:
    """The database of one daemon. Open with `Store.open`, use from one event loop, close with `aclose`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inbox: queue.SimpleQueue[list[_Member] | None] = queue.SimpleQueue()  # None: the end
        self._urgent: list[_Member] = []
        self._patient: list[_Member] = []
        self._patience: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._health = StoreHealth(True)
        self._closed = False

    @classmethod
    async def open(cls, path: Path) -> Store:
        """Open or create the database (0600), migrate it, and start the writer.

        Raises `StoreTooNew`, or `StoreUnavailable` when the file cannot be opened.
        """
        store = cls(path)
        store._loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = store._loop.create_future()
        store._thread = threading.Thread(target=store._main, args=(ready,), name="pylon-store", daemon=True)
        store._thread.start()
        await ready
        return store

    @property
    def health(self) -> StoreHealth:
        """Return whether the last group could be committed."""
        return self._health

    async def write(self, run: Callable[[Tx], T], on_commit: Callable[[T], None] | None = None) -> T:
        """Run `run` in the next group and return its result after COMMIT.

        `on_commit` is called on the loop, in commit order, whether or not the caller still waits.
        Raises what `run` raised, or `StoreUnavailable`.
        """
        assert self._loop is not None
        future: asyncio.Future[T] = self._loop.create_future()
        self._submit(_Member(run, on_commit, future, None))
        return await future

    def post(
        self,
        run: Callable[[Tx], T],
        on_commit: Callable[[T], None] | None = None,
        on_error: Callable[[BaseException], None] | None = None,
        *,
        patient: bool = False,
    ) -> None:
        """Like `write` without a caller that waits. Exactly one of the two callbacks is called, on the loop.

        A `patient` one may wait a few milliseconds for a group that is committed anyway.
        """
        member = _Member(run, on_commit, None, on_error)
        if not patient:
            self._submit(member)
            return
        self._refuse_if_closed()
        self._patient.append(member)
        if self._patience is None:
            assert self._loop is not None
            self._patience = self._loop.call_later(_PATIENCE_S, self._hand_over)

    async def aclose(self) -> None:
        """Commit what is queued, then close. Safe to call twice."""
        if self._closed or self._thread is None:
            return
        self._closed = True
        self._hand_over()
        self._inbox.put(None)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    # --- the thread -------------------------------------------------------------------------------------------

    def _submit(self, member: _Member) -> None:
        """Queue what is urgent: it goes out with all else that this turn of the loop brings."""
        self._refuse_if_closed()
        if not self._urgent:
            assert self._loop is not None
            self._loop.call_soon(self._hand_over)
        self._urgent.append(member)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise StoreUnavailable("the database is closed")

    def _hand_over(self) -> None:
        """Give the thread what has gathered, urgent and patient: waking it up is dear."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        members = self._patient + self._urgent
        self._patient, self._urgent = [], []
        if members:
            self._inbox.put(members)

    def _main(self, ready: asyncio.Future[None]) -> None:
        assert self._loop is not None
        try:
            connection = _connect(self.path)
        except StoreError as error:
            self._loop.call_soon_threadsafe(ready.set_exception, error)
            return
        except (sqlite3.Error, OSError) as error:
            fault = StoreUnavailable(f"cannot open the database {self.path}: {error}")
            self._loop.call_soon_threadsafe(ready.set_exception, fault)
            return
        self._loop.call_soon_threadsafe(ready.set_result, None)
        tx = Tx(connection)
        try:
            while True:
                group, stop = self._take()
                if group:
                    self._commit(connection, tx, group)
                if stop:
                    return
        finally:
            connection.close()

    def _take(self) -> tuple[list[_Member], bool]:
        """Wait for work and return what has gathered; and whether this is the end."""
        members = self._inbox.get()
        if members is None:
            return [], True
        group = members
        while len(group) < _MAX_GROUP:
            try:
                more = self._inbox.get_nowait()
            except queue.Empty:
                break
            if more is None:
                return group, True
            group = group + more
        return group, False

    def _commit(self, connection: sqlite3.Connection, tx: Tx, group: list[_Member]) -> None:
        changes = connection.total_changes
        health: StoreHealth | None = None
        try:
            if not self._try_together(connection, tx, group):
                self._try_apart(connection, tx, group)
        except sqlite3.Error as error:
            _roll_back(connection, tx)
            health = StoreHealth(False, f"the database cannot be written ({error}): {self.path}")
            for member in group:
                if not member.committed:
                    member.error = StoreUnavailable(health.detail)
        else:
            if connection.total_changes != changes:
                health = StoreHealth(True)  # a commit that wrote nothing proves nothing
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._tell, group, health)
        except RuntimeError:
            # The loop is gone (the process is ending); what was committed stays committed.
            return

    @staticmethod
    def _try_together(connection: sqlite3.Connection, tx: Tx, group: list[_Member]) -> bool:
        """Run the group in one transaction; False when a member raised and all was rolled back."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            for member in group:
                member.result = member.run(tx)
            tx.flush()
        except sqlite3.OperationalError:
            raise
        except Exception:  # noqa: BLE001 - whatever a member raises, the group must not keep half of it
            _roll_back(connection, tx)
            return False
        connection.execute("COMMIT")
        tx.committed()
        return True

    @staticmethod
    def _try_apart(connection: sqlite3.Connection, tx: Tx, group: list[_Member]) -> None:
        for member in group:
            connection.execute("BEGIN IMMEDIATE")
            try:
                member.result = member.run(tx)
                tx.flush()
            except sqlite3.OperationalError:
                raise
            except Exception as error:  # noqa: BLE001 - it is handed to the member's caller
                member.error = _conflict_of(error) or error
                _roll_back(connection, tx)
            else:
                connection.execute("COMMIT")
                tx.committed()
                member.committed = True

    def _tell(self, group: list[_Member], health: StoreHealth | None) -> None:
        """On the loop: say what became of each member, in commit order."""
        self._health = health or self._health
        for member in group:
            hear: Callable[[Any], None] | None = member.on_commit if member.error is None else member.on_error
            if hear is not None:
                try:
                    hear(member.result if member.error is None else member.error)
                except Exception:  # the others of the group must hear of theirs all the same
                    log.exception("an effect could not be carried out after its commit")
            if member.future is not None and not member.future.done():
                if member.error is None:
                    member.future.set_result(member.result)
                else:
                    member.future.set_exception(member.error)


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Created before SQLite sees it, so that it is never readable by others, not even for a moment.
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, stat.S_IRUSR | stat.S_IWUSR))
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=True, timeout=_BUSY_TIMEOUT_MS / 1000, cached_statements=1024
    )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
    migrate(connection)
    _grow_log(connection, path)
    return connection


def _grow_log(connection: sqlite3.Connection, path: Path) -> None:
    """Give the write-ahead log its full size at once.

    A commit that makes the file longer flushes the file system's own journal too: 0.7 to 1.3 ms here, 0.25 ms once
    the log has its size and is written over. SQLite takes zeros for the end of the log, as it takes old frames.
    """
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO marks VALUES ('opened', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1")
    connection.execute("COMMIT")
    with path.with_name(path.name + "-wal").open("r+b") as log:
        missing = _WAL_PAGES * _WAL_FRAME_BYTES - log.seek(0, os.SEEK_END)
        if missing > 0:
            log.write(bytes(missing))
            log.flush()
            os.fsync(log.fileno())


def _conflict_of(error: Exception) -> Conflict | None:
    """Return what is stored already, if that is the fault; any other constraint that fails is a fault of ours."""
    if not isinstance(error, sqlite3.IntegrityError) or error.sqlite_errorcode not in _TAKEN:
        return None
    return AlreadyAccepted(str(error)) if "jobs.id" in str(error) else Conflict(str(error))


def _roll_back(connection: sqlite3.Connection, tx: Tx) -> None:
    tx.rolled_back()
    # A full disk may have rolled the transaction back already.
    if connection.in_transaction:
        try:
            connection.execute("ROLLBACK")
        except sqlite3.Error:
            # Nothing was committed either way, and the next BEGIN says what is wrong.
            return
