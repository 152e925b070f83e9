"""`pylon start --detach`: the command ends when the daemon is ready or has failed, and says which."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import orjson
import pytest

from pylon.lock import lock_holder
from tests.support.provider import Provider, market_settings, provider
from tests.support.relay import relay_process

pytestmark = pytest.mark.e2e


@asynccontextmanager
async def home(folder: Path, url: str = "ws://127.0.0.1:9") -> AsyncIterator[Provider]:
    """Have a home; what runs there in the background is ended."""
    async with provider(folder, market_settings(url), started=False) as daemon:
        try:
            yield daemon
        finally:
            if pid := lock_holder(daemon.paths.lock_file):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


async def test_it_is_ready_when_the_command_ends(tmp_path: Path) -> None:
    with relay_process() as relay:
        async with home(tmp_path, relay.url) as daemon:
            done = await daemon.pylon("start", "--detach")
            assert (done.returncode, done.stderr) == (0, "")
            said = re.fullmatch(r"pylon runs in the background as process (\d+); log: (.*)\n", done.stdout)
            assert said is not None, done.stdout
            pid, log = int(said[1]), Path(said[2])
            assert (await daemon.status()).pid == pid == lock_holder(daemon.paths.lock_file)
            assert os.getsid(pid) not in (os.getsid(0), pid), "a terminal could reach it, or it could take one"
            assert Path(f"/proc/{pid}/cwd").resolve() == Path("/")
            assert log == daemon.paths.log_file
            assert log.stat().st_mode & 0o777 == 0o600
            assert any(orjson.loads(line)["event"] == "pylon is running" for line in log.read_text().splitlines())

            again = await daemon.pylon("start", "--detach")
            assert again.returncode == 1
            holds = f"process {pid} holds {daemon.paths.lock_file}"
            assert again.stderr == f"pylon: pylon already runs in this home: {holds} (log: {log})\n"
            stopped = await daemon.pylon("stop")
            assert (stopped.returncode, stopped.stdout) == (0, "pylon has stopped\n")


async def test_a_failed_start_is_its_reason_and_the_logs_place(tmp_path: Path) -> None:
    async with home(tmp_path) as daemon:
        (daemon.paths.control_socket / "in the way").mkdir(parents=True)
        done = await daemon.pylon("start", "--detach")
        assert (done.returncode, done.stdout) == (1, "")
        assert str(daemon.paths.control_socket) in done.stderr
        assert done.stderr.endswith(f"(log: {daemon.paths.log_file})\n")
        assert done.stderr.count("\n") == 1
        assert str(daemon.paths.control_socket) in daemon.paths.log_file.read_text()


async def test_wrong_settings_are_told_before_anything_is_detached(tmp_path: Path) -> None:
    async with home(tmp_path) as daemon:
        daemon.paths.config_file.write_text("nonsense")
        done = await daemon.pylon("start", "--detach")
        assert done.returncode == 2
        assert done.stderr.startswith(f"pylon: {daemon.paths.config_file}: not valid TOML")
        assert not daemon.paths.log_file.exists()
