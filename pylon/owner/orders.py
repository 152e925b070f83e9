"""What the owner ordered, kept in a small file of the home: a pause outlives whatever happens to the daemon.

A file and not the database: it must be known before anything else starts, and it belongs to this machine and not to
the books, which may be restored on another. It is replaced whole; one that cannot be read pauses, since somebody
once wanted that.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

MAX_WHY: Final = 200
"""Characters of the owner's reason."""

_MAX_FILE_BYTES: Final = 16_384
_LATEST: Final = 2**53


class Will(StrEnum):
    """What was ordered."""

    PAUSE = "pause"
    DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class Order:
    """A pause or a drain. Times are unix seconds; `until` None: until it is resumed.

    A drain that is done ends the daemon if it `exits`; any other leaves it paused.
    """

    will: Will
    since: int
    until: int | None = None
    why: str = ""
    exits: bool = False


@dataclass(frozen=True, slots=True)
class Waiver:
    """The rules say nothing, until a time, or (None) until none of them would pause."""

    until: int | None = None


@dataclass(frozen=True, slots=True)
class Orders:
    """What stands."""

    order: Order | None = None
    waiver: Waiver | None = None


NONE: Final = Orders()


class OrdersUnreadable(ValueError):
    """The file holds no orders; the message is a clause that says why."""


def encode(orders: Orders) -> str:
    """Return the text of the file."""
    value: dict[str, Any] = {"version": 1}
    if orders.order is not None:
        order = orders.order
        value["order"] = {
            "will": order.will.value,
            "since": order.since,
            "until": order.until,
            "why": order.why,
            "exits": order.exits,
        }
    if orders.waiver is not None:
        value["waiver"] = {"until": orders.waiver.until}
    return json.dumps(value, indent=1) + "\n"


def decode(text: str) -> Orders:
    """Return the orders of a file's text. Raises `OrdersUnreadable`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise OrdersUnreadable("it is not JSON") from None
    if not isinstance(value, dict) or value.get("version") != 1:
        raise OrdersUnreadable("it is none of this version")
    order, waiver = value.get("order"), value.get("waiver")
    return Orders(
        None if order is None else _order(order),
        None if waiver is None else Waiver(_time(_object(waiver).get("until"))),
    )


def _order(value: object) -> Order:
    told = _object(value)
    will, why, exits, since = told.get("will"), told.get("why", ""), told.get("exits", False), told.get("since")
    if not (will in set(Will) and isinstance(why, str) and isinstance(exits, bool)):
        raise OrdersUnreadable("its order is none that is known")
    at = _time(since)
    if at is None:
        raise OrdersUnreadable("its order has no time")
    return Order(Will(str(will)), at, _time(told.get("until")), why[:MAX_WHY], exits)


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise OrdersUnreadable("it has another shape")
    return value


def _time(value: object) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= _LATEST:
        raise OrdersUnreadable("a time in it is none")
    return value


def read_orders(path: Path, now: int) -> Orders:
    """Return what stands, a pause where the file cannot be read. Blocks."""
    try:
        with path.open("rb") as file:
            return decode(file.read(_MAX_FILE_BYTES).decode("utf-8", "replace"))
    except FileNotFoundError:
        return NONE
    except OSError as error:
        why = error.strerror or type(error).__name__
    except OrdersUnreadable as error:
        why = str(error)
    return Orders(Order(Will.PAUSE, now, why=f"the orders in {path.name} cannot be read: {why}"))


def write_orders(path: Path, orders: Orders) -> None:
    """Replace what stands, on the disk when it returns. Blocks. Raises `OSError`."""
    if orders == NONE:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            _flush_folder(path.parent)
        return
    handle, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(encode(orders))
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
