"""What the doctor finds about relays, clocks, backends and the wallet."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pylon.backends.openai import OpenAIBackend, OpenAIConfig
from pylon.control.owner_line import OwnerLine
from pylon.control.views import BackendLine, DaemonStatus
from pylon.doctor import trade
from pylon.doctor.findings import Finding, Level, Scene
from pylon.jobs.catalogue import Offer
from pylon.nostr.nip11 import RelayDocument
from pylon.paths import paths_under
from pylon.relays.check import Fault, RelayCheck, Step
from pylon.settings import Settings
from tests.support.control_views import STATUS
from tests.support.gguf_files import model_bytes
from tests.support.model_servers import LLAMA_CPP_PYTHON, model_server
from tests.support.openai_server import DONE, Handler, answer, hang, piece, scripted_server, stream, usage
from tests.support.wallet import WalletProcess

LLAMA_CPP_LIBRARY = Path(__file__).parents[1] / "support" / "llama_cpp_library"
WELL = RelayCheck("wss://a", connect_ms=10.0, round_trip_ms=41.6, authenticated=True)


def scene(tmp_path: Path, daemon: DaemonStatus | None = None, **given: Any) -> Scene:
    return Scene(Settings.model_validate(given), paths_under(tmp_path), None, daemon, time.time)


def only(findings: Sequence[Finding]) -> Finding:
    (finding,) = findings
    assert (finding.what + finding.fix).isprintable()
    assert finding.level is Level.OK or finding.fix
    return finding


# --- relays and clocks --------------------------------------------------------------------------------------------


def test_a_relay_that_serves_us() -> None:
    finding = only(trade.relay_findings(WELL, 65_536))
    assert finding == Finding(Level.OK, "relay", "wss://a: published and read back in 42 ms, AUTH confirmed")


def test_a_relay_that_takes_less_than_we_send() -> None:
    small = replace(WELL, document=RelayDocument(max_message_bytes=16_384))
    finding = only(trade.relay_findings(small, 65_536))
    assert finding.level is Level.WARN
    assert finding.fix == "pylon config set relays.max_event_bytes 16384"
    assert only(trade.relay_findings(small, 16_384)).level is Level.OK


def test_a_relay_that_fails() -> None:
    finding = only(trade.relay_findings(RelayCheck("wss://a", (Fault(Step.CONNECT, "no connection: gone"),)), 1))
    assert finding.level is Level.FAIL
    assert finding.what == "wss://a: no connection: gone"
    assert "pylon relays remove wss://a" in finding.fix


@pytest.mark.parametrize(
    ("skews", "level", "said"),
    [
        ([], Level.WARN, "not compared: no relay told its time"),
        ([0], Level.OK, "this clock agrees with the relays'"),
        ([2, -1, 1], Level.OK, "this clock is 1 s behind the relays'"),
        ([90], Level.WARN, "this clock is 90 s behind the relays'"),
        ([-90, -91], Level.WARN, "this clock is 91 s ahead of the relays'"),
        ([0, 1, 50_000], Level.OK, "this clock is 1 s behind the relays'"),  # one relay's clock is wrong, not ours
        ([-700], Level.FAIL, "this clock is 700 s ahead of the relays': they refuse what we sign"),
    ],
)
def test_clocks(skews: list[int], level: Level, said: str) -> None:
    finding = only([trade.clock_finding(skews)])
    assert (finding.level, finding.what) == (level, said)


# --- backends -----------------------------------------------------------------------------------------------------


async def tried(*chats: Handler, model: str = "m", limit_s: float = 5.0, sold: bool = True) -> Finding:
    async with scripted_server(*chats) as server:
        backend = OpenAIBackend(OpenAIConfig("b", server.url))
        return only(await trade.try_backend(backend, [Offer(model, "b", model)] if sold else [], limit_s))


async def test_a_backend_that_generates() -> None:
    finding = await tried(stream(piece("yes"), piece(None, "stop"), usage(3, 1), DONE))
    assert finding.level is Level.OK
    assert finding.what.startswith("b: m generates, the first token after 0.")


async def test_a_model_that_is_not_there() -> None:
    finding = await tried(hang, model="other")
    assert finding.level is Level.FAIL
    assert finding.what == "b: other is on offer and not there; there are: m"


async def test_a_backend_that_lists_and_does_not_generate() -> None:
    finding = await tried(answer(500, {"error": {"message": "out of \x1b[31mmemory"}}))
    assert finding.level is Level.FAIL
    assert finding.what.startswith("b: m does not generate: ")


async def test_a_backend_that_is_slow() -> None:
    finding = await tried(hang, limit_s=0.5)
    assert finding.level is Level.WARN
    assert finding.what == "b: m is listed and generated nothing in time"


async def test_a_backend_of_which_nothing_is_sold() -> None:
    assert (await tried(hang, sold=False)).what == "b: answers, and nothing of it is on offer"


async def test_a_backend_that_is_not_there() -> None:
    backend = OpenAIBackend(OpenAIConfig("b", "http://127.0.0.1:1/v1"))
    finding = only(await trade.try_backend(backend, [Offer("m", "b", "m")], 5.0))
    assert finding.level is Level.FAIL
    assert finding.what.startswith("b: down: ")


EMBEDDED: dict[str, Any] = {
    "backends": [{"name": "e", "kind": "embedded", "gguf": "/nowhere/model.gguf"}],
    "models": [{"name": "m", "backend": "e"}],
    "payment": {"mode": "free"},
}


@pytest.mark.parametrize(
    ("lines", "level", "said"),
    [
        ((BackendLine("e", "embedded", "ready", "", ("m",)),), Level.OK, "the running pylon has it ready, with m"),
        ((BackendLine("e", "embedded", "loading", "loading m"),), Level.WARN, "e: still loading: loading m"),
        ((BackendLine("e", "embedded", "down", "no \x1bfile"),), Level.FAIL, "e: down: no \\x1bfile"),
        ((), Level.WARN, "the running pylon does not have it"),
    ],
)
async def test_an_embedded_model_is_not_loaded_a_second_time(
    tmp_path: Path, lines: tuple[BackendLine, ...], level: Level, said: str
) -> None:
    place = scene(tmp_path, replace(STATUS, backends=lines), **EMBEDDED)
    finding = only(await trade.check_backends(place, 5))
    assert finding.level is level
    assert said in finding.what
    assert list(tmp_path.iterdir()) == []  # no child, no log of one


async def test_what_a_pause_gave_back_is_not_loaded_for_a_look(tmp_path: Path) -> None:
    async with scripted_server(hang) as server:
        parts: dict[str, Any] = {
            "backends": [{"name": "e", "kind": "openai", "url": server.url}],
            "models": [{"name": "m", "backend": "e"}],
            "payment": {"mode": "free"},
        }
        paused = replace(
            STATUS, backends=(BackendLine("e", "openai", "ready", "", ("m",)),), owner=OwnerLine(stance="paused")
        )
        finding = only(await trade.check_backends(scene(tmp_path, paused, **parts), 5))
        assert (finding.level, server.asked) == (Level.OK, [])


async def test_an_embedded_model_without_its_file(tmp_path: Path) -> None:
    finding = only(await trade.check_backends(scene(tmp_path, **EMBEDDED), 5))
    assert finding.level is Level.FAIL
    assert "/nowhere/model.gguf" in finding.what or "is not installed" in finding.what


async def test_a_broken_model_beside_a_sound_one_is_told_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(LLAMA_CPP_LIBRARY))
    monkeypatch.syspath_prepend(str(LLAMA_CPP_LIBRARY))
    (tmp_path / "sound.gguf").write_bytes(model_bytes())
    (tmp_path / "broken.gguf").write_bytes(b"<html>")
    given: dict[str, Any] = {
        "backends": [{"name": "f", "kind": "llama_cpp", "path": str(tmp_path)}],
        "models": [{"name": "s", "backend": "f", "backend_model": "sound"}, {"name": "broken", "backend": "f"}],
        "payment": {"mode": "free"},
    }
    sound, broken = await trade.check_backends(scene(tmp_path, **given), 30)
    assert sound.level is Level.OK
    assert "f: sound generates" in sound.what
    assert broken.level is Level.FAIL
    told = "f: broken is on offer and not there (broken.gguf is no GGUF file); there are: sound"
    assert broken.what == told


async def test_a_server_that_lets_a_second_request_abort_the_first_is_remarked_on(tmp_path: Path) -> None:
    async with model_server(LLAMA_CPP_PYTHON) as server:
        given: dict[str, Any] = {
            "backends": [{"name": "b", "kind": "openai", "url": server.url}],
            "models": [{"name": "m", "backend": "b", "backend_model": "/models/tiny.gguf"}],
            "payment": {"mode": "free"},
        }
        *_, caveat = await trade.check_backends(scene(tmp_path, **given), 5)
    assert caveat.level is Level.WARN
    assert caveat.what.startswith("b: llama-cpp-python: unless it was started with --interrupt_requests false, ")
    assert "docs/llama-cpp.md" in caveat.fix


# --- the wallet ---------------------------------------------------------------------------------------------------


async def test_no_wallet(tmp_path: Path) -> None:
    assert only(await trade.check_wallet(scene(tmp_path), 5)).level is Level.FAIL
    free = scene(tmp_path, payment={"mode": "free"})
    assert only(await trade.check_wallet(free, 5)).level is Level.OK


async def test_a_wallet_that_answers_and_one_that_refuses_or_is_gone(tmp_path: Path) -> None:
    with WalletProcess(tmp_path) as wallet:

        def place(token: str) -> Scene:
            given = {"kind": "fake", "url": wallet.url, "token": token, "network": "regtest", "timeout_s": 2}
            return scene(tmp_path, wallet=given)

        well = only(await trade.check_wallet(place(wallet.owner_token), 5))
        assert well.level is Level.OK
        assert well.what.startswith("fake on regtest, 0 sats; balance, ")
        refused = only(await trade.check_wallet(place("wrong-token"), 5))
        assert refused.level is Level.FAIL
        assert "wrong-token" not in refused.what + refused.fix
        wallet.kill()
        gone = only(await trade.check_wallet(place(wallet.owner_token), 5))
        assert gone.level is Level.FAIL
        assert "cannot be reached" in gone.what


async def test_a_wallet_without_its_token(tmp_path: Path) -> None:
    place = scene(tmp_path, wallet={"kind": "fake", "url": "http://127.0.0.1:1"})
    assert "PYLON_WALLET_TOKEN" in only(await trade.check_wallet(place, 5)).what
