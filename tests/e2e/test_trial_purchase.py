"""`pylon doctor --buy` as a process: a second daemon, a relay and a customer, none of which stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from pylon.demo.trial_purchase import buy_from_oneself
from pylon.doctor.findings import Finding, Level
from pylon.nostr.keys import SecretKey
from tests.support.openai_server import DONE, Handler, answer, hang, piece, scripted_server, stream, usage
from tests.support.provider import ROOT, Provider, market_settings, provider
from tests.support.relay import relay_process
from tests.support.scripted_relay import until

pytestmark = pytest.mark.e2e

KEY = SecretKey(b"\x06" * 32)
API_KEY = "sk-of-the-operator"
LIMIT_S = 60.0
MARK = "TRIAL_TEST_MARK"


class Doctor:
    """`pylon doctor --buy` on a provider's home. Its processes are known by a mark in their environment."""

    def __init__(self, made: Provider, folder: Path) -> None:
        self.folder = folder / "tmp"
        self.folder.mkdir()
        self.mark = uuid.uuid4().hex
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYLON_")},
            "PYLON_HOME": str(made.paths.state_dir),
            "PYLON_NSEC": made.key.reveal_nsec(),
            "TMPDIR": str(self.folder),
            MARK: self.mark,
        }

    async def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""

        def done() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "pylon", "doctor", "--buy", *arguments],
                capture_output=True, text=True, timeout=LIMIT_S, env=self.environ, cwd=ROOT, check=False,
            )  # fmt: skip

        return await anyio.to_thread.run_sync(done)

    def processes(self) -> list[int]:
        """Return the living processes of it."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def left_behind(self) -> list[object]:
        """Return what is still there of it."""
        return [*self.processes(), *self.folder.iterdir()]


def with_api_key(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings whose server wants a key."""
    return {**settings, "backends": [{**each, "api_key": API_KEY} for each in settings["backends"]]}


def purchase(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Return the finding about the purchase, the last one, of `--json`."""
    found: dict[str, str] = json.loads(done.stdout)["findings"][-1]
    assert found["check"] == "purchase"
    return found


async def test_a_job_is_bought_beside_the_running_daemon_and_after_its_end(tmp_path: Path) -> None:
    with relay_process() as relay:
        async with provider(tmp_path, market_settings(relay.url), key=KEY) as made:
            doctor = Doctor(made, tmp_path)
            done = await doctor.run("--json")
            assert done.returncode == 0, done.stdout + done.stderr
            found = purchase(done)
            assert found["level"] == "ok"
            assert found["what"].startswith(
                "echo on b: one job bought over a loopback relay, the first token after "
            )
            assert found["what"].endswith(": “Say yes.”")
            # It was another provider's job.
            assert (await made.status()).jobs_by_state == {}
            assert made.reports().jobs(work=None, money=None, limit=5, after=None) == []
            assert doctor.left_behind() == []

            await made.stop()
            before = made.paths.database.read_bytes()
            done = await doctor.run()
            assert done.returncode == 0, done.stdout + done.stderr
            assert done.stdout.splitlines()[-3].startswith("ok    purchase   echo on b: one job bought")
            assert made.paths.database.read_bytes() == before
            assert made.reports().jobs(work=None, money=None, limit=5, after=None) == []
            assert doctor.left_behind() == []


async def test_a_server_that_breaks_is_a_failure_with_its_fix(tmp_path: Path) -> None:
    broken = answer(500, {"error": {"message": "out of \x1b[31mmemory"}})
    with relay_process() as relay:
        async with scripted_server(broken) as server:
            server.models = ("echo",)
            settings = with_api_key(market_settings(relay.url, backend_url=server.url))
            async with provider(tmp_path, settings, key=KEY, started=False) as made:
                made.paths.config_file.chmod(0o600)
                doctor = Doctor(made, tmp_path)
                done = await doctor.run("--json")
    assert done.returncode == 1, done.stdout + done.stderr
    found = purchase(done)
    assert found["level"] == "fail"
    assert found["what"].startswith("echo on b: no result: ")
    assert "memory" in found["what"]
    assert found["what"].isprintable()
    assert found["fix"].startswith("see the backend's own finding above")
    # The second daemon used the operator's key of that server, and nobody was shown it.
    assert {wire.headers.get("authorization") for wire in server.posts()} == {f"Bearer {API_KEY}"}
    assert API_KEY not in done.stdout + done.stderr
    assert doctor.left_behind() == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_leaves_nothing_behind(tmp_path: Path, how: signal.Signals) -> None:
    # The doctor's own check gets its token; the job that is bought then hangs.
    with relay_process() as relay:
        async with scripted_server(stream(piece("yes"), piece(None, "stop"), usage(3, 1), DONE), hang) as server:
            server.models = ("echo",)
            settings = with_api_key(market_settings(relay.url, backend_url=server.url))
            async with provider(tmp_path, settings, key=KEY, started=False) as made:
                made.paths.config_file.chmod(0o600)
                doctor = Doctor(made, tmp_path)
                command = [sys.executable, "-m", "pylon", "doctor", "--buy"]
                async with await anyio.open_process(command, env=doctor.environ, cwd=ROOT) as process:
                    with anyio.fail_after(LIMIT_S):
                        await until(lambda: len(server.posts()) == 2)
                        [home] = [each for each in doctor.folder.iterdir() if each.name.startswith("pylon-trial-")]
                        assert home.stat().st_mode & 0o777 == 0o700
                        texts = [each.read_bytes() for each in home.iterdir() if each.is_file()]
                        assert texts
                        assert not any(API_KEY.encode() in text for text in texts)
                        process.send_signal(how)
                        assert await process.wait() == 130
    assert doctor.left_behind() == []


async def bought(
    folder: Path, *chats: Handler, limit_s: float = LIMIT_S, models: tuple[str, ...] = ("echo",)
) -> Finding:
    """Buy from a provider whose server answers like this."""
    async with scripted_server(*chats) as server:
        server.models = models
        async with provider(
            folder, market_settings("ws://127.0.0.1:1", backend_url=server.url), started=False
        ) as made:
            environ = {"PYLON_HOME": str(made.paths.state_dir)}
            (finding,) = await buy_from_oneself(made.paths, environ=environ, limit_s=limit_s)
            return finding


async def test_a_server_that_never_answers(tmp_path: Path) -> None:
    finding = await bought(tmp_path, hang, limit_s=8)
    assert finding.level is Level.FAIL
    assert finding.what == "echo on b: no result within 8 s: the job was not answered"
    assert finding.fix


async def test_a_model_that_its_server_does_not_have(tmp_path: Path) -> None:
    finding = await bought(tmp_path, hang, models=("other",))
    assert finding.level is Level.FAIL
    assert finding.what == "echo on b: not for sale: b: does not have it; there are: other"


async def test_an_answer_without_words(tmp_path: Path) -> None:
    finding = await bought(tmp_path, stream(piece(" \n"), piece(None, "stop"), usage(3, 1), DONE))
    assert finding.level is Level.WARN
    assert finding.what.endswith(", and it is empty")
