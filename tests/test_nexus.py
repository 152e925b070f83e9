"""`pylon nexus stats`: both known shapes, nonsense, and servers that do not answer well."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from pylon.cli.layout import Screen
from pylon.cli.nexus import show
from pylon.nexus import MAX_ANSWER_BYTES, MAX_FIELDS, NexusError, NexusStats, fetch_stats, parse_stats
from tests.support import control_views
from tests.support.fake_daemon import run_pylon
from tests.support.openai_server import Handler, answer, hang, raw, scripted_server

NASTY = control_views.NASTY.replace("\ud800", "")  # no JSON on the wire holds a lone surrogate

NESTED: dict[str, Any] = {
    "events": {
        "total": 12_345,
        "last_24h": 67,
        "by_kind": [{"kind": 5050, "count": 9}, {"kind": 6050, "count": 8}],
    },
    "jobs": {"pending": 3, "completed_24h": 8, "by_kind": {"5050": 11}},
    "rlm": {"queries": 2, "nested": {"deeper": True}},
    "timestamp": 1_800_000_000,
}
FLAT: dict[str, Any] = {
    "nexus_relay_uptime_seconds": 77,
    "pylons_online_now": 4,
    "compute_jobs_24h": 1_234,
    "compute_share": 0.5,
    "something_new": "yes",
    "recent_pylons": [{"name": "a", "models": ["m"], "seen_at": 1}, {"name": NASTY}],
    "gone": None,
}


def parsed(value: object) -> NexusStats:
    return parse_stats("https://nexus.example", json.dumps(value).encode())


def shown(found: NexusStats) -> str:
    screen = Screen(colours=False)
    show(found, screen)
    return screen.text()


# --- what it says -------------------------------------------------------------------------------------------------


def test_the_nested_shape() -> None:
    found = parsed(NESTED)
    assert found.fields == {
        "events.total": 12_345,
        "events.last_24h": 67,
        "jobs.pending": 3,
        "jobs.completed_24h": 8,
        "rlm.queries": 2,
        "rlm.nested.deeper": True,
        "timestamp": 1_800_000_000,
    }
    assert found.by_kind == {"events.by_kind": {"5050": 9, "6050": 8}, "jobs.by_kind": {"5050": 11}}
    text = shown(found)
    assert "  events.total         12,345\n" in text
    assert "  events.by_kind 5050       9\n" in text
    assert text.index("\nevents\n") < text.index("\njobs\n") < text.index("\nrlm\n") < text.index("\ntimestamp\n")


def test_the_flat_shape() -> None:
    found = parsed(FLAT)
    assert found.fields["pylons_online_now"] == 4
    assert found.lists["recent_pylons"][0] == "name a, seen_at 1"
    text = shown(found)
    assert (
        text.index("\npylons\n") < text.index("\nnexus\n") < text.index("\ncompute\n") < text.index("\nsomething\n")
    )
    assert "compute_jobs_24h  1,234" in text
    assert "recent_pylons (2)" in text
    assert all(char.isprintable() or char == "\n" for char in text)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"events": None, "jobs": []},
        {"events": 7, "jobs": {"by_kind": [1, [1, 2, 3], {"kind": 1}, {"kind": [], "count": 1}, [1, -1]]}},
        {"events": {"by_kind": {"1": "many", "2": True}}},
        {"a": {"b": {"c": {"d": {"e": {"f": 1}}}}}},
        {NASTY: NASTY, "by_kind": {NASTY: 1}},
    ],
)
def test_what_is_missing_or_odd_is_left_out(value: object) -> None:
    text = shown(parsed(value))
    assert all(char.isprintable() or char == "\n" for char in text)


def test_the_number_of_fields_is_bounded() -> None:
    assert len(parsed({f"a{number}": number for number in range(5000)}).fields) == MAX_FIELDS


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b"7", b'{"a": NaN}', b"[" * 9000])
def test_no_statistics(body: bytes) -> None:
    with pytest.raises(NexusError, match=r"https://nexus\.example"):
        parse_stats("https://nexus.example", body)


# --- asking -------------------------------------------------------------------------------------------------------


async def test_it_is_asked_once_and_the_answer_is_read() -> None:
    async with scripted_server() as server:
        server.routes["/api/stats"] = answer(200, FLAT)
        found = await fetch_stats(server.url, timeout_s=5)
    assert found.fields["pylons_online_now"] == 4
    assert [wire.path for wire in server.asked] == ["/api/stats"]


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (answer(404, {}), "/api/stats answered HTTP 404"),
        (answer(302, {}, "Location: http://127.0.0.1:1/"), "/api/stats answered HTTP 302"),
        (answer(200, b"x" * (MAX_ANSWER_BYTES + 1)), "answered with more than 1,048,576 bytes"),
        (answer(200, b"nonsense"), "did not answer with JSON"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"), "cannot be reached"),
        (hang, "did not answer within 0.5 s"),
    ],
)
async def test_what_goes_wrong_is_one_sentence(handler: Handler, said: str) -> None:
    async with scripted_server() as server:
        server.routes["/api/stats"] = handler
        with pytest.raises(NexusError) as caught:
            await fetch_stats(server.url, timeout_s=0.5)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


async def test_nobody_there() -> None:
    with pytest.raises(NexusError, match="cannot be reached"):
        await fetch_stats("http://127.0.0.1:1", timeout_s=5)


# --- the command --------------------------------------------------------------------------------------------------


async def test_the_command_asks_the_nexus_of_the_settings(tmp_path: Path) -> None:
    async def pylon(*arguments: str) -> subprocess.CompletedProcess[str]:
        return await anyio.to_thread.run_sync(lambda: run_pylon(*arguments, home=tmp_path))

    async with scripted_server() as server:
        server.routes["/api/stats"] = answer(200, NESTED)
        (tmp_path / "pylon.toml").write_text(f'[nexus]\nurl = "{server.url}"\n')
        done = await pylon("nexus", "stats")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{server.url}\n")
        assert "jobs.pending" in done.stdout
        done = await pylon("nexus", "stats", "--json")
        assert json.loads(done.stdout)["by_kind"]["jobs.by_kind"] == {"5050": 11}
        server.routes["/api/stats"] = answer(503, {})
        done = await pylon("nexus", "stats")
    assert done.returncode == 1
    assert done.stderr == f"pylon: {server.url}/api/stats answered HTTP 503\n"
