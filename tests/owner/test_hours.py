"""The hours in which work is allowed, by the clock on the wall: against a plain look at every minute."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.owner.hours import DAY_MIN, Hours, Window, parse_window, wall_of

BERLIN = ZoneInfo("Europe/Berlin")
ZONES: list[tzinfo] = [
    UTC,
    BERLIN,
    ZoneInfo("America/New_York"),
    ZoneInfo("Australia/Lord_Howe"),  # half an hour of summer time
    ZoneInfo("Asia/Kathmandu"),  # 45 minutes off
    ZoneInfo("Africa/Casablanca"),
]
WINDOWS = st.builds(
    Window,
    days=st.frozensets(st.integers(0, 6), min_size=1),
    start=st.integers(0, DAY_MIN - 1),
    end=st.integers(0, DAY_MIN),
)
HOURS = st.builds(Hours, st.lists(WINDOWS, min_size=1, max_size=3).map(tuple))
TIMES = st.integers(
    int(datetime(2024, 1, 1, tzinfo=UTC).timestamp()), int(datetime(2027, 1, 1, tzinfo=UTC).timestamp())
)


def hours(*texts: str) -> Hours:
    return Hours(tuple(parse_window(text) for text in texts))


def at(text: str, zone: tzinfo = BERLIN) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


def is_within(window: Window, shown: datetime) -> bool:
    """What the words say: on its days from its start on, and on the days after them until its end."""
    minute, day = shown.hour * 60 + shown.minute, shown.weekday()
    if window.start < window.end:
        return day in window.days and window.start <= minute < window.end
    before = (day - 1) % 7
    return (day in window.days and minute >= window.start) or (before in window.days and minute < window.end)


@given(HOURS, TIMES, st.sampled_from(ZONES))
def test_what_is_allowed_is_what_the_windows_say(allowed: Hours, now: int, zone: tzinfo) -> None:
    shown = wall_of(zone)(now)
    assert allowed.allow(shown) is any(is_within(window, shown) for window in allowed.windows)


@given(HOURS, TIMES, st.sampled_from(ZONES), st.floats(0, 0.999))
def test_the_next_change_is_the_first_one(allowed: Hours, now: int, zone: tzinfo, part: float) -> None:
    wall = wall_of(zone)
    found = allowed.next_change(now + part, wall)
    before = allowed.allow(wall(now))
    first = now - now % 60 + 60
    later = (each for each in range(first, now + 8 * 86_400, 60) if allowed.allow(wall(each)) is not before)
    expected = next(later, None)
    if expected is not None:
        assert found == expected
    else:
        assert found is None or found >= now + 8 * 86_400 - 60


@given(TIMES)
def test_the_clock_of_this_machine_is_the_default(now: int) -> None:
    assert wall_of()(now) == datetime.fromtimestamp(now)


def test_where_all_hours_or_none_are_allowed_nothing_changes() -> None:
    assert hours("00:00-24:00").always
    assert hours("mon-sun 08:00-08:00").always
    assert hours("00:00-12:00", "12:00-24:00").next_change(0, wall_of(UTC)) is None
    assert not hours("sun-sat 00:00-23:59").always


# --- summer time ------------------------------------------------------------------------------------------------


def test_an_hour_that_comes_twice_is_allowed_twice() -> None:
    night = hours("sun 02:00-03:00")
    start = at("2026-10-25 02:00")
    assert night.next_change(start, wall_of(BERLIN)) == start + 7_200


def test_an_hour_that_is_left_out_comes_a_week_later() -> None:
    night = hours("sun 02:00-03:00")
    before = at("2026-03-28 12:00")
    assert night.next_change(before, wall_of(BERLIN)) == at("2026-04-05 02:00")


def test_a_night_is_an_hour_shorter_or_longer() -> None:
    night, wall = hours("sat 22:00-06:00"), wall_of(BERLIN)
    for day, length_h in (("2026-03-28", 7), ("2026-10-24", 9), ("2026-11-07", 8)):
        start = at(f"{day} 22:00")
        end = night.next_change(start, wall)
        assert end == start + length_h * 3_600
        assert wall(end) == wall(start).replace(hour=6) + timedelta(days=1)


# --- the text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "days", "start", "end"),
    [
        ("18:00-08:00", range(7), 1080, 480),
        ("mon-fri 18:00-08:00", range(5), 1080, 480),
        ("SAT,sun 0:00-24:00", (5, 6), 0, 1440),
        ("fri-mon 09:30-17:05", (4, 5, 6, 0), 570, 1025),
        ("wed 23:59-00:00", (2,), 1439, 0),
        ("  tue,thu-fri   8:15-9:00 ", (1, 3, 4), 495, 540),
    ],
)
def test_a_window_is_read(text: str, days: range | tuple[int, ...], start: int, end: int) -> None:
    assert parse_window(text) == Window(frozenset(days), start, end)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "not days and times"),
        ("mon fri 8:00-9:00", "not days and times"),
        ("mon-fri", "not two times"),
        ("8-17", "not two times"),
        ("mon 08:00\u201309:00", "not two times"),
        ("24:00-08:00", "a time is 00:00 to 23:59"),
        ("08:00-24:01", "a time is"),
        ("08:60-09:00", "a time is"),
        ("monday 08:00-09:00", "days are mon, tue"),
        ("mon- 08:00-09:00", "days are"),
        (", 08:00-09:00", "days are"),
        ("٠٨:00-09:00", "not two times"),
    ],
)
def test_a_window_that_is_none_says_what_is_wrong(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        parse_window(text)


@given(st.text(max_size=40))
def test_any_text_is_a_window_or_a_sentence(text: str) -> None:
    try:
        parse_window(text)
    except ValueError as error:
        assert str(error)
