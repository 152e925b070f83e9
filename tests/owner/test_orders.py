"""The file of the owner's orders: what is written is read, and what cannot be read pauses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.owner.orders import (
    MAX_WHY,
    NONE,
    Order,
    Orders,
    OrdersUnreadable,
    Waiver,
    Will,
    decode,
    encode,
    read_orders,
    write_orders,
)

TIMES = st.integers(0, 2**53)
ORDERS = st.builds(
    Orders,
    st.none()
    | st.builds(Order, st.sampled_from(Will), TIMES, st.none() | TIMES, st.text(max_size=MAX_WHY), st.booleans()),
    st.none() | st.builds(Waiver, st.none() | TIMES),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(ORDERS)
def test_what_is_written_is_read(orders: Orders) -> None:
    assert decode(encode(orders)) == orders


@given(
    st.text() | JSON.map(json.dumps) | st.fixed_dictionaries({"version": st.just(1), "order": JSON}).map(json.dumps)
)
def test_anything_else_is_orders_or_refused(text: str) -> None:
    try:
        decode(text)
    except OrdersUnreadable as error:
        assert str(error)


def test_a_file_is_replaced_whole_and_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "pylon.orders.json"
    assert read_orders(path, 7) == NONE
    orders = Orders(Order(Will.PAUSE, 5, 9, "lunch"), Waiver(None))
    write_orders(path, orders)
    assert read_orders(path, 7) == orders
    assert path.stat().st_mode & 0o777 == 0o600
    write_orders(path, Orders(Order(Will.DRAIN, 6, exits=True)))
    assert read_orders(path, 7).order == Order(Will.DRAIN, 6, exits=True)
    write_orders(path, NONE)
    write_orders(path, NONE)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_what_was(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    with pytest.raises(OSError, match="No such file"):
        write_orders(folder / "pylon.orders.json", Orders(Order(Will.PAUSE, 5)))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is not JSON"),
        ('{"version": 1, "order": {"wi', "it is not JSON"),
        ("[]", "none of this version"),
        ('{"version": 2}', "none of this version"),
        ('{"version": 1, "order": {"will": "sleep", "since": 1}}', "none that is known"),
        ('{"version": 1, "order": {"will": "pause"}}', "has no time"),
        ('{"version": 1, "order": {"will": "pause", "since": true}}', "a time in it is none"),
        ('{"version": 1, "waiver": 3}', "another shape"),
    ],
)
def test_what_cannot_be_read_pauses(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "pylon.orders.json"
    path.write_text(text)
    order = read_orders(path, 7).order
    assert order is not None
    assert (order.will, order.since) == (Will.PAUSE, 7)
    assert why in order.why and "pylon.orders.json" in order.why


def test_a_folder_in_its_place_pauses_too(tmp_path: Path) -> None:
    order = read_orders(tmp_path, 7).order
    assert order is not None and "cannot be read" in order.why
