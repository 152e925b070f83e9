"""What the benchmarks run beside themselves: child processes with their CPU time and memory, a relay, a daemon."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pylon.control.client import ControlClient, ControlError
from pylon.control.views import DaemonState
from pylon.nostr.keys import SecretKey
from pylon.paths import paths_under

ROOT = Path(__file__).parents[1]
READY_LIMIT_S = 20

_ECHO_CONFIG: Final = """
[relays]
urls = {urls}
backoff_min_s = {backoff_min_s}
[payment]
mode = "free"
[intake]
requests_per_customer_per_minute = 1000000
[jobs]
queue_size = 1000
[log]
level = "warning"
[[backends]]
name = "echo"
kind = "echo"
slots = 64
[[models]]
name = "echo"
backend = "echo"
"""


class Process:
    """A child process with its CPU time and memory, as /proc tells them."""

    def __init__(self, argv: list[str], env: dict[str, str], ready: str | None) -> None:
        self._child = subprocess.Popen(
            argv, env=env, cwd=ROOT, stdout=subprocess.PIPE if ready else None, text=True, start_new_session=True
        )
        if ready:
            assert self._child.stdout is not None
            line = self._child.stdout.readline()
            if not line.startswith(ready):
                raise SystemExit(f"{argv[2]} did not start: {line.strip() or 'it ended'}")

    @property
    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self._child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def rss_mb(self) -> float:
        for line in Path(f"/proc/{self._child.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        return 0.0

    def stop(self) -> None:
        self._child.send_signal(signal.SIGTERM)
        try:
            self._child.wait(15)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


@contextlib.contextmanager
def running(argv: list[str], env: dict[str, str], ready: str | None = "READY") -> Iterator[Process]:
    process = Process(argv, env, ready)
    try:
        yield process
    finally:
        process.stop()


@contextlib.contextmanager
def relay(port: int) -> Iterator[str]:
    argv = [sys.executable, "-m", "pylon.relays.local", "--port", str(port), "--die-with-parent"]
    with running(argv, dict(os.environ)):
        yield f"ws://127.0.0.1:{port}"


def wait_ready(home: Path) -> None:
    client = ControlClient(paths_under(home).control_socket, timeout_s=2)
    until = time.monotonic() + READY_LIMIT_S
    while time.monotonic() < until:
        with contextlib.suppress(ControlError):
            status = client.status()
            if status.state is DaemonState.READY and status.relays[0].status == "connected":
                return
        time.sleep(0.05)
    raise SystemExit("the daemon did not get ready")


@contextlib.contextmanager
def echo_daemon(*urls: str, key: SecretKey, backoff_min_s: float = 1.0) -> Iterator[tuple[Process, ControlClient]]:
    """Run the real daemon on these relays: free mode, the echo backend, everything durable."""
    with tempfile.TemporaryDirectory(prefix="pylon-bench-") as folder:
        home = Path(folder)
        home.chmod(0o700)
        config = _ECHO_CONFIG.format(urls=json.dumps(urls), backoff_min_s=backoff_min_s)
        (home / "pylon.toml").write_text(config)
        env = {**os.environ, "PYLON_HOME": folder, "PYLON_NSEC": key.reveal_nsec()}
        with running([sys.executable, "-m", "pylon", "start"], env, None) as process:
            wait_ready(home)
            yield process, ControlClient(paths_under(home).control_socket, timeout_s=5)
