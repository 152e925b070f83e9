"""Commands that ask others end on time, although looking up a name takes minutes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from pylon.cli.loop import run_on_time

HANGING_DNS = """
import socket, sys, time
real = socket.getaddrinfo
def getaddrinfo(host, *args, **kwargs):
    if "example" in str(host):
        time.sleep(300)
    return real(host, *args, **kwargs)
socket.getaddrinfo = getaddrinfo
from pylon.cli.app import run
code = run(sys.argv[1:])
sys.stdout.flush()
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["relays", "check", "ws://relay.example", "--timeout", "0.5"], "no connection: no answer in time"),
        (["nexus", "stats"], "did not answer within 0.5 s"),
    ],
)
def test_a_hanging_look_up_holds_up_nothing(tmp_path: Path, arguments: Sequence[str], said: str) -> None:
    (tmp_path / "pylon.toml").write_text('[nexus]\nurl = "http://nexus.example"\ntimeout_s = 0.5\n')
    proxies = ("http_proxy", "https_proxy", "all_proxy")
    inherited = {name: value for name, value in os.environ.items() if name.lower() not in proxies}
    started_at = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HANGING_DNS, *arguments],
        capture_output=True, text=True, timeout=60, env={**inherited, "PYLON_HOME": str(tmp_path)}, check=False,
    )  # fmt: skip
    assert time.monotonic() - started_at < 20
    assert done.returncode == 1
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_answers_and_errors_arrive() -> None:
    import anyio

    async def ask() -> int:
        return (await anyio.getaddrinfo("127.0.0.1", 80))[0][4][1]

    async def fail() -> None:
        await anyio.getaddrinfo("127.0.0.1", "no-such-service-at-all")

    assert run_on_time(ask) == 80
    with pytest.raises(OSError, match=r"(?i)serv"):
        run_on_time(fail)
