"""`pylon providers` on a real relay, with announcements of all sorts of strangers."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from pylon.customer.visit import visiting
from pylon.nostr.event import Draft, Event
from pylon.nostr.keys import SecretKey, encode_npub
from pylon.nostr.nip89 import AnnouncedModel, AnnouncedParam, Announcement, ModelPrice, announcement_draft
from pylon.relays.state import PoolConfig
from tests.support.fake_daemon import run_pylon
from tests.support.relay import relay_process

HOUR_AGO = int(time.time()) - 3_600
PRICED = Announcement(
    "pylon",
    (5050,),
    name="Priced",
    about="Answers.",
    params=(AnnouncedParam("model", ("smollm2",)),),
    models=(AnnouncedModel("smollm2", ("tiny",), 2048, ModelPrice(1500, 0, 20_000), "Q8_0"),),
)
PAUSED = Announcement("x", (5050, 5100), name="Resting", paused=True)
DVM = {"name": "Python DVM", "image": "https://a", "nip90Params": {"model": {"values": ["a"]}}}
NASTY = {"name": "\x1b[31mred\x1b[0m", "about": "\u202eevil\n\x07", "models": [{"name": "\x1b]0;owned\x07"}]}


def by(number: int, draft: Draft, at: int = HOUR_AGO) -> Event:
    return draft.sign(SecretKey(bytes([number]) * 32), at)


def foreign(content: str, d: str = "d") -> Draft:
    return Draft(31990, content, (("d", d), ("k", "5050")))


EVENTS = (
    by(1, announcement_draft(PRICED)),
    by(2, announcement_draft(PAUSED), HOUR_AGO - 1),
    by(3, foreign("junk, not JSON"), HOUR_AGO - 2),
    by(4, foreign(json.dumps(NASTY)), HOUR_AGO - 3),
    by(5, foreign(json.dumps(DVM)), HOUR_AGO - 4),
    by(6, Draft(31990, '{"name":"An app"}', (("d", "app"), ("k", "1"))), HOUR_AGO - 5),
    by(7, announcement_draft(Announcement("img", (5100,), name="Images")), HOUR_AGO - 6),
)


async def publish(url: str, events: Sequence[Event]) -> None:
    async with visiting(
        PoolConfig(urls=(url,)), key=SecretKey.generate(), clock=time.time, rng=random.Random(1)
    ) as visit:
        await visit.publish(events, 10)


@pytest.fixture(scope="module")
def relay_url() -> Iterator[str]:
    with relay_process() as relay:
        anyio.run(publish, relay.url, EVENTS)
        yield relay.url


def providers(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_pylon("providers", *arguments, home=home)


def listed(home: Path, *arguments: str) -> list[dict[str, Any]]:
    done = providers(home, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["providers"]
    return found


def names(found: list[dict[str, Any]]) -> list[str]:
    return [each["announcement"]["name"] for each in found]


def test_they_are_found_newest_first_with_what_they_say(tmp_path: Path, relay_url: str) -> None:
    found = listed(tmp_path, "--relay", relay_url)
    assert names(found) == ["Priced", "Resting", "", "\x1b[31mred\x1b[0m", "Python DVM"]
    first = found[0]
    assert (first["npub"], first["event_id"]) == (encode_npub(EVENTS[0].pubkey), EVENTS[0].id)
    assert (first["created_at"], first["relays"]) == (HOUR_AGO, [relay_url])
    assert first["announcement"]["models"][0]["price"] == {
        "base_msats": 1500, "input_msats_per_1k": 0, "output_msats_per_1k": 20_000, "min_msats": 0,
    }  # fmt: skip


def test_kinds_and_models_narrow_it_down(tmp_path: Path, relay_url: str) -> None:
    assert names(listed(tmp_path, "--relay", relay_url, "--kind", "5100")) == ["Resting", "Images"]
    assert names(listed(tmp_path, "--relay", relay_url, "--model", "tiny")) == ["Priced"]
    assert names(listed(tmp_path, "--relay", relay_url, "--model", "a")) == ["Python DVM"]
    assert listed(tmp_path, "--relay", relay_url, "--model", "smol") == []


def test_on_the_screen_it_is_readable_and_harmless(tmp_path: Path, relay_url: str) -> None:
    done = providers(tmp_path, "--relay", relay_url)
    assert (done.returncode, done.stderr) == (0, "")
    text = done.stdout
    assert all(char.isprintable() or char == "\n" for char in text)
    assert encode_npub(EVENTS[0].pubkey) in text
    assert "announced 1h" in text and "found on 1 of 1 relays" in text
    for words in ("1.500 sats", "20 sats", "2,048", "Q8_0", "tiny", "paused: it takes no jobs now"):
        assert words in text
    for words in ("(without a name)", "\\x1b[31mred", "models: a (no prices given)", "no models given"):
        assert words in text
    assert "An app" not in text and "Images" not in text


def test_a_relay_that_is_away_is_named_and_the_others_still_answer(tmp_path: Path, relay_url: str) -> None:
    away = "ws://127.0.0.1:9"
    done = providers(tmp_path, "--relay", relay_url, "--relay", away, "--model", "smollm2")
    assert done.returncode == 0
    assert "Priced" in done.stdout and "found on 1 of 2 relays" in done.stdout
    assert done.stderr.startswith(f"{away}: ")
    alone = providers(tmp_path, "--relay", away)
    assert (alone.returncode, alone.stdout) == (1, "")
    assert alone.stderr.splitlines()[-1] == "pylon: no relay has answered, so nothing can be said of the providers"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--relay", "http://a.example"], "relays.urls"),
        (["--kind", "6050"], "--kind"),
        (["--timeout", "0"], "--timeout"),
    ],
)
def test_wrong_usage_is_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = providers(tmp_path, *arguments)
    assert done.returncode == 2
    assert said in done.stderr and done.stderr.count("\n") == 1
