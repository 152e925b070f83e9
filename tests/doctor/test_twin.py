"""Events of our own key that this pylon cannot have sent."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from pylon.doctor.findings import Finding, Level, Scene
from pylon.doctor.twin import GRACE_S, LOOK_BACK_S, check_twin, twin_finding
from pylon.lock import instance_lock
from pylon.nostr.event import Draft, Event
from pylon.nostr.keys import SecretKey
from pylon.paths import Paths, paths_under
from pylon.settings import Settings
from pylon.store.records import CURSOR_MARK
from pylon.store.reports import Reports
from pylon.store.writer import Store
from tests.support.control_views import STATUS
from tests.support.scripted_relay import Peer, Script, scripted_relay, silent

KEY = SecretKey(b"\x05" * 32)
NOW = 1_800_000_000


def ours(at: int, kind: int = 7000, key: SecretKey = KEY) -> Event:
    return Draft(kind=kind, content="x").sign(key, at)


def holding(*events: Event) -> Script:
    """Return a relay that answers each request with these events, whatever was asked."""

    async def script(peer: Peer) -> None:
        _, name, wanted = await peer.get("REQ")
        assert wanted["authors"] == [KEY.public_hex]
        for event in events:
            await peer.send("EVENT", name, event.as_dict())
        await peer.send("EOSE", name)
        await silent(peer)

    return script


async def make_history(paths: Paths, last_at: int) -> None:
    store = await Store.open(paths.database)
    try:
        await store.write(lambda tx: tx.set_mark(f"{CURSOR_MARK}ws://a", last_at - 500))
        await store.write(lambda tx: tx.set_mark(f"{CURSOR_MARK}ws://b", last_at))
        await store.write(lambda tx: tx.set_mark("another", last_at + 10**6))
    finally:
        await store.aclose()


def scene(tmp_path: Path, *urls: str) -> Scene:
    settings = Settings.model_validate({"relays": {"urls": urls}})
    return Scene(settings, paths_under(tmp_path), KEY, None, lambda: NOW)


async def found(tmp_path: Path, *events: Event) -> Finding:
    async with scripted_relay(holding(*events)) as relay:
        (finding,) = await check_twin(scene(tmp_path, relay.url), 5)
        assert relay.connections == 1
    assert (finding.what + finding.fix).isprintable()
    return finding


async def test_last_activity_is_the_newest_cursor(tmp_path: Path) -> None:
    paths = paths_under(tmp_path)
    await make_history(paths, NOW - 1000)
    assert Reports(paths.database).last_active_at() == NOW - 1000


async def test_newer_events_of_our_key_are_told_carefully(tmp_path: Path) -> None:
    await make_history(paths_under(tmp_path), NOW - 1000)
    finding = await found(tmp_path, ours(NOW - 500, 31990), ours(NOW - 20, 6050), ours(NOW - 100))
    assert finding.level is Level.WARN
    assert "3 events signed with this key were probably not sent from here" in finding.what
    assert "newer than this pylon's last run" in finding.what
    assert "the newest is of kind 6050, dated 2027-01-15 07:59:40 UTC" in finding.what
    assert "make a new one" in finding.fix


@pytest.mark.parametrize(
    "event",
    [
        ours(NOW - 1000 + GRACE_S - 1),  # a crash loses the last seconds
        ours(NOW - 500, kind=1),
        ours(NOW - 500, key=SecretKey(b"\x06" * 32)),
        replace(ours(NOW - 500), sig="00" * 64),
    ],
)
async def test_what_proves_nothing_is_left_out(tmp_path: Path, event: Event) -> None:
    await make_history(paths_under(tmp_path), NOW - 1000)
    finding = await found(tmp_path, event)
    assert finding == Finding(Level.OK, "elsewhere", "no sign of the same key at work elsewhere")


async def test_a_home_without_history_looks_back_a_day(tmp_path: Path) -> None:
    assert (await found(tmp_path, ours(NOW - LOOK_BACK_S - 1))).level is Level.OK
    finding = await found(tmp_path, ours(NOW - LOOK_BACK_S))
    assert finding.level is Level.WARN
    assert "this home has no history of its own" in finding.what


async def test_a_mute_relay_holds_up_nobody_and_one_answer_is_enough(tmp_path: Path) -> None:
    async with scripted_relay(silent) as mute, scripted_relay(holding(ours(NOW - 20))) as good:
        started_at = time.monotonic()
        (finding,) = await check_twin(scene(tmp_path, mute.url, good.url), 0.5)
        assert time.monotonic() - started_at < 3
        assert "seen on 1 relays" in finding.what
        (finding,) = await check_twin(scene(tmp_path, mute.url), 0.3)
        assert finding.level is Level.WARN
        assert finding.what == "not looked for: no relay answered"


async def test_while_pylon_runs_nothing_is_asked(tmp_path: Path) -> None:
    (finding,) = await check_twin(replace(scene(tmp_path, "ws://127.0.0.1:1"), daemon=STATUS), 5)
    assert finding.level is Level.OK
    assert finding.what.startswith("not looked for: pylon runs")
    with instance_lock(paths_under(tmp_path).lock_file):
        assert await check_twin(scene(tmp_path, "ws://127.0.0.1:1"), 5) == [finding]
    assert await check_twin(replace(scene(tmp_path, "ws://127.0.0.1:1"), key=None), 5) == []


def test_the_same_event_on_two_relays_is_one() -> None:
    event = ours(NOW)
    finding = twin_finding({"ws://a": (event,), "ws://b": (event,), "ws://c": ()}, NOW - 9)
    assert finding.what.startswith("1 events signed with this key")
    assert "seen on 2 relays" in finding.what
