"""The whole doctor: with the real daemon, without it, in a broken home, and against what never answers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pylon.doctor.examine import examine, worst
from pylon.doctor.findings import Finding, Level
from pylon.nostr.event import Draft
from pylon.nostr.keys import SecretKey
from pylon.paths import paths_under
from tests.support.openai_server import hang, scripted_server
from tests.support.provider import Provider, market_settings, provider
from tests.support.relay import RelayProcess, relay_process
from tests.support.running_pool import running_pool
from tests.support.scripted_relay import scripted_relay, silent, until
from tests.support.wallet import WalletProcess

KEY = SecretKey(b"\x05" * 32)


@pytest.fixture(scope="module")
def relay() -> Iterator[RelayProcess]:
    with relay_process("both") as process:
        yield process


async def diagnosis(made: Provider, *, code: int) -> dict[tuple[str, str], list[str]]:
    """Run the command; return what was found by check and level."""
    done = await made.pylon("doctor", "--json")
    assert done.returncode == code, done.stdout + done.stderr
    assert made.key.reveal_nsec() not in done.stdout
    found: dict[tuple[str, str], list[str]] = {}
    for each in json.loads(done.stdout)["findings"]:
        found.setdefault((each["check"], each["level"]), []).append(each["what"])
    return found


async def test_with_and_without_the_real_daemon(tmp_path: Path, relay: RelayProcess) -> None:
    with WalletProcess(tmp_path) as wallet:
        settings = market_settings(relay.url, paid_to=wallet)
        async with provider(tmp_path, settings, key=KEY, wallet=wallet) as made:
            running = await diagnosis(made, code=0)
            assert running["daemon", "ok"] == [f"process {made.pid} runs and is ready"]
            assert running["elsewhere", "ok"][0].startswith("not looked for: pylon runs")
            await made.stop()
            stopped = await diagnosis(made, code=0)
    assert stopped["daemon", "ok"] == ["not running"]
    assert stopped["elsewhere", "ok"] == ["no sign of the same key at work elsewhere"]
    for found in (running, stopped):
        assert "published and read back" in found["relay", "ok"][0]
        assert found["backend", "ok"][0].startswith("b: echo generates")
        assert found["wallet", "ok"][0].startswith("fake on regtest, 0 sats")
        assert found["database", "ok"][0].endswith("is sound and writable")
        assert {level for _, level in found} <= {"ok", "warn"}
        assert [check for check, level in found if level == "warn"] == ["clock"]  # this relay tells no time


async def test_a_twin_at_work_is_seen_once_the_daemon_is_stopped(tmp_path: Path) -> None:
    with relay_process() as other:
        async with provider(tmp_path, market_settings(other.url), key=KEY) as made:
            await made.stop()
            async with running_pool(other.url, key=KEY) as run:
                event = Draft(kind=7000, content="x").sign(KEY, int(time.time()) + 90)
                run.deliver(event)
                await until(lambda: event.id in run.heard.confirmed_by)
            found = await diagnosis(made, code=0)
    assert "probably not sent from here" in found["elsewhere", "warn"][0]


async def test_what_is_broken_is_said_with_its_fix(tmp_path: Path) -> None:
    settings = market_settings("ws://127.0.0.1:1", backend_url="http://127.0.0.1:1")
    async with provider(tmp_path, settings, key=KEY, started=False) as made:
        made.paths.state_dir.chmod(0o755)
        done = await made.pylon("doctor")
        assert done.returncode == 1
        assert "others can enter" in done.stdout
        assert "no connection: Connection refused" in done.stdout
        assert f"-> chmod 700 {made.paths.state_dir}\n" in done.stdout
        assert done.stdout.splitlines()[-1].endswith(" 3 failed")
        made.paths.config_file.write_text("[relays]\nurls = 7\n")
        found = await diagnosis(made, code=1)
        assert found["settings", "fail"][0].startswith(f"{made.paths.config_file}: relays.urls")
        assert not [check for check, _ in found if check in ("relay", "backend", "wallet")]
        assert ("disk", "ok") in found


async def test_the_whole_is_bounded_whatever_never_answers(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    async with scripted_relay(silent) as mute, scripted_server(hang) as server:
        server.routes["/v1/models"] = server.routes["/health"] = hang
        (home / "pylon.toml").write_text(
            f'[relays]\nurls = ["{mute.url}"]\n[payment]\nmode = "free"\n'
            f'[[backends]]\nname = "b"\nkind = "openai"\nurl = "{server.url}/v1"\n'
            '[[models]]\nname = "m"\nbackend = "b"\n'
        )
        environ = {"PYLON_HOME": str(home), "PYLON_NSEC": KEY.reveal_nsec()}
        started_at = time.monotonic()
        findings = await examine(paths_under(home), clock=time.time, environ=environ, limit_s=3)
        assert time.monotonic() - started_at < 6
    levels = {finding.check: finding.level for finding in findings}
    assert levels["relay"] is Level.FAIL
    assert levels["backend"] in (Level.FAIL, Level.WARN)
    assert worst(findings) is Level.FAIL


def test_the_worst_counts() -> None:
    good, odd = Finding(Level.OK, "a", "b"), Finding(Level.WARN, "a", "b")
    assert worst(()) is Level.OK
    assert worst((good, odd)) is Level.WARN
    assert worst((odd, Finding(Level.FAIL, "a", "b"), good)) is Level.FAIL
