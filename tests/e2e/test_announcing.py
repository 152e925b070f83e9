"""Announcements end to end: the real daemon and the real commands, and what a relay then has stored."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from websockets.asyncio.client import connect

from pylon.nostr.event import Draft, Event, parse_event, verify
from pylon.nostr.nip89 import ModelPrice, parse_announcement, relay_list_draft
from tests.support.openai_server import scripted_server
from tests.support.provider import MODEL, Provider, market_settings, provider
from tests.support.relay import relay_process
from tests.support.running_pool import running_pool
from tests.support.wallet import WalletProcess

pytestmark = pytest.mark.e2e

LIMIT_S = 20.0
QUICKLY = {"debounce_s": 1, "topics": ["llm"], "lud16": "shop@ln.example", "about": "Answers for tests."}


async def stored(url: str, **asked: Any) -> list[Event]:
    """Ask a relay as any client does."""
    found: list[Event] = []
    async with connect(url, compression=None) as socket:
        await socket.send(orjson.dumps(["REQ", "q", asked]).decode())
        with anyio.fail_after(LIMIT_S):
            while (message := orjson.loads(await socket.recv()))[0] == "EVENT":
                found.append(parse_event(message[2]))
    assert message[0] == "EOSE"
    assert all(map(verify, found))
    return found


async def announced(url: str, is_it: Callable[[list[Event]], bool] = bool, **asked: Any) -> list[Event]:
    """Wait until what a client finds, by default by the kind of job, is as it should be."""
    asked = asked or {"kinds": [31990], "#k": ["5050"]}
    found: list[Event] = []
    with anyio.move_on_after(LIMIT_S):
        while not is_it(found := await stored(url, **asked)):  # noqa: ASYNC110
            await anyio.sleep(0.05)
        return found
    raise AssertionError(f"not within {LIMIT_S:g} s; found: {found}")


async def ran(daemon: Provider, *arguments: str) -> str:
    done = await daemon.pylon(*arguments)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


async def test_announced_found_changed_withdrawn_and_announced_again(tmp_path: Path) -> None:
    with relay_process() as relay:
        settings = market_settings(relay.url, announce=QUICKLY, payment={"mode": "free"})
        async with provider(tmp_path, settings) as daemon:
            (first,) = await announced(relay.url)
            assert first.pubkey == daemon.pubkey
            told = parse_announcement(first)
            assert ([model.name for model in told.models], told.topics) == ([MODEL], ("llm",))
            assert not told.paused and told.models[0].price == ModelPrice(), "nobody pays here"
            assert json.loads(first.content)["nip90Params"]["model"] == {"required": False, "values": [MODEL]}
            assert first in await stored(relay.url, kinds=[31990], **{"#t": ["llm"]})
            (profile,) = await announced(relay.url, kinds=[0], authors=[daemon.pubkey])
            assert json.loads(profile.content)["lud16"] == "shop@ln.example"
            (relays,) = await announced(relay.url, kinds=[10002], authors=[daemon.pubkey])
            assert relays.tags == relay_list_draft([relay.url]).tags

            assert await daemon.stop() == 0
            (left,) = await stored(relay.url, kinds=[31990])
            assert left.created_at > first.created_at and parse_announcement(left).paused
            daemon.configure({**settings, "name": "renamed"})
            await daemon.start()
            (second,) = await announced(relay.url, lambda found: bool(found) and found != [left])
            assert second.created_at > left.created_at and not parse_announcement(second).paused
            assert parse_announcement(second).name == "renamed"

            assert "withdrawn; confirmed by" in await ran(daemon, "announce", "withdraw")
            assert await stored(relay.url, kinds=[31990]) == []
            (deletion,) = await stored(relay.url, kinds=[5], authors=[daemon.pubkey])
            assert ("a", f"31990:{daemon.pubkey}:pylon") in deletion.tags
            assert ("e", second.id) in deletion.tags
            assert "announcement  withdrawn" in await ran(daemon, "announce", "show")
            assert await daemon.stop() == 0
            await daemon.start()
            assert "announcement  withdrawn" in await ran(daemon, "announce", "show")
            assert await stored(relay.url, kinds=[31990]) == []

            assert "announced; confirmed by" in await ran(daemon, "announce", "publish")
            (third,) = await stored(relay.url, kinds=[31990])
            assert third.created_at > deletion.created_at > second.created_at
            shown = json.loads(await ran(daemon, "announce", "show", "--json"))
            assert (shown["state"], shown["running"]) == ("announced", True)
            assert shown["event"]["id"] == shown["relays"][0]["has"]["announcement"]["id"] == third.id
            assert await daemon.stop() == 0


async def test_the_prices_are_announced_where_work_is_paid_for(tmp_path: Path) -> None:
    """By hand, since a paid daemon needs a wallet; then withdrawn by hand too."""
    with relay_process() as relay:
        settings = market_settings(relay.url, announce=QUICKLY, payment={"mode": "prepay"})
        async with provider(tmp_path, settings, started=False) as daemon:
            shown = json.loads(await ran(daemon, "announce", "show", "--json"))
            assert (shown["state"], shown["running"], shown["event"]) == ("waiting", False, None)
            assert shown["relays"][0]["has"] == {"announcement": None, "profile": None, "relay list": None}
            assert "marked as paused" in await ran(daemon, "announce", "publish")
            (event,) = await stored(relay.url, kinds=[31990], **{"#k": ["5050"]})
            told = parse_announcement(event)
            assert told.paused and told.models[0].price == ModelPrice(1000, 0, 10_000)
            assert event.id[:12] in await ran(daemon, "announce", "show")

            listed = json.loads(await ran(daemon, "providers", "--json"))
            (line,) = listed["providers"]
            assert (line["pubkey"], line["event_id"], line["relays"]) == (daemon.pubkey, event.id, [relay.url])
            text = await ran(daemon, "providers", "--model", MODEL)
            assert "paused: it takes no jobs now" in text and "1 sats" in text and "10 sats" in text
            assert await ran(daemon, "providers", "--model", "another") == "no provider found\n"
            assert await ran(daemon, "providers", "--kind", "5100") == "no provider found\n"

            assert "withdrawn by" in await ran(daemon, "announce", "withdraw")
            assert await stored(relay.url, kinds=[31990]) == []
            assert "announcement  withdrawn" in await ran(daemon, "announce", "show")


async def test_it_is_kept_true_as_backend_wallet_and_price_change(tmp_path: Path) -> None:
    def says(models: list[str], *, paused: bool) -> Callable[[list[Event]], bool]:
        def is_it(found: list[Event]) -> bool:
            told = [parse_announcement(event) for event in found]
            return [([model.name for model in each.models], each.paused) for each in told] == [(models, paused)]

        return is_it

    async with scripted_server() as server:
        server.models = (MODEL, "a private model")
        with relay_process() as relay, WalletProcess(tmp_path) as wallet:
            settings = market_settings(relay.url, paid_to=wallet, backend_url=server.url, announce=QUICKLY)
            async with provider(tmp_path, settings, wallet=wallet) as daemon:
                (event,) = await announced(relay.url, says([MODEL], paused=False))
                assert parse_announcement(event).models[0].price == ModelPrice(1000, 0, 10_000)
                assert "private" not in event.to_json()
                server.models = ("a private model",)
                await announced(relay.url, says([], paused=True))
                server.models = (MODEL,)
                await announced(relay.url, says([MODEL], paused=False))

                daemon.kill()
                dearer = {"name": MODEL, "backend": "b", "base_msats": 9000}
                daemon.configure({**settings, "models": [dearer]})
                await daemon.start()
                (repriced,) = await announced(
                    relay.url, lambda found: "9000" in found[0].content if found else False
                )
                assert parse_announcement(repriced).models[0].price == ModelPrice(9000)
                assert repriced.created_at > event.created_at

                wallet.kill()
                await announced(relay.url, says([MODEL], paused=True))


async def test_published_by_hand_it_is_paused_until_the_daemon_starts(tmp_path: Path) -> None:
    with relay_process() as relay:
        settings = market_settings(relay.url, announce=QUICKLY)
        async with provider(tmp_path, settings, started=False) as daemon:
            await ran(daemon, "announce", "publish")
            (by_hand,) = await stored(relay.url, kinds=[31990])
            await daemon.start()
            (event,) = await announced(relay.url, lambda found: bool(found) and found != [by_hand])
            assert not parse_announcement(event).paused
            assert event.created_at > by_hand.created_at


async def test_a_profile_that_the_key_has_already_is_never_overwritten(tmp_path: Path) -> None:
    with relay_process() as relay:
        settings = market_settings(relay.url, announce=QUICKLY)
        async with provider(tmp_path, settings, started=False) as daemon:
            human = Draft(0, '{"name":"A human","nip05":"me@example.com"}').sign(daemon.key, int(time.time()) - 5)
            async with running_pool(relay.url) as running:
                running.deliver(human)
                assert await announced(relay.url, kinds=[0]) == [human]
            await ran(daemon, "announce", "publish")
            assert await stored(relay.url, kinds=[0]) == [human]
            (first,) = await announced(relay.url)
            await daemon.start()
            await announced(relay.url, lambda found: bool(found) and found != [first])
            await announced(relay.url, kinds=[10002])
            await ran(daemon, "announce", "publish")
            assert await stored(relay.url, kinds=[0]) == [human]


async def test_a_relay_that_was_away_gets_the_announcement_when_it_returns(tmp_path: Path) -> None:
    with relay_process() as relay, relay_process() as late:
        late.kill()
        settings = market_settings(relay.url, late.url, announce=QUICKLY)
        async with provider(tmp_path, settings, started=False) as daemon:
            daemon.launch()
            (event,) = await announced(relay.url)
            late.start()
            assert await announced(late.url) == [event]


async def test_switched_off_nothing_is_announced(tmp_path: Path) -> None:
    with relay_process() as relay:
        settings = market_settings(relay.url, announce={**QUICKLY, "enabled": False})
        async with provider(tmp_path, settings) as daemon:
            done = await daemon.pylon("announce", "publish")
            assert done.returncode == 1
            assert done.stderr == "pylon: announcing is switched off: set announce.enabled = true\n"
            assert await daemon.stop() == 0
            done = await daemon.pylon("announce", "publish")
            assert done.stderr == "pylon: announcing is switched off: set announce.enabled = true\n"
            assert await stored(relay.url, authors=[daemon.pubkey]) == []
